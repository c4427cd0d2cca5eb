-- Settle a delivery by putting its job among the delayed.
-- KEYS none  ARGV 1 prefix  2 job id  3 delivery  4 message of the next run  5 due moment
--            6 attempts to count (0 for a snooze)  7 error
-- RETURNS 'rescheduled' | 'settled' | 'late'
local id = ARGV[2]
local queue, why = settling(id, ARGV[3])
if not queue then return why end
let_go(id, queue)
local record = key.job(id)
redis.call('HSET', record, 'message', ARGV[4], 'error', ARGV[7])
if ARGV[6] ~= '0' then
  redis.call('HINCRBY', record, 'attempts', ARGV[6])
  count(queue, 'retries')
end
wait(id, queue, moment(ARGV[5], clock()) or 0)
return 'rescheduled'
