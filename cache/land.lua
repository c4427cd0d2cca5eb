-- Keep what a leader computed, end its flights and wake who waits. What it no longer holds, or claimed before a clear,
-- is not kept: the token is the fence.
-- KEYS 1 the kind's generation, 2 the token's list of marks, 3... the values
-- ARGV 1 token, 2 generation at the claim, 3 how long the mark stays in ms, then for each value its ms and bytes (0: none)
-- RETURNS how many were kept
local kept = 0
local current = (redis.call('GET', KEYS[1]) or '') == ARGV[2]
for index = 3, #KEYS do
  local flight = KEYS[index] .. ':flight'
  if redis.call('GET', flight) == ARGV[1] then
    local at = 4 + (index - 3) * 2
    if current and tonumber(ARGV[at]) > 0 then
      redis.call('SET', KEYS[index], ARGV[at + 1], 'PX', ARGV[at])
      kept = kept + 1
    end
    redis.call('DEL', flight)
  end
end
redis.call('RPUSH', KEYS[2], 'value')
redis.call('PEXPIRE', KEYS[2], ARGV[3])
return kept
