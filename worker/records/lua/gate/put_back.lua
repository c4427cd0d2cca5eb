-- Put back into a gate's buckets what was charged and not used; less than nothing when more was used.
-- KEYS none  ARGV 1 prefix  2 gate  3 calls  4 cost  5 '1' when the call has left its worker
-- RETURNS nothing
put_back(ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4]), ARGV[5] == '1')
