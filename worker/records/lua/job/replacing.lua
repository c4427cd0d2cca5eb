-- Note that a running job puts a canvas in its own place: whose last task will be published under the job's id.
-- KEYS none  ARGV 1 prefix  2 job id  3 delivery
-- RETURNS 'replacing' | 'settled' | 'late'
local queue, why = holding(ARGV[2], ARGV[3])
if not queue then return why end
redis.call('HSET', key.job(ARGV[2]), 'replacing', '1')
return 'replacing'
