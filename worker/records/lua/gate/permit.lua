-- Charge a gate for one more call of a job that runs: a retry, a fallback, a part of a batch.
-- KEYS none  ARGV 1 prefix  2 the gate's rules as JSON  3 queue  4 rank (1 is the most urgent)  5 cost
-- RETURNS {'go', in how many s it may leave: it is charged} | {'wait', for how many s} | {'never'}
local gate = gate_now(cjson.decode(ARGV[2]), clock())
local cost = tonumber(ARGV[5])
local wait_s = wait_at(gate, ARGV[3], tonumber(ARGV[4]), 1, cost)
if not wait_s then return {'never'} end
if wait_s > 0 then return {'wait', exact(wait_s)} end
charge(gate, ARGV[3], 1, cost)
return {'go', exact(depart(gate, 1, cost))}
