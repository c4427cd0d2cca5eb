-- Accept a job: once per job id and idempotency key, write its record, make it wait, ring the bell, count it.
-- KEYS   none
-- ARGV   1 prefix  2 job id  3 queue  4 step  5 task  6 message  7 due moment  8 deadline moment
--        9 idempotency key  10 its lifetime in s  11 maximum length of the queue (0: none)
--        12... pairs of further record fields (tenant)
-- RETURNS {'accepted', id} | {'duplicate', id of the first} | {'replacement', id} |
--        {'full', jobs waiting, jobs that ended within a minute}
-- Refused by Redis when it is out of memory, unlike every other script here.
local id, queue, step, message = ARGV[2], ARGV[3], ARGV[4], ARGV[6]
local now = clock()
local due = moment(ARGV[7], now)

local function enqueue()
  if due and due > now then
    redis.call('HSET', key.job(id), 'state', 'delayed', 'message', message)
    redis.call('ZADD', key.delayed(queue), exact(due), id)
  else
    redis.call('LPUSH', waiting(queue, step), message)
  end
  ring(queue)
end

if ARGV[9] ~= '' then
  local first = redis.call('GET', key.once(ARGV[9]))
  if first then return {'duplicate', first} end
end
local known = redis.call('HMGET', key.job(id), 'state', 'replacing', 'queue')
if known[1] == 'replaced' then -- the last task of the canvas that a task put in its own place
  redis.call('ZREM', key.delayed(known[3]), id)
  redis.call('HDEL', key.job(id), 'message')
  redis.call('HSET', key.job(id), 'state', 'queued', 'step', step)
  move(id, known[3], queue)
  enqueue()
  return {'replacement', id}
end
if known[2] and HELD[known[1]] then -- the same, but the task that is replaced has not settled yet
  redis.call('HSET', key.job(id), 'follows', message, 'follows_step', step, 'follows_due', exact(due or 0),
    'follows_queue', queue)
  return {'replacement', id}
end
if known[1] then return {'duplicate', id} end

local most = tonumber(ARGV[11])
if most > 0 then
  local length = redis.call('ZCARD', key.delayed(queue)) + redis.call('ZCARD', key.alone(queue))
  for _, each in ipairs(STEPS) do length = length + redis.call('LLEN', waiting(queue, each)) end
  if length >= most then
    local ended, bucket = 0, math.floor(now / 10)
    for back = 1, 6 do ended = ended + tonumber(redis.call('GET', key.pace(queue .. ':' .. bucket - back)) or 0) end
    return {'full', length, ended}
  end
end

local record = {'state', 'queued', 'queue', queue, 'step', step, 'task', ARGV[5], 'accepted_at', exact(now)}
local deadline = moment(ARGV[8], now)
if deadline then
  record[#record + 1] = 'deadline'
  record[#record + 1] = exact(deadline)
end
for i = 12, #ARGV do record[#record + 1] = ARGV[i] end
if ARGV[9] ~= '' then redis.call('SET', key.once(ARGV[9]), id, 'EX', ARGV[10]) end
redis.call('HSET', key.job(id), unpack(record))
enqueue()
count(queue, 'submitted')
return {'accepted', id}
