-- A part of fetch.lua: which waiting jobs may go now, what they are charged, and if none may, when to look again.

local owner, now = ARGV[2], clock()
local rules = cjson.decode(ARGV[6]) -- {queues = {name: {gate, max_in_flight, shares, batch}}, gates = {name: ...}}
local gates = {}
local look_again -- in how many seconds
local deaf = {} -- queues whose bells are not to wake this owner until then
local stopped = {} -- queues of which nothing more may go in this fetch
local NAP_S = 1

local function look_again_in(seconds)
  look_again = math.min(look_again or seconds, seconds)
end

local function stop(queue)
  stopped[queue] = true
  deaf[#deaf + 1] = queue
end

local function gate_of(queue)
  local name = rules.queues[queue] and rules.queues[queue].gate
  if not name then return nil end
  gates[name] = gates[name] or gate_now(rules.gates[name], now)
  return gates[name]
end

-- Give what a waiting job costs, nil when it will not run: it was cancelled, has expired or is a second copy. And when
-- it was accepted, and whether it was tried before.
local function price(message)
  local id = identify(message)
  local known = id and redis.call('HMGET', key.job(id), 'state', 'cancel', 'deadline', 'cost', 'accepted_at', 'attempts')
    or {}
  local gone = known[2] or (known[3] and tonumber(known[3]) < now) or (known[1] and known[1] ~= 'queued')
  -- a producer that does not say: 4 bytes a token, of a message that kombu's base64 makes a third longer
  return not gone and (tonumber(known[4]) or math.ceil(#message * 3 / 16)) or nil, tonumber(known[5] or 0),
    tonumber(known[6] or 0) > 0
end

-- Note that a gate holds a queue up. One owner of the queue looks again when the gate may open. The others sleep on,
-- or many would come for each job; one of them is rung when the first has its hands full.
local function held_up(queue, gate, rank, calls, cost, wait_s)
  stop(queue)
  want(gate, queue, rank, calls, cost)
  local till, holder = string.match(gate.known['turn:' .. queue] or '', '(%S+) (.*)')
  if holder and holder ~= owner and tonumber(till) > now then
    redis.call('SADD', key.refused(queue), owner)
    redis.call('EXPIRE', key.refused(queue), 60)
    look_again_in(NAP_S)
  else
    redis.call('HSET', key.gate(gate.name), 'turn:' .. queue, exact(now + math.min(wait_s, NAP_S) + NAP_S) .. ' ' .. owner)
    look_again_in(wait_s)
  end
end

-- Let another owner watch the gate: this one has its hands full.
local function pass_the_turn(queue)
  local gate = gate_of(queue)
  if not gate then return end
  redis.call('HDEL', key.gate(gate.name), 'turn:' .. queue)
  local next_owner = redis.call('SPOP', key.refused(queue))
  if next_owner then ring(next_owner) end
end

-- Tell whether a queue has as many jobs in flight as it may. Whoever settles one rings an owner that was refused.
local function is_full(queue)
  local most = rules.queues[queue].max_in_flight
  if not most or redis.call('ZCARD', key.leased(queue)) < most then return false end
  stop(queue)
  redis.call('SADD', key.refused(queue), owner)
  redis.call('EXPIRE', key.refused(queue), 60)
  look_again_in(NAP_S)
  return true
end

-- Tell whether a job may go now, and what it is charged: nil when nothing, -1 when it costs more than ever may go.
local function admit(queue, rank, message)
  local gate = gate_of(queue)
  local cost = gate and price(message)
  if not cost then return true end
  local wait_s = wait_at(gate, queue, rank, 1, cost)
  if not wait_s then return true, -1 end
  if wait_s > 0 then held_up(queue, gate, rank, 1, cost, wait_s) end
  return wait_s == 0, cost
end

-- Note in its record what a job was charged: it is put back if the job starts nothing.
local function note_charge(id, gate, calls, cost)
  redis.call('HSET', key.job(id), 'gate', gate.name, 'calls', calls, 'charged', cost)
end

local TOO_COSTLY = 'costs more than its gate ever lets through at once: raise the burst in queues.yaml and replay it'

-- The steps in which a queue's jobs are drawn: what is owed to less urgent ones first, then the most urgent.
local function turns(queue)
  local rule, sequence = rules.queues[queue], {}
  if rule and rule.shares then
    for step in pairs(rule.shares) do
      local owed = math.floor(tonumber(redis.call('HGET', key.credit(queue), step) or 0))
      if owed > 0 then sequence[#sequence + 1] = {step = step, most = owed} end
    end
  end
  for _, step in ipairs(ORDER) do sequence[#sequence + 1] = {step = step, most = 1e9} end
  return sequence
end

local RANK = {}
for rank, step in ipairs(ORDER) do RANK[step] = rank end

-- Reckon what is owed to the less urgent of a queue from what was drawn: {step: how many}.
local function owe(queue, drawn)
  local rule, total = rules.queues[queue], 0
  for _, n in pairs(drawn) do total = total + n end
  if total == 0 or not (rule and rule.shares) then return end
  local credit = key.credit(queue)
  for step, share in pairs(rule.shares) do
    if redis.call('LLEN', waiting(queue, step)) == 0 then
      redis.call('HDEL', credit, step)
    else
      local before = tonumber(redis.call('HGET', credit, step) or 0)
      redis.call('HSET', credit, step, exact(math.max(0, math.min(64, before + share * total - (drawn[step] or 0)))))
    end
  end
  redis.call('EXPIRE', credit, 86400)
end

-- Walk a list from its tail, from one place to another, and read in growing handfuls: messages may be large.
local function from_tail(list, from, till)
  local handful, at, size = {}, 0, 2
  return function()
    if at == 0 and from < till then
      local to = math.min(from + size, till)
      handful = redis.call('LRANGE', list, -to, -(from + 1))
      at, from, size = #handful, to, size * 2
    end
    at = at - 1
    return handful[at + 1]
  end
end

-- A batch is in memory several times over, as messages, as values and as what is sent: more than this is two batches.
local BATCH_BYTES = 32 * 1024 * 1024

-- Plan a batch: how many of each step's list, together within the batch's limits. Gives the plan, how many jobs, what
-- they cost, the rank of the most urgent, and whether to wait for company: in seconds.
local function plan(queue, gate)
  local limits = rules.queues[queue].batch
  local most = gate and gate.rules.cost and math.min(limits.max_cost, gate.rules.cost.capacity) or limits.max_cost
  local counts, jobs, cost, bytes, rank, oldest, cut = {}, 0, 0, 0, nil, now, false
  for _, turn in ipairs(turns(queue)) do
    local from = counts[turn.step] or 0
    local till = from + math.min(turn.most, limits.max_jobs - jobs)
    for message in from_tail(waiting(queue, turn.step), from, till) do
      if cut then break end
      local each, accepted_at, tried = price(message)
      local apart = tried and limits.retry_apart -- it may be what ended its child
      bytes = bytes + #message
      if jobs > 0 and (apart or cost + (each or 0) > most or bytes > BATCH_BYTES) then
        cut = true
        break
      end
      cut = apart
      counts[turn.step], jobs, cost = (counts[turn.step] or 0) + 1, jobs + 1, cost + (each or 0)
      rank = math.min(rank or 9, RANK[turn.step])
      oldest = math.min(oldest, accepted_at)
    end
  end
  local full = cut or jobs >= limits.max_jobs
  return counts, jobs, cost, rank, full and 0 or math.max(0, limits.max_wait_s - (now - oldest))
end
