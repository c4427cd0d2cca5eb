-- Note that a delivery has begun to run.
-- KEYS none  ARGV 1 prefix  2 job id  3 delivery
-- RETURNS 'started' | 'settled' | 'late'
local queue, why = holding(ARGV[2], ARGV[3])
if not queue then return why end
redis.call('HSET', key.job(ARGV[2]), 'state', 'started', 'started_at', exact(clock()))
return 'started'
