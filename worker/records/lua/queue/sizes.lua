-- Count queues' open jobs, and say what was counted as their jobs came and ended, all at the same moment.
-- KEYS none  ARGV 1 prefix  2... queues
-- RETURNS as JSON {number of dead letters, {queue, pending, delayed, in hand, running, {counter = value}}...}
local rows = {}
for i = 2, #ARGV do
  local queue, pending, running, counters = ARGV[i], 0, 0, {}
  for _, step in ipairs(STEPS) do pending = pending + redis.call('LLEN', waiting(queue, step)) end
  local delayed = redis.call('ZCARD', key.delayed(queue)) + redis.call('ZCARD', key.alone(queue))
  local leased = redis.call('ZRANGE', key.leased(queue), 0, -1)
  for _, id in ipairs(leased) do
    if redis.call('HGET', key.job(id), 'state') == 'started' then running = running + 1 end
  end
  local flat = redis.call('HGETALL', key.stats(queue))
  for at = 1, #flat, 2 do counters[flat[at]] = tonumber(flat[at + 1]) end
  rows[i - 1] = {queue, pending, delayed, #leased, running, counters}
end
return cjson.encode({redis.call('ZCARD', key.dead()), rows})
