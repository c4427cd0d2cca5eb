-- Renew an owner's lease: one entry for all that it holds. Bring it what was said to it since.
-- KEYS none  ARGV 1 prefix  2 owner  3 lease in s  4 how many lines of its mail it has heard
--            5... pairs that say who it is (node, pid, queues)
-- RETURNS lines of 'cancel' or 'wedged' and a job id
redis.call('ZADD', key.owners(), exact(clock() + tonumber(ARGV[3])), ARGV[2])
redis.call('HSET', key.owner(ARGV[2]), unpack(ARGV, 5))
redis.call('EXPIRE', key.owner(ARGV[2]), 3600)
redis.call('LTRIM', key.mail(ARGV[2]), ARGV[4], -1)
return redis.call('LRANGE', key.mail(ARGV[2]), 0, -1)
