-- Shut a gate for all workers, because its provider refused a call, or said that nothing is left. A provider that
-- refuses again and again allows less than its gate's rules say: the rate is stepped down, and grows back slowly.
-- KEYS none  ARGV 1 prefix  2 the gate's rules as JSON  3 for how many s, '' when the provider did not say  4 why
--   5 'refused' | 'used up'
-- RETURNS in how many s it opens, as text
local rules, now = cjson.decode(ARGV[2]), clock()
local gate, record = gate_now(rules, now), key.gate(rules.name)
local STRIKE_S = 300 -- a refusal that comes later than this is a first one again
local STEP_DOWN, LEAST = 0.8, 0.1
local LIE_S = 1 -- a provider that refuses so soon after the time that it named had named too short a time
local strikes, lies = tonumber(gate.known.strikes or 0), tonumber(gate.known.lies or 0)
if now - tonumber(gate.known.refused_at or 0) > STRIKE_S then strikes = 0 end
local refused = ARGV[5] == 'refused'
if refused and now >= gate.shut_until then -- otherwise it was under way when the gate was shut, and says nothing new
  if strikes > 0 then
    redis.call('HSET', record, 'learned', exact(math.max(LEAST, gate.learned * STEP_DOWN)), 'learned_at', exact(now))
  end
  strikes = strikes + 1
  lies = now - gate.shut_until < LIE_S and lies + 1 or 0
  keep(gate) -- the rate has changed: what was filled until now stays
end
local named_s = tonumber(ARGV[3]) or 2 ^ strikes
local for_s = math.min(lies > 0 and math.max(named_s, 2 ^ (lies - 1)) or named_s, rules.max_shut_s)
local till = math.max(gate.shut_until, now + for_s)
redis.call('HSET', record, 'shut_until', exact(till), 'reason', ARGV[4])
if refused then
  redis.call('HSET', record, 'refused_at', exact(now), 'strikes', strikes, 'lies', lies)
  redis.call('HINCRBY', record, 'refusals', 1)
end
redis.call('EXPIRE', record, GATE_LIFETIME_S)
return exact(till - now)
