-- What every script shares: the bell, the fence, the ways a job is put. ARGV[1] is the key prefix in all of them.
-- Keys are built here from names, not declared: kombu needs one Redis (or its Sentinels), not a cluster.

local function count(queue, what, by)
  redis.call('HINCRBY', key.stats(queue), what, by or 1)
end

local function ring(queue)
  redis.call('LPUSH', key.bell(queue), '1')
  redis.call('LTRIM', key.bell(queue), 0, 63)
  redis.call('EXPIRE', key.bell(queue), 60)
end

local function tell(owner, what, id)
  redis.call('RPUSH', key.mail(owner), what .. ' ' .. id)
  redis.call('EXPIRE', key.mail(owner), 3600)
end

local ENDED = { succeeded = true, dead = true, cancelled = true, expired = true }
local HELD = { leased = true, started = true }

-- Give what stands in front of a message's body, as JSON. Only a key of the outermost object can look like this: within
-- a text each quote has a backslash before it, and within an inner object what is cut off here is no JSON.
local function without_body(message)
  local at = string.find(message, ',"body":"', 1, true)
  return at and string.sub(message, 1, at - 1) .. '}'
end

-- Give the id and the task of a message as it lies in a list; no id when it cannot be read.
local function identify(message)
  local readable, envelope = pcall(cjson.decode, without_body(message) or message)
  if not readable then readable, envelope = pcall(cjson.decode, message) end
  if not readable or type(envelope) ~= 'table' then return nil, '' end
  local headers, properties = envelope.headers, envelope.properties
  if type(headers) == 'table' and type(headers.id) == 'string' and headers.id ~= '' then
    return headers.id, type(headers.task) == 'string' and headers.task or ''
  end
  if type(properties) == 'table' and type(properties.delivery_tag) == 'string' then
    return properties.delivery_tag, ''
  end
  return nil, ''
end

-- A message that names no job goes by the id that its first fetch gave it: by its bytes it is known again.
local function remember(id, queue, message)
  if string.sub(id, 1, 11) == 'unreadable-' and identify(message) ~= id then
    redis.call('LPUSH', key.nameless(queue .. ':' .. redis.sha1hex(message)), id)
  end
end

-- The fence. Gives the queue and the state of a delivery that still holds its job. Otherwise nil and why: 'settled'
-- when this very delivery settled before (a repeat after a lost reply), 'late' when the job was taken from it.
local function holding(id, number)
  local record = redis.call('HMGET', key.job(id), 'delivery', 'state', 'queue', 'settled')
  if record[1] == number and HELD[record[2]] then return record[3], record[2] end
  if record[4] == number then return nil, 'settled' end
  return nil, 'late'
end

local function count_late(id)
  local queue = redis.call('HGET', key.job(id), 'queue')
  if queue then count(queue, 'late') end
end

-- The same for a step that ends a delivery: a late one is counted.
local function settling(id, number)
  local queue, state = holding(id, number)
  if queue then redis.call('HSET', key.job(id), 'settled', number) end
  if state == 'late' then count_late(id) end
  return queue, state
end

-- Take a job from its owner, and from the record what was true of this delivery only.
local function let_go(id, queue)
  local record = key.job(id)
  local known = redis.call('HMGET', record, 'owner', 'alone', 'state', 'gate')
  local owner = known[1]
  if owner then
    redis.call('SREM', key.held(owner), id)
    if known[2] then ring(owner) end -- it waits for nothing but this
  end
  if known[4] and known[3] == 'leased' then refund(id) end -- it has started nothing
  redis.call('ZREM', key.leased(queue), id)
  redis.call('HDEL', record, 'owner', 'fetch', 'replacing', 'follows', 'follows_step', 'follows_due',
    'follows_queue', 'gate', 'calls', 'charged')
  local refused = redis.call('SPOP', key.refused(queue))
  if refused then ring(refused) end
end

-- Note that a job is another queue's now.
local function move(id, from, to)
  if from == to then return end
  redis.call('HSET', key.job(id), 'queue', to)
  count(from, 'moved_out')
  count(to, 'moved_in')
end

-- Let a job wait until it is due. One that must run alone waits apart from the others.
local function wait(id, queue, due)
  local record = key.job(id)
  local apart = redis.call('HGET', record, 'alone')
  if redis.call('HEXISTS', record, 'cancel') == 1 then due = 0 end -- it is only fetched to be dropped
  redis.call('HSET', record, 'state', 'delayed')
  redis.call('HDEL', record, 'started_at')
  redis.call('ZADD', apart and key.alone(queue) or key.delayed(queue), exact(due), id)
  ring(queue)
end

-- Put a held job back where it is fetched next. Its message leaves the record for the list.
local function to_head(id, queue)
  local record = key.job(id)
  let_go(id, queue)
  if redis.call('HEXISTS', record, 'alone') == 1 then return wait(id, queue, 0) end
  local held = redis.call('HMGET', record, 'message', 'step')
  redis.call('HDEL', record, 'message', 'started_at')
  redis.call('HSET', record, 'state', 'queued')
  remember(id, queue, held[1])
  redis.call('RPUSH', waiting(queue, held[2]), held[1])
  ring(queue)
end

-- Note an end for the queue's pace: how long a backlog will last is reckoned from it.
local function pace(queue, now)
  local bucket = key.pace(queue .. ':' .. math.floor(now / 10))
  if redis.call('INCR', bucket) == 1 then redis.call('EXPIRE', bucket, 120) end
end

local function finish(id, queue, state, lifetime_s)
  local record, now = key.job(id), clock()
  let_go(id, queue)
  redis.call('HDEL', record, 'message', 'alone', 'cancel')
  redis.call('HSET', record, 'state', state, 'ended_at', exact(now))
  redis.call('EXPIRE', record, lifetime_s)
  pace(queue, now)
end

-- Make a job a dead letter. The record keeps the message as it came and has no lifetime.
local function bury(id, queue, reason, error, traceback, fingerprint)
  local record, now = key.job(id), clock()
  local owner = redis.call('HGET', record, 'owner')
  local node = owner and redis.call('HGET', key.owner(owner), 'node') or ''
  let_go(id, queue)
  redis.call('HDEL', record, 'alone', 'cancel')
  redis.call('HSET', record, 'state', 'dead', 'ended_at', exact(now), 'reason', reason, 'error', error,
    'traceback', traceback, 'fingerprint', fingerprint, 'worker', node or '')
  redis.call('HINCRBY', record, 'deaths', 1)
  redis.call('ZADD', key.dead(), exact(now), id)
  count(queue, 'failed')
  count(queue, 'dead')
  pace(queue, now)
end

-- Give the record of a dead letter, which is still the one that was read. Otherwise nil and why: 'changed' when it has
-- died anew or was edited since ('' for either means that it does not matter), or what the job is instead: its state,
-- 'purged', '' when it is not known.
local function letter(id, died, digest)
  local known = redis.call('HMGET', key.job(id), 'state', 'purged', 'queue', 'step', 'message')
  if known[2] then return nil, 'purged' end
  if known[1] ~= 'dead' then return nil, known[1] or '' end
  local message = known[5] or ''
  if died ~= '' and tonumber(redis.call('ZSCORE', key.dead(), id)) ~= tonumber(died) then return nil, 'changed' end
  if digest ~= '' and redis.sha1hex(message) ~= digest then return nil, 'changed' end
  return {queue = known[3], step = known[4], message = message}
end
