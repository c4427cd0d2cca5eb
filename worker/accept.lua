-- Accept a job: once per job id and idempotency key, write its record, make it wait, ring the bell, count it.
-- KEYS   none
-- ARGV   1 prefix  2 job id  3 queue  4 step  5 task  6 message  7 due moment  8 deadline moment
--        9 idempotency key  10 its lifetime in s  11 maximum length of the queue (0: none)
--        12 '1' when Celery itself publishes: a message for a running job follows its current delivery
--        13... pairs of further record fields (tenant)
-- RETURNS {'accepted', id} | {'duplicate', id of the first} | {'follows', id} | {'full', jobs waiting}
-- Refused by Redis when it is out of memory, unlike every other script here.
local id, queue, step, message = ARGV[2], ARGV[3], ARGV[4], ARGV[6]
local now = clock()

if ARGV[9] ~= '' then
  local first = redis.call('GET', key.once(ARGV[9]))
  if first then return {'duplicate', first} end
end
local state = redis.call('HGET', key.job(id), 'state')
if state and HELD[state] and ARGV[12] == '1' then
  redis.call('HSET', key.job(id), 'follows', message, 'follows_step', step,
    'follows_due', exact(moment(ARGV[7], now) or 0))
  return {'follows', id}
end
if state then return {'duplicate', id} end

local most = tonumber(ARGV[11])
if most > 0 then
  local length = redis.call('ZCARD', key.delayed(queue))
  for _, each in ipairs(STEPS) do length = length + redis.call('LLEN', waiting(queue, each)) end
  if length >= most then return {'full', length} end
end

local record = {'state', 'queued', 'queue', queue, 'step', step, 'task', ARGV[5], 'accepted_at', exact(now)}
local deadline = moment(ARGV[8], now)
if deadline then
  record[#record + 1] = 'deadline'
  record[#record + 1] = exact(deadline)
end
for i = 13, #ARGV do record[#record + 1] = ARGV[i] end
if ARGV[9] ~= '' then redis.call('SET', key.once(ARGV[9]), id, 'EX', ARGV[10]) end
redis.call('HSET', key.job(id), unpack(record))

local due = moment(ARGV[7], now)
if due and due > now then
  redis.call('HSET', key.job(id), 'state', 'delayed', 'message', message)
  redis.call('ZADD', key.delayed(queue), exact(due), id)
else
  redis.call('LPUSH', waiting(queue, step), message)
end
ring(queue)
count(queue, 'submitted')
return {'accepted', id}
