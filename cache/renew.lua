-- Renew the flights that a leader still holds. Runs without memory.
-- KEYS the values
-- ARGV 1 token, 2 lease in ms
-- RETURNS how many it holds
local held = 0
for _, key in ipairs(KEYS) do
  local flight = key .. ':flight'
  if redis.call('GET', flight) == ARGV[1] then held = held + redis.call('PEXPIRE', flight, ARGV[2]) end
end
return held
