-- Say whether a delivery still holds its job, before a run writes its result and sends off what follows from it.
-- KEYS none  ARGV 1 prefix  2 job id  3 delivery
-- RETURNS 'held' | 'settled' | 'late'
local queue, why = holding(ARGV[2], ARGV[3])
if queue then return 'held' end
if why == 'late' then count_late(ARGV[2]) end
return why
