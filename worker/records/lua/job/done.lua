-- Settle a delivery as done. A message that the task published for its own id follows instead, in the same step; a
-- task that put a canvas in its place waits for the canvas' end.
-- KEYS none  ARGV 1 prefix  2 job id  3 delivery  4 lifetime of the record in s
-- RETURNS 'done' | 'follows' | 'replaced' | 'settled' | 'late'
local id = ARGV[2]
local queue, why = settling(id, ARGV[3])
if not queue then return why end
local record = key.job(id)
local known = redis.call('HMGET', record, 'follows', 'follows_step', 'follows_due', 'follows_queue', 'replacing')
if known[1] then
  let_go(id, queue)
  redis.call('HSET', record, 'message', known[1], 'step', known[2])
  move(id, queue, known[4])
  if not known[5] then
    redis.call('HINCRBY', record, 'attempts', 1)
    count(queue, 'retries')
  end
  wait(id, known[4], tonumber(known[3]))
  return 'follows'
end
if known[5] then
  let_go(id, queue)
  redis.call('HDEL', record, 'started_at', 'alone')
  redis.call('HSET', record, 'state', 'replaced')
  redis.call('ZADD', key.delayed(queue), exact(clock() + tonumber(ARGV[4])), id) -- fetch.lua buries it then
  return 'replaced'
end
finish(id, queue, 'succeeded', ARGV[4])
count(queue, 'completed')
return 'done'
