-- Settle a delivery as done. If the task published a message for its own id (Celery's retry and replace do),
-- that message follows instead, in the same step.
-- KEYS none  ARGV 1 prefix  2 job id  3 delivery  4 lifetime of the record in s
-- RETURNS 'done' | 'follows' | 'settled' | 'late'
local id = ARGV[2]
local queue, why = holding(id, ARGV[3])
if not queue then return why end
local record = key.job(id)
local follows = redis.call('HMGET', record, 'follows', 'follows_step', 'follows_due')
if follows[1] then
  let_go(id, queue)
  redis.call('HDEL', record, 'follows', 'follows_step', 'follows_due', 'started_at')
  redis.call('HSET', record, 'state', 'delayed', 'message', follows[1], 'step', follows[2])
  redis.call('HINCRBY', record, 'attempts', 1)
  redis.call('ZADD', key.delayed(queue), follows[3], id)
  count(queue, 'retries')
  ring(queue)
  return 'follows'
end
finish(id, queue, 'succeeded', ARGV[4])
count(queue, 'completed')
return 'done'
