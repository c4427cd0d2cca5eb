-- Count what a queue's workers did that changes no record.
-- KEYS none  ARGV 1 prefix  2 queue  3 counter
-- RETURNS nothing
count(ARGV[2], ARGV[3])
