-- Settle a delivery as a dead letter. The record keeps the message as it came and has no lifetime.
-- KEYS none  ARGV 1 prefix  2 job id  3 delivery  4 reason  5 error  6 traceback
-- RETURNS 'buried' | 'settled' | 'late'
local id = ARGV[2]
local queue, why = holding(id, ARGV[3])
if not queue then return why end
local now = exact(clock())
let_go(id, queue)
redis.call('HSET', key.job(id), 'state', 'dead', 'ended_at', now, 'reason', ARGV[4], 'error', ARGV[5],
  'traceback', ARGV[6])
redis.call('ZADD', key.dead(), now, id)
count(queue, 'failed')
count(queue, 'dead')
return 'buried'
