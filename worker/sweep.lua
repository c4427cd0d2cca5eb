-- Rescue what the owners of ended leases held: each job goes back to the head of its queue.
-- KEYS none  ARGV 1 prefix  2 how many jobs at most
-- RETURNS how many jobs were rescued
local most, rescued = tonumber(ARGV[2]), 0
for _, owner in ipairs(redis.call('ZRANGE', key.owners(), '-inf', exact(clock()), 'BYSCORE')) do
  local held = key.held(owner)
  while rescued < most do
    local id = redis.call('SPOP', held)
    if not id then break end
    local record = redis.call('HMGET', key.job(id), 'owner', 'state', 'queue')
    if record[1] == owner and HELD[record[2]] then
      if record[2] == 'started' then redis.call('HINCRBY', key.job(id), 'orphaned', 1) end
      to_head(id, record[3])
      count(record[3], 'rescued')
      rescued = rescued + 1
    end
  end
  if redis.call('EXISTS', held) == 0 then
    redis.call('ZREM', key.owners(), owner)
    redis.call('DEL', key.owner(owner))
  end
end
return rescued
