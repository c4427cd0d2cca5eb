-- Read values, and claim those that are missing and that nobody is computing. May be repeated.
-- KEYS 1 the kind's generation, 2... the values; a value's flight is its key with ':flight' behind
-- ARGV 1 token, 2 lease in ms
-- RETURNS generation ('' when none), then for each value {'value', bytes, ms left} | {'mine'} | {'other', its token}
local said = {redis.call('GET', KEYS[1]) or ''}
for index = 2, #KEYS do
  local value = redis.call('GET', KEYS[index])
  if value then
    said[index] = {'value', value, redis.call('PTTL', KEYS[index])}
  else
    local flight = KEYS[index] .. ':flight'
    local token = redis.call('GET', flight)
    if not token then redis.call('SET', flight, ARGV[1], 'PX', ARGV[2]) end
    said[index] = (not token or token == ARGV[1]) and {'mine'} or {'other', token}
  end
end
return said
