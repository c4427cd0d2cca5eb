-- Settle a delivery by putting its job among the delayed.
-- KEYS none  ARGV 1 prefix  2 job id  3 delivery  4 message of the next run  5 due moment
--            6 attempts to count (0 for a snooze)  7 error
-- RETURNS 'rescheduled' | 'settled' | 'late'
local id = ARGV[2]
local queue, why = holding(id, ARGV[3])
if not queue then return why end
let_go(id, queue)
local record = key.job(id)
redis.call('HDEL', record, 'started_at', 'follows', 'follows_step', 'follows_due')
redis.call('HSET', record, 'state', 'delayed', 'message', ARGV[4], 'error', ARGV[7])
redis.call('ZADD', key.delayed(queue), exact(moment(ARGV[5], clock()) or 0), id)
if ARGV[6] ~= '0' then
  redis.call('HINCRBY', record, 'attempts', ARGV[6])
  count(queue, 'retries')
end
ring(queue)
return 'rescheduled'
