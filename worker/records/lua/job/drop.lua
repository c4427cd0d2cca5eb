-- Settle a delivery whose job was cancelled or is past its deadline.
-- KEYS none  ARGV 1 prefix  2 job id  3 delivery  4 'cancelled' | 'expired'  5 lifetime of the record in s
-- RETURNS 'dropped' | 'settled' | 'late'
local id = ARGV[2]
local queue, state = settling(id, ARGV[3])
if not queue then return state end
if state == 'leased' then redis.call('HDEL', key.job(id), 'leased_at') end -- it was handed out to be dropped, not run
finish(id, queue, ARGV[4], ARGV[5])
count(queue, ARGV[4])
return 'dropped'
