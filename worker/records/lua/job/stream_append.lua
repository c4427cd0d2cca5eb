-- Write pieces of an answer for its readers, while the run that writes them still holds its job.
-- KEYS none  ARGV 1 prefix  2 job id  3 delivery  4 lifetime in seconds  5 most entries
--   6 '1' for a run's first write: what an earlier run wrote becomes void
--   7.. kind ('text' | 'restart' | 'whole'), offset in characters, text: three for each entry
-- RETURNS 'held' | 'settled' | 'late'
local id, number = ARGV[2], ARGV[3]
local queue, why = holding(id, number)
if not queue then return why end
local stream = key.stream(id)
local function add(kind, at, text)
  redis.call('XADD', stream, 'MAXLEN', '~', ARGV[5], '*', 'kind', kind, 'run', number, 'at', at, 'text', text)
end
if ARGV[6] == '1' and redis.call('EXISTS', stream) == 1 then add('restart', '0', '') end
for each = 7, #ARGV, 3 do add(ARGV[each], ARGV[each + 1], ARGV[each + 2]) end
redis.call('EXPIRE', stream, ARGV[4])
return 'held'
