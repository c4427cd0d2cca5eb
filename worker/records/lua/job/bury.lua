-- Settle a delivery as a dead letter.
-- KEYS none  ARGV 1 prefix  2 job id  3 delivery  4 reason  5 error  6 traceback  7 fingerprint
-- RETURNS 'buried' | 'settled' | 'late'
local queue, why = settling(ARGV[2], ARGV[3])
if not queue then return why end
bury(ARGV[2], queue, ARGV[4], ARGV[5], ARGV[6], ARGV[7])
return 'buried'
