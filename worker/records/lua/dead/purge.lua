-- Purge a dead letter: what it carried is deleted; what is left of the record says so for a set time.
-- KEYS none  ARGV 1 prefix  2 job id  3 moment of the death that was read, '' for any  4 lifetime of the record in s
-- RETURNS 'purged' | 'changed' | what the job is instead of a dead letter (see prelude.lua)
local id = ARGV[2]
local dead, why = letter(id, ARGV[3], '')
if not dead then
  if why ~= 'changed' then redis.call('ZREM', key.dead(), id) end -- its record was deleted or changed by hand
  return why
end
local record = key.job(id)
redis.call('HDEL', record, 'message', 'traceback', 'history')
redis.call('HSET', record, 'purged', '1')
redis.call('EXPIRE', record, ARGV[4])
redis.call('ZREM', key.dead(), id)
count(dead.queue, 'purged')
return 'purged'
