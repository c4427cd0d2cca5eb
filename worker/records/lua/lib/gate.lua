-- Gates: what a provider takes from all workers together. Two token buckets, one for calls and one for what they cost
-- (tokens, or rows), and a moment until which all is shut. A gate's rules come from queues.yaml with each script that
-- charges: {name, calls = {capacity, rate}, cost = {capacity, rate}, recovers}; what is in the hash is all there is.
-- Each bucket has a twin that is charged when a call leaves its worker. The first says which job may go, the second when
-- its call may: jobs that were held up on their way would else leave all at once.

local BUCKETS = {'calls', 'cost'}
local TWIN = {calls = 'calls_sent', cost = 'cost_sent'}
local WANTED_S = 2 -- for how long a refused job keeps room free from less urgent ones of other queues
local GATE_LIFETIME_S = 2 * 86400

-- Give a gate as it is now: buckets filled up since, the learned share of its rate grown back, what others want of it.
local function gate_now(rules, now)
  local gate = {name = rules.name, rules = rules, now = now, wants = {}, known = {}}
  local flat = redis.call('HGETALL', key.gate(rules.name))
  for i = 1, #flat, 2 do
    gate.known[flat[i]] = flat[i + 1]
    local queue = string.match(flat[i], '^want:(.*)$')
    if queue then
      local rank, calls, cost, since, till = string.match(flat[i + 1], '(%S+) (%S+) (%S+) (%S+) (%S+)')
      if tonumber(till) > now then
        gate.wants[queue] = {rank = tonumber(rank), calls = tonumber(calls), cost = tonumber(cost),
          since = tonumber(since)}
      end
    end
  end
  gate.shut_until = tonumber(gate.known.shut_until or 0)
  local learned_at = tonumber(gate.known.learned_at or now)
  gate.learned = math.min(1, tonumber(gate.known.learned or 1) + rules.recovers * math.max(0, now - learned_at))
  local since = math.max(0, now - tonumber(gate.known.at or now))
  for _, name in ipairs(BUCKETS) do
    local bucket = rules[name]
    if bucket then
      for _, level in ipairs({name, TWIN[name]}) do
        local before = tonumber(gate.known[level] or bucket.capacity)
        gate[level] = math.min(bucket.capacity, before + bucket.rate * gate.learned * since)
      end
    end
  end
  return gate
end

local function keep(gate)
  local fields = {'at', exact(gate.now)}
  for _, name in ipairs(BUCKETS) do
    if gate[name] then
      for _, level in ipairs({name, TWIN[name]}) do
        fields[#fields + 1] = level
        fields[#fields + 1] = exact(gate[level])
      end
      fields[#fields + 1] = name .. '_most'
      fields[#fields + 1] = gate.rules[name].capacity
    end
  end
  redis.call('HSET', key.gate(gate.name), unpack(fields))
  redis.call('EXPIRE', key.gate(gate.name), GATE_LIFETIME_S)
end

-- Give in how many seconds a call may go: 0 when it may now, nil when it never can. What more urgent jobs of other
-- queues were refused a moment ago is left for them; among equals, for who was refused first.
local function wait_at(gate, queue, rank, calls, cost)
  local need = {calls = calls, cost = cost}
  local own = gate.wants[queue]
  for other, want in pairs(gate.wants) do
    if other ~= queue and (want.rank < rank or (want.rank == rank and want.since < (own and own.since or gate.now))) then
      need.calls, need.cost = need.calls + want.calls, need.cost + want.cost
    end
  end
  local wait_s = math.max(0, gate.shut_until - gate.now)
  for _, name in ipairs(BUCKETS) do
    local bucket, asked = gate.rules[name], name == 'calls' and calls or cost
    if bucket then
      if asked > bucket.capacity then return nil end
      local short = need[name] - gate[name]
      -- a millionth is lost in writing levels as text: without it a job would wait for ever for the last of it
      if short > 0.000002 then wait_s = math.max(wait_s, short / (bucket.rate * gate.learned)) end
    end
  end
  return wait_s
end

local function charge(gate, queue, calls, cost)
  if gate.calls then gate.calls = gate.calls - calls end
  if gate.cost then gate.cost = gate.cost - cost end
  keep(gate)
  if gate.known['want:' .. queue] then
    gate.wants[queue], gate.known['want:' .. queue] = nil, nil
    redis.call('HDEL', key.gate(gate.name), 'want:' .. queue)
  end
end

-- Note that a call leaves its worker; give in how many seconds it may.
local function depart(gate, calls, cost)
  local wait_s, need = 0, {calls = calls, cost = cost}
  for _, name in ipairs(BUCKETS) do
    local bucket, twin = gate.rules[name], TWIN[name]
    if bucket then
      gate[twin] = gate[twin] - need[name]
      wait_s = math.max(wait_s, -gate[twin] / (bucket.rate * gate.learned))
    end
  end
  keep(gate)
  return wait_s
end

-- Note that a job of a queue was refused: less urgent ones of other queues leave it room while it asks again.
local function want(gate, queue, rank, calls, cost)
  local since = gate.wants[queue] and gate.wants[queue].since or gate.now
  gate.wants[queue] = {rank = rank, calls = calls, cost = cost, since = since}
  redis.call('HSET', key.gate(gate.name), 'want:' .. queue,
    table.concat({rank, calls, cost, exact(since), exact(gate.now + WANTED_S)}, ' '))
  redis.call('EXPIRE', key.gate(gate.name), GATE_LIFETIME_S)
end

-- Put back what a call did not use; less than nothing when it used more. No bucket holds more than it can.
local function put_back(name, calls, cost, has_left)
  local record = key.gate(name)
  for bucket, amount in pairs({calls = calls, cost = cost}) do
    local most = amount ~= 0 and redis.call('HGET', record, bucket .. '_most')
    for _, level in ipairs(most and {bucket, has_left and TWIN[bucket] or nil} or {}) do
      local before = redis.call('HGET', record, level)
      if before then redis.call('HSET', record, level, exact(math.min(tonumber(most), tonumber(before) + amount))) end
    end
  end
end

-- Put back what a delivery was charged that made no call.
local function refund(id)
  local charged = redis.call('HMGET', key.job(id), 'gate', 'calls', 'charged')
  if charged[1] and charged[3] then
    put_back(charged[1], tonumber(charged[2] or 0), tonumber(charged[3]))
    redis.call('HDEL', key.job(id), 'gate', 'calls', 'charged')
  end
end
