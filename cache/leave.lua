-- End a leader's flights without a value and tell who waits whether to try in turn or each alone. Runs without memory.
-- KEYS 1 the token's list of marks, 2... the values
-- ARGV 1 token, 2 'retry' | 'alone', 3 how long the mark stays in ms
-- RETURNS 1
for index = 2, #KEYS do
  local flight = KEYS[index] .. ':flight'
  if redis.call('GET', flight) == ARGV[1] then redis.call('DEL', flight) end
end
redis.call('RPUSH', KEYS[1], ARGV[2])
redis.call('PEXPIRE', KEYS[1], ARGV[3])
return 1
