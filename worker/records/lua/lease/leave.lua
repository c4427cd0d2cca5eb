-- End an owner's lease: what it still holds goes back to the head of its queue and spends nothing.
-- KEYS none  ARGV 1 prefix  2 owner  3 how many jobs at most
-- RETURNS {jobs given back, jobs left for another call}
local owner, most, back = ARGV[2], tonumber(ARGV[3]), 0
while back < most do
  local id = redis.call('SPOP', key.held(owner))
  if not id then break end
  local record = redis.call('HMGET', key.job(id), 'owner', 'state', 'queue')
  if record[1] == owner and HELD[record[2]] then
    to_head(id, record[3])
    back = back + 1
  end
end
local left = redis.call('SCARD', key.held(owner))
if left == 0 then
  redis.call('ZREM', key.owners(), owner)
  redis.call('DEL', key.owner(owner), key.mail(owner))
end
return {back, left}
