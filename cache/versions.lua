-- Read the versions that values depend on, and begin those that there are not. May be repeated: one that ended between
-- the two runs begins as another.
-- KEYS the versions
-- ARGV 1 what the tokens of versions that begin have in common, 2 their lifetime in ms, 3 how many of KEYS, from the
--      first, begin when missing
-- RETURNS for each its token, '' for one that is missing and does not begin
local said = {}
local now = redis.call('TIME')
for index, key in ipairs(KEYS) do
  local token = redis.call('GET', key)
  if not token and index <= tonumber(ARGV[3]) then
    token = ARGV[1] .. '.' .. now[1] .. '.' .. now[2]
    redis.call('SET', key, token, 'PX', ARGV[2])
  end
  said[index] = token or ''
end
return said
