-- Put back into a gate's buckets what was charged and not used; less than nothing when more was used.
-- KEYS none  ARGV 1 prefix  2 gate  3 calls  4 cost
-- RETURNS nothing
put_back(ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4]))
