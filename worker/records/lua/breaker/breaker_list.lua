-- Tell how every breaker stands that is not simply closed.
-- KEYS none  ARGV 1 prefix
-- RETURNS {name, state, failures counted, trips in a row, in how many s it half-opens} each
local now, found = clock(), {}
for _, name in ipairs(redis.call('ZRANGE', key.breakers(), 0, -1)) do
  local known = redis.call('HMGET', key.breaker(name), 'open_until', 'trips', 'failed')
  local _, failures = string.gsub(known[3] or '', '%S+', '')
  local open_until = tonumber(known[1])
  if open_until or failures > 0 then
    local state = not open_until and 'closed' or now < open_until and 'open' or 'half-open'
    found[#found + 1] = {name, state, failures, tonumber(known[2] or 0), exact(math.max(0, (open_until or now) - now))}
  end
end
return found
