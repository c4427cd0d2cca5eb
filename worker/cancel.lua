-- Cancel a job that has not been fetched: it is dropped when it is; a delayed one becomes due for that.
-- KEYS none  ARGV 1 prefix  2 job id
-- RETURNS the job's state before, '' when there is no such job
local record = key.job(ARGV[2])
local known = redis.call('HMGET', record, 'state', 'queue')
if not known[1] then return '' end
if known[1] == 'queued' or known[1] == 'delayed' then
  redis.call('HSET', record, 'cancel', '1')
  if known[1] == 'delayed' then redis.call('ZADD', key.delayed(known[2]), 'XX', 0, ARGV[2]) end
  ring(known[2])
end
return known[1]
