-- Let a call leave that the fetch has charged, now that its cost is known.
-- KEYS none  ARGV 1 prefix  2 the gate's rules as JSON  3 cost that was charged  4 cost
-- RETURNS {'go', in how many s it may leave} | {'wait', in how many s the gate opens, which was shut since}
local gate, charged, cost = gate_now(cjson.decode(ARGV[2]), clock()), tonumber(ARGV[3]), tonumber(ARGV[4])
if gate.now < gate.shut_until then return {'wait', exact(gate.shut_until - gate.now)} end
if gate.cost then gate.cost = math.min(gate.rules.cost.capacity, gate.cost + charged - cost) end
return {'go', exact(depart(gate, 1, cost))}
