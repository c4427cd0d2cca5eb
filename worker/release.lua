-- Give a job back to the head of its queue, where it is fetched next. It spends no attempt.
-- KEYS none  ARGV 1 prefix  2 job id  3 delivery  4 '1' to leave alone what has started
-- RETURNS 'released' | 'running' | 'settled' | 'late'
local id = ARGV[2]
local queue, why = holding(id, ARGV[3])
if not queue then return why end
if ARGV[4] == '1' and redis.call('HGET', key.job(id), 'state') == 'started' then return 'running' end
to_head(id, queue)
return 'released'
