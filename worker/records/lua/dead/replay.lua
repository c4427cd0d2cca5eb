-- Replay a dead letter: its job waits at the tail of its list and begins a life of its own, without attempts, orphans,
-- deadline. How it died moves to the record's history: one JSON object a line, the last 20.
-- KEYS none
-- ARGV 1 prefix  2 job id  3 moment of the death that was read, '' for any  4 SHA-1 of the message that was read
--      5 message of the new life, '' for the same
-- RETURNS 'replayed' | 'changed' | what the job is instead of a dead letter (see prelude.lua)
local id = ARGV[2]
local dead, why = letter(id, ARGV[3], ARGV[4])
if not dead then return why end
local record = key.job(id)
local death = redis.call('HMGET', record, 'ended_at', 'reason', 'error', 'worker', 'fingerprint', 'history')
local history = {}
for line in string.gmatch(death[6] or '', '[^\n]+') do history[#history + 1] = line end
history[#history + 1] = cjson.encode({died_at = death[1] or '', reason = death[2] or '',
  error = string.sub(death[3] or '', 1, 1000), worker = death[4] or '', fingerprint = death[5] or ''})
if #history > 20 then table.remove(history, 1) end

redis.call('HDEL', record, 'message', 'ended_at', 'reason', 'error', 'worker', 'fingerprint', 'traceback', 'attempts',
  'orphaned', 'alone', 'cancel', 'deadline', 'leased_at', 'started_at')
redis.call('HSET', record, 'state', 'queued', 'history', table.concat(history, '\n'))
redis.call('ZREM', key.dead(), id)
local message = ARGV[5] ~= '' and ARGV[5] or dead.message
remember(id, dead.queue, message)
redis.call('LPUSH', waiting(dead.queue, dead.step), message)
ring(dead.queue)
count(dead.queue, 'replayed')
return 'replayed'
