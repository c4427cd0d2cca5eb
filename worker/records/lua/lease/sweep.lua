-- Rescue jobs: from owners whose lease has ended, and from living ones that have run a job for too long.
-- KEYS none
-- ARGV   1 prefix  2 how many jobs at most  3... for each queue: its name, max_orphaned, backoff_s, backoff_max_s,
--        wedged_after_s
-- RETURNS {how many jobs were rescued, seconds until the next lease ends as text, '' when there is none,
--        ids of the jobs that were buried...}
-- Only a job that had started counts as orphaned. The first time it goes back to the head; then it waits, and runs alone
-- in a process that holds nothing else; at its queue's limit it is dead: it is what kills the workers.
local most, rescued = tonumber(ARGV[2]), 0
local now = clock()
local policies = {}
local buried = {}
for i = 3, #ARGV, 5 do
  policies[ARGV[i]] = {limit = tonumber(ARGV[i + 1]), backoff_s = tonumber(ARGV[i + 2]),
    backoff_max_s = tonumber(ARGV[i + 3]), wedged_after_s = tonumber(ARGV[i + 4])}
end
local UNDECLARED = {limit = 5, backoff_s = 2, backoff_max_s = 60}

local function orphan(id, queue)
  local policy = policies[queue] or UNDECLARED
  local times = redis.call('HINCRBY', key.job(id), 'orphaned', 1)
  if times >= policy.limit then
    buried[#buried + 1] = id
    local task = redis.call('HGET', key.job(id), 'task') or ''
    bury(id, queue, REASON.POISON, 'its worker vanished or hung ' .. times .. ' times while it ran', '',
      string.sub(redis.sha1hex(REASON.POISON .. ' ' .. task), 1, 12))
  elseif times == 1 then
    to_head(id, queue)
  else
    let_go(id, queue)
    redis.call('HSET', key.job(id), 'alone', '1')
    wait(id, queue, now + math.min(policy.backoff_max_s, policy.backoff_s * 2 ^ (times - 2)))
  end
end

local function rescue(id, state, queue)
  if state == 'started' then orphan(id, queue) else to_head(id, queue) end
  count(queue, 'rescued')
  rescued = rescued + 1
end

for _, owner in ipairs(redis.call('ZRANGE', key.owners(), '-inf', exact(now), 'BYSCORE')) do
  local held = key.held(owner)
  while rescued < most do
    local id = redis.call('SPOP', held)
    if not id then break end
    local record = redis.call('HMGET', key.job(id), 'owner', 'state', 'queue')
    if record[1] == owner and HELD[record[2]] then rescue(id, record[2], record[3]) end
  end
  if redis.call('EXISTS', held) == 0 then
    redis.call('ZREM', key.owners(), owner)
    redis.call('DEL', key.owner(owner), key.mail(owner))
  end
end

for queue, policy in pairs(policies) do
  local since = exact(now - policy.wedged_after_s)
  for _, id in ipairs(redis.call('ZRANGE', key.leased(queue), '-inf', since, 'BYSCORE', 'LIMIT', 0, 100)) do
    local record = redis.call('HMGET', key.job(id), 'owner', 'state')
    if HELD[record[2]] and record[1] then
      tell(record[1], 'wedged', id)
      rescue(id, record[2], queue)
    end
  end
end

local first = redis.call('ZRANGE', key.owners(), 0, 0, 'WITHSCORES')
return {rescued, first[2] and exact(math.max(0, tonumber(first[2]) - now)) or '', unpack(buried)}
