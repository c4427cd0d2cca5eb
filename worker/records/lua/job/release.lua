-- Give a job back to the head of its queue, where it is fetched next. It spends no attempt.
-- KEYS none  ARGV 1 prefix  2 job id  3 delivery  4 '1' to leave alone what has started
-- RETURNS 'released' | 'running' | 'settled' | 'late'
local id = ARGV[2]
local queue, state = holding(id, ARGV[3])
if queue and ARGV[4] == '1' and state == 'started' then return 'running' end
queue, state = settling(id, ARGV[3])
if not queue then return state end
to_head(id, queue)
return 'released'
