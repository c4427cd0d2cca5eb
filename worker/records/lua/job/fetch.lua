-- Fetch jobs: promote what is due, then lease the most urgent that may go to an owner, each with its delivery's number.
-- KEYS   none
-- ARGV   1 prefix  2 owner  3 lease in s  4 how many at most  5 number of this fetch, higher than the owner's last
--        6 rules of gates, shares and batches as JSON: see worker/limits/gates.py
--        7... triples of queue, mode and room. Mode is 'lease', 'batch' (one whole batch is handed out; room is how many
--        more the owner takes) or 'plain' (consumed without acknowledgement, as replies to remote control are; no record
--        is kept)
-- RETURNS {in how many s to look again as text or '', queues whose bells are not to wake the owner until then,
--        {queue, job id, delivery, message, calls, cost}...}; calls and cost are what a gate charged, '' for nothing.
--        Cancelled and expired jobs are handed out too: they are not started, but a chat keeps the user's message
local lease_s, most, number = tonumber(ARGV[3]), tonumber(ARGV[4]), tonumber(ARGV[5])
local fetched = {}
local RESERVED_S = 30
local QUEUES = {} -- {name, mode, room}
for i = 7, #ARGV, 3 do QUEUES[#QUEUES + 1] = {name = ARGV[i], mode = ARGV[i + 1], room = tonumber(ARGV[i + 2])} end

-- The answer to an owner that waits to be empty, or for the one job that it runs alone.
local function full()
  local names = {}
  for i, queue in ipairs(QUEUES) do names[i] = queue.name end
  return {'0.25', names}
end

local function note_due(set)
  local first = redis.call('ZRANGE', set, 0, 0, 'WITHSCORES')
  if first[2] then look_again_in(math.max(0, tonumber(first[2]) - now)) end
end

local function promote(queue)
  local delayed = key.delayed(queue)
  for _, id in ipairs(redis.call('ZRANGE', delayed, '-inf', exact(now), 'BYSCORE', 'LIMIT', 0, 64)) do
    local record = redis.call('HMGET', key.job(id), 'message', 'step', 'state', 'cancel')
    redis.call('ZREM', delayed, id)
    if record[3] == 'replaced' and not record[4] then
      bury(id, queue, REASON.NOT_REPLACED, 'the canvas that the task put in its place did not end in time', '',
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
  return {queue, id, tostring(delivery), message, '', ''}
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

-- Hand out a leased job, charged what its gate takes for it: for calls and cost. One that can never go is dead.
local function hand_out(one, calls, cost)
  if not one then return end
  if cost == -1 then
    local like = string.sub(redis.sha1hex(REASON.TOO_COSTLY .. ' ' .. one[1]), 1, 12)
    return bury(one[2], one[1], REASON.TOO_COSTLY, TOO_COSTLY, '', like)
  end
  if cost then
    local gate = gate_of(one[1])
    charge(gate, one[1], calls, cost)
    note_charge(one[2], gate, calls, cost)
    one[5], one[6] = tostring(calls), tostring(cost)
  end
  fetched[#fetched + 1] = one
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
  if not empty then return true end
  local may_go, cost = admit(queue, 1, message)
  if may_go then
    redis.call('ZREM', key.alone(queue), id)
    redis.call('HSET', key.owner(owner), 'alone', id)
    redis.call('EXPIRE', key.owner(owner), 3600)
    hand_out(hold(id, queue, message), 1, cost)
  end
  return true
end

-- Lease the most urgent jobs of a list that may go, at most so many; give how many of its messages were drawn.
local function draw(queue, step, room)
  local list, rule, drawn = waiting(queue.name, step), rules.queues[queue.name], 0
  while drawn < room and #fetched < most and not stopped[queue.name] do
    local cost
    if rule and queue.mode ~= 'plain' then
      local message = redis.call('LINDEX', list, -1)
      if not message or is_full(queue.name) then break end
      local may_go
      may_go, cost = admit(queue.name, RANK[step], message)
      if not may_go then break end
    end
    local message = redis.call('RPOP', list)
    if not message then break end
    drawn = drawn + 1
    if queue.mode == 'plain' then
      fetched[#fetched + 1] = {queue.name, '', '0', message, '', ''}
    else
      hand_out(lease(queue.name, step, message), 1, cost)
    end
  end
  return drawn
end

-- Lease one whole batch of a queue, if it is full or has waited long enough, and its gate lets it through as one call.
local function draw_batch(queue)
  local gate = gate_of(queue)
  local counts, jobs, cost, rank, wait_s = plan(queue, gate)
  if jobs == 0 or (rules.queues[queue].max_in_flight and is_full(queue)) then return end
  if wait_s > 0 then
    deaf[#deaf + 1] = queue
    return look_again_in(wait_s)
  end
  local gate_wait_s = gate and wait_at(gate, queue, rank, 1, cost)
  if gate and gate_wait_s and gate_wait_s > 0 then return held_up(queue, gate, rank, 1, cost, gate_wait_s) end
  local calls = 1 -- one for all
  for _, step in ipairs(ORDER) do
    for _, message in ipairs(counts[step] and redis.call('RPOP', waiting(queue, step), counts[step]) or {}) do
      local each = gate and (gate_wait_s and price(message) or not gate_wait_s and -1) or nil
      local one = lease(queue, step, message)
      hand_out(one, calls, each)
      if one and each then calls = 0 end
    end
  end
  owe(queue, counts)
end

local mine = redis.call('HMGET', key.owner(owner), 'lost', 'alone')
if mine[1] and number <= tonumber(mine[1]) then return {'', {}} end
if mine[2] then
  if redis.call('SISMEMBER', key.held(owner), mine[2]) == 1 then
    for _, queue in ipairs(QUEUES) do
      if redis.call('GET', key.reserved(queue.name)) == owner then redis.call('EXPIRE', key.reserved(queue.name), 5) end
    end
    return full()
  end
  redis.call('HDEL', key.owner(owner), 'alone')
end

local occupied = false
for _, queue in ipairs(QUEUES) do
  if queue.mode ~= 'plain' then
    promote(queue.name)
    occupied = occupied or alone(queue.name)
  end
end
if occupied and #fetched == 0 then return full() end

if not occupied then
  local sequences, drawn = {}, {}
  for i, queue in ipairs(QUEUES) do
    drawn[queue.name] = {}
    if queue.mode == 'batch' then draw_batch(queue.name) else sequences[i] = turns(queue.name) end
  end
  -- what is owed to the less urgent, then rank by rank over all queues
  for back = #ORDER + 5, 0, -1 do
    for i, queue in ipairs(QUEUES) do
      local turn = sequences[i] and sequences[i][#sequences[i] - back]
      if turn then
        drawn[queue.name][turn.step] = (drawn[queue.name][turn.step] or 0) + draw(queue, turn.step, turn.most)
      end
    end
  end
  for _, queue in ipairs(QUEUES) do
    if queue.mode ~= 'batch' then owe(queue.name, drawn[queue.name]) end
    if queue.mode == 'batch' and queue.room <= 1 or #fetched >= most then pass_the_turn(queue.name) end
  end
end

if #fetched > 0 then
  redis.call('ZADD', key.owners(), 'GT', exact(now + lease_s), owner)
else -- every list is empty or held up, so every bell that still hangs there is stale
  for _, queue in ipairs(QUEUES) do redis.call('DEL', key.bell(queue.name)) end
end
return {look_again and exact(look_again) or '', deaf, unpack(fetched)}
