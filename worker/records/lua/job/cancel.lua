-- Cancel a job. What waits is dropped when it is fetched, for which a delayed one becomes due; what a worker holds is
-- dropped when it starts; what runs is broken off by its worker, which hears of it with its next renewal.
-- KEYS none  ARGV 1 prefix  2 job id
-- RETURNS the job's state before, '' when there is no such job
local record = key.job(ARGV[2])
local known = redis.call('HMGET', record, 'state', 'queue', 'owner')
if not known[1] then return '' end
if ENDED[known[1]] then return known[1] end
redis.call('HSET', record, 'cancel', '1')
if HELD[known[1]] then
  tell(known[3], 'cancel', ARGV[2])
else
  redis.call('ZADD', key.delayed(known[2]), 'XX', 0, ARGV[2])
  redis.call('ZADD', key.alone(known[2]), 'XX', 0, ARGV[2])
  ring(known[2])
end
return known[1]
