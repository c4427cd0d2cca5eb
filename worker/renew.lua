-- Renew an owner's lease: one entry for all that it holds.
-- KEYS none  ARGV 1 prefix  2 owner  3 lease in s  4... pairs that say who it is (node, pid, queues)
-- RETURNS how many jobs it holds
redis.call('ZADD', key.owners(), exact(clock() + tonumber(ARGV[3])), ARGV[2])
redis.call('HSET', key.owner(ARGV[2]), unpack(ARGV, 4))
redis.call('EXPIRE', key.owner(ARGV[2]), 3600)
return redis.call('SCARD', key.held(ARGV[2]))
