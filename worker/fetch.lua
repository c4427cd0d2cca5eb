-- Fetch jobs: promote what is due, then lease the most urgent ones to an owner, each with its delivery's number.
-- KEYS   none
-- ARGV   1 prefix  2 owner  3 lease in s  4 how many at most  5 number of this fetch, higher than the owner's last
--        6... pairs of queue and 'lease' | 'plain' (plain: consumed without acknowledgement, as replies to remote
--        control are; no record is kept)
-- RETURNS {nap in s as text, '1' when the owner is not to be woken by bells meanwhile or '',
--        {queue, job id, delivery, message}...}; the nap says when the next delayed job is due, '' when none is.
--        Cancelled and expired jobs are handed out too: they are not started, but a chat keeps the user's message
local owner, lease_s, most, number = ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4]), tonumber(ARGV[5])
local now = clock()
local next_due
local fetched = {}
local RESERVED_S = 30
local FULL = {'0.25', '1'} -- this owner waits to be empty, or for the one job that it runs alone

local function note_due(set)
  local first = redis.call('ZRANGE', set, 0, 0, 'WITHSCORES')
  if first[2] and (not next_due or tonumber(first[2]) < next_due) then next_due = tonumber(first[2]) end
end

local function promote(queue)
  local delayed = key.delayed(queue)
  for _, id in ipairs(redis.call('ZRANGE', delayed, '-inf', exact(now), 'BYSCORE', 'LIMIT', 0, 64)) do
    local record = redis.call('HMGET', key.job(id), 'message', 'step', 'state', 'cancel')
    redis.call('ZREM', delayed, id)
    if record[3] == 'replaced' and not record[4] then
      bury(id, queue, 'replacement never came', 'the canvas that the task put in its place did not end in time', '',
        'replacement')
    elseif record[1] then
      redis.call('HDEL', key.job(id), 'message')
      redis.call('HSET', key.job(id), 'state', 'queued')
      remember(id, queue, record[1])
      redis.call('LPUSH', waiting(queue, record[2]), record[1])
    end
  end
  note_due(delayed)
end

-- Record the lease of a job whose message is in hand.
local function hold(id, queue, message)
  local record = key.job(id)
  local delivery = redis.call('HINCRBY', record, 'delivery', 1)
  redis.call('HSET', record, 'state', 'leased', 'owner', owner, 'fetch', number, 'message', message,
    'leased_at', exact(now))
  redis.call('ZADD', key.leased(queue), exact(now), id)
  redis.call('SADD', key.held(owner), id)
  return {queue, id, tostring(delivery), message}
end

local function lease(queue, step, message)
  local id, task = identify(message)
  id = id or redis.call('RPOP', key.nameless(queue .. ':' .. redis.sha1hex(message)))
    or 'unreadable-' .. redis.call('INCR', key.serial())
  local record = key.job(id)
  local known = redis.call('HMGET', record, 'state', 'queue', 'step')
  if not known[1] then -- pushed by a producer that does not know us: its record starts here
    redis.call('HSET', record, 'queue', queue, 'step', step, 'task', task, 'accepted_at', exact(now))
    count(queue, 'submitted')
  elseif known[1] ~= 'queued' then -- a second copy of a job that runs, waits elsewhere or has ended
    count(queue, 'duplicates')
    return nil
  elseif known[2] ~= queue or known[3] ~= step then -- pushed again or moved by hand: it is where its message was
    move(id, known[2], queue)
    redis.call('HSET', record, 'step', step)
  end
  return hold(id, queue, message)
end

-- Jobs that are to run alone: an owner that holds nothing takes one. One that holds something reserves the queue's next
-- and fetches nothing until it is empty; only one owner of a queue does, the others go on. Gives true when there is
-- nothing else to do in this fetch.
local function alone(queue)
  local id = redis.call('ZRANGE', key.alone(queue), '-inf', exact(now), 'BYSCORE', 'LIMIT', 0, 1)[1]
  local message = id and redis.call('HGET', key.job(id), 'message')
  if not message then
    if id then redis.call('ZREM', key.alone(queue), id) end -- its record was deleted or changed by hand
    note_due(key.alone(queue))
    return false
  end
  local empty = redis.call('SCARD', key.held(owner)) == 0
  if not empty then
    local by = redis.call('GET', key.reserved(queue))
    if by then return by == owner end
    -- who could not empty itself in time lets others try
    local tried = redis.call('HGET', key.owner(owner), 'reserved_at')
    if tried and tonumber(tried) > now - 4 * RESERVED_S then return false end
    redis.call('HSET', key.owner(owner), 'reserved_at', exact(now))
    redis.call('EXPIRE', key.owner(owner), 3600)
  end
  redis.call('SET', key.reserved(queue), owner, 'EX', RESERVED_S)
  if empty then
    redis.call('ZREM', key.alone(queue), id)
    redis.call('HSET', key.owner(owner), 'alone', id)
    redis.call('EXPIRE', key.owner(owner), 3600)
    fetched[1] = hold(id, queue, message)
  end
  return true
end

local mine = redis.call('HMGET', key.owner(owner), 'lost', 'alone')
if mine[1] and number <= tonumber(mine[1]) then return {'', ''} end
if mine[2] then
  if redis.call('SISMEMBER', key.held(owner), mine[2]) == 1 then
    for i = 6, #ARGV, 2 do
      if redis.call('GET', key.reserved(ARGV[i])) == owner then redis.call('EXPIRE', key.reserved(ARGV[i]), 5) end
    end
    return FULL
  end
  redis.call('HDEL', key.owner(owner), 'alone')
end

local occupied = false
for i = 6, #ARGV, 2 do
  if ARGV[i + 1] == 'lease' then
    promote(ARGV[i])
    occupied = occupied or alone(ARGV[i])
  end
end
if occupied and #fetched == 0 then return FULL end
for _, step in ipairs(ORDER) do
  for i = 6, #ARGV, 2 do
    local queue, plain = ARGV[i], ARGV[i + 1] == 'plain'
    while not occupied and #fetched < most do
      local message = redis.call('RPOP', waiting(queue, step))
      if not message then break end
      if plain then
        fetched[#fetched + 1] = {queue, '', '0', message}
      else
        fetched[#fetched + 1] = lease(queue, step, message)
      end
    end
  end
end

if #fetched > 0 then
  redis.call('ZADD', key.owners(), 'GT', exact(now + lease_s), owner)
else -- every list is empty, so every bell that still hangs there is stale
  for i = 6, #ARGV, 2 do redis.call('DEL', key.bell(ARGV[i])) end
end
return {next_due and exact(math.max(0, next_due - now)) or '', '', unpack(fetched)}
