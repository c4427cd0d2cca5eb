-- Give up a fetch whose reply never came: what it leased goes back, and if it has yet to run it will fetch nothing.
-- KEYS none  ARGV 1 prefix  2 owner  3 number of the fetch
-- RETURNS how many jobs went back
local owner, number, back = ARGV[2], ARGV[3], 0
local lost = tonumber(redis.call('HGET', key.owner(owner), 'lost') or 0)
redis.call('HSET', key.owner(owner), 'lost', math.max(lost, tonumber(number)))
redis.call('EXPIRE', key.owner(owner), 3600)
for _, id in ipairs(redis.call('SMEMBERS', key.held(owner))) do
  local record = redis.call('HMGET', key.job(id), 'owner', 'fetch', 'state', 'queue')
  if record[1] == owner and record[2] == number and record[3] == 'leased' then
    to_head(id, record[4])
    back = back + 1
  end
end
return back
