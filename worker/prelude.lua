-- What every script shares: the clock, the bell, the fence. ARGV[1] is the key prefix in all of them.
-- Keys are built here from names, not declared: kombu needs one Redis (or its Sentinels), not a cluster.

local function clock()
  local t = redis.call('TIME')
  return tonumber(t[1]) + tonumber(t[2]) / 1000000
end

-- '' is no moment, '+5' five seconds from now, any other number seconds since the epoch.
local function moment(text, now)
  if text == '' then return nil end
  if string.sub(text, 1, 1) == '+' then return now + tonumber(string.sub(text, 2)) end
  return tonumber(text)
end

local function exact(number)
  return string.format('%.6f', number)
end

local function count(queue, what, by)
  redis.call('HINCRBY', key.stats(queue), what, by or 1)
end

local function ring(queue)
  redis.call('LPUSH', key.bell(queue), '1')
  redis.call('LTRIM', key.bell(queue), 0, 63)
  redis.call('EXPIRE', key.bell(queue), 60)
end

local ENDED = { succeeded = true, dead = true, cancelled = true, expired = true }
local HELD = { leased = true, started = true }

-- The fence. Gives the queue of a delivery that still holds its job. Otherwise nil and why: 'settled' when this
-- very delivery has been settled before (a repeat after a lost reply), 'late' when the job was given to another.
local function holding(id, number)
  local record = redis.call('HMGET', key.job(id), 'delivery', 'state', 'queue')
  if record[1] == number and HELD[record[2]] then return record[3] end
  if record[1] == number then return nil, 'settled' end
  if record[3] then count(record[3], 'late') end
  return nil, 'late'
end

local function let_go(id, queue)
  local owner = redis.call('HGET', key.job(id), 'owner')
  if owner then redis.call('SREM', key.held(owner), id) end
  redis.call('ZREM', key.leased(queue), id)
  redis.call('HDEL', key.job(id), 'owner')
end

-- Put a held job back where it is fetched next. Its message leaves the record for the list.
local function to_head(id, queue)
  local record = key.job(id)
  local held = redis.call('HMGET', record, 'message', 'step')
  let_go(id, queue)
  redis.call('HDEL', record, 'message', 'started_at')
  redis.call('HSET', record, 'state', 'queued')
  redis.call('RPUSH', waiting(queue, held[2]), held[1])
  ring(queue)
end

local function finish(id, queue, state, lifetime_s)
  local record = key.job(id)
  let_go(id, queue)
  redis.call('HDEL', record, 'message')
  redis.call('HSET', record, 'state', state, 'ended_at', exact(clock()))
  redis.call('EXPIRE', record, lifetime_s)
end
