-- Begin to run a delivery, in the thread or child that runs it. The last look at whether it is to run at all.
-- KEYS none  ARGV 1 prefix  2 job id  3 delivery
-- RETURNS 'started' | 'cancelled' | 'expired' | 'settled' | 'late'
local id, now = ARGV[2], clock()
local queue, why = holding(id, ARGV[3])
if not queue then return why end -- nothing ran: it is no late finish
local known = redis.call('HMGET', key.job(id), 'cancel', 'deadline')
if known[1] then return 'cancelled' end
if known[2] and tonumber(known[2]) < now then return 'expired' end
redis.call('HSET', key.job(id), 'state', 'started', 'started_at', exact(now))
redis.call('ZADD', key.leased(queue), 'XX', exact(now), id)
return 'started'
