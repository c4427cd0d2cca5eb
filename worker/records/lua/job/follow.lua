-- Keep the message that a running job published for its own id (Celery's retry and replace do): it takes the place of
-- this delivery when that settles as done.
-- KEYS none  ARGV 1 prefix  2 job id  3 delivery  4 queue  5 step  6 message  7 due moment
-- RETURNS 'follows' | 'settled' | 'late'
local queue, why = holding(ARGV[2], ARGV[3])
if not queue then return why end
redis.call('HSET', key.job(ARGV[2]), 'follows', ARGV[6], 'follows_queue', ARGV[4], 'follows_step', ARGV[5],
  'follows_due', exact(moment(ARGV[7], clock()) or 0))
return 'follows'
