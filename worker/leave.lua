-- End an owner's lease now. What it still holds is swept at once by whoever sweeps next.
-- KEYS none  ARGV 1 prefix  2 owner
-- RETURNS how many jobs it left behind
local left = redis.call('SCARD', key.held(ARGV[2]))
redis.call('DEL', key.owner(ARGV[2]))
if left > 0 then
  redis.call('ZADD', key.owners(), 0, ARGV[2])
else
  redis.call('ZREM', key.owners(), ARGV[2])
end
return left
