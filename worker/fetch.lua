-- Fetch jobs: promote what is due, then lease the most urgent ones to an owner, each with its delivery's number.
-- KEYS   none
-- ARGV   1 prefix  2 owner  3 lease in s  4 how many at most  5... pairs of queue and 'lease' | 'plain'
--        (plain: consumed without acknowledgement, as replies to remote control are; no record is kept)
-- RETURNS {nap in s as text, {queue, job id, delivery, verdict, message}...}; the verdict is '', 'cancelled' or
--        'expired'; the nap says when the next delayed job is due, '' when none is
local owner, lease_s, most = ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4])
local now = clock()
local next_due
local fetched = {}

local function identify(message)
  local readable, envelope = pcall(cjson.decode, message)
  if readable and type(envelope) == 'table' then
    local headers, properties = envelope.headers, envelope.properties
    if type(headers) == 'table' and type(headers.id) == 'string' and headers.id ~= '' then
      return headers.id, type(headers.task) == 'string' and headers.task or ''
    end
    if type(properties) == 'table' and type(properties.delivery_tag) == 'string' then
      return properties.delivery_tag, ''
    end
  end
  return 'unreadable-' .. redis.call('INCR', key.serial()), ''
end

local function promote(queue)
  local delayed = key.delayed(queue)
  for _, id in ipairs(redis.call('ZRANGE', delayed, '-inf', exact(now), 'BYSCORE', 'LIMIT', 0, 64)) do
    local record = redis.call('HMGET', key.job(id), 'message', 'step')
    redis.call('ZREM', delayed, id)
    if record[1] then
      redis.call('HDEL', key.job(id), 'message')
      redis.call('HSET', key.job(id), 'state', 'queued')
      redis.call('LPUSH', waiting(queue, record[2]), record[1])
    end
  end
  local first = redis.call('ZRANGE', delayed, 0, 0, 'WITHSCORES')
  if first[2] and (not next_due or tonumber(first[2]) < next_due) then next_due = tonumber(first[2]) end
end

local function lease(queue, step, message)
  local id, task = identify(message)
  local record = key.job(id)
  local known = redis.call('HMGET', record, 'state', 'cancel', 'deadline')
  if not known[1] then -- pushed by a producer that does not know us: its record starts here
    redis.call('HSET', record, 'queue', queue, 'step', step, 'task', task, 'accepted_at', exact(now))
    count(queue, 'submitted')
  elseif known[1] ~= 'queued' then -- a second copy of a job that runs, waits elsewhere or has ended
    count(queue, 'duplicates')
    return nil
  end
  local number = redis.call('HINCRBY', record, 'delivery', 1)
  redis.call('HSET', record, 'state', 'leased', 'owner', owner, 'message', message, 'leased_at', exact(now))
  redis.call('ZADD', key.leased(queue), exact(now), id)
  redis.call('SADD', key.held(owner), id)
  local verdict = ''
  if known[2] then verdict = 'cancelled'
  elseif known[3] and tonumber(known[3]) < now then verdict = 'expired' end
  return {queue, id, tostring(number), verdict, message}
end

for i = 5, #ARGV, 2 do
  if ARGV[i + 1] == 'lease' then promote(ARGV[i]) end
end
for _, step in ipairs(ORDER) do
  for i = 5, #ARGV, 2 do
    local queue, plain = ARGV[i], ARGV[i + 1] == 'plain'
    while #fetched < most do
      local message = redis.call('RPOP', waiting(queue, step))
      if not message then break end
      if plain then
        fetched[#fetched + 1] = {queue, '', '0', '', message}
      else
        fetched[#fetched + 1] = lease(queue, step, message)
      end
    end
  end
end

if #fetched > 0 then
  redis.call('ZADD', key.owners(), 'GT', exact(now + lease_s), owner)
else -- every list is empty, so every bell that still hangs there is stale
  for i = 5, #ARGV, 2 do redis.call('DEL', key.bell(ARGV[i])) end
end
return {next_due and exact(math.max(0, next_due - now)) or '', unpack(fetched)}
