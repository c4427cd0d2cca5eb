-- Replace the message of a dead letter by one that names the same job.
-- KEYS none
-- ARGV 1 prefix  2 job id  3 moment of the death that was read  4 SHA-1 of the message that was read  5 message  6 task
-- RETURNS 'edited' | 'changed' | 'misnamed' | what the job is instead of a dead letter (see prelude.lua)
local id = ARGV[2]
local dead, why = letter(id, ARGV[3], ARGV[4])
if not dead then return why end
if identify(ARGV[5]) ~= id then return 'misnamed' end
redis.call('HSET', key.job(id), 'message', ARGV[5], 'task', ARGV[6])
return 'edited'
