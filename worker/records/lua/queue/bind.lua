-- Note that a queue is bound to an exchange, as kombu does, also when Redis is out of memory: a worker that starts or
-- comes back does so, and it is who drains.
-- KEYS none  ARGV 1 prefix  2 kombu's key of the exchange's bindings  3 binding
-- RETURNS nothing
redis.call('SADD', prefix .. ARGV[2], ARGV[3])
