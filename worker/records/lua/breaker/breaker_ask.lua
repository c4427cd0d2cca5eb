-- Ask a breaker whether a call may go. While it is half-open one call goes alone, to see: the probe.
-- KEYS none  ARGV 1 prefix  2 breaker  3 a token for the probe  4 how many s a probe may take  5 open_s
-- RETURNS {'closed' | 'troubled' (closed, and failures are counted) | 'probe' | 'open', in how many s to ask again}
local record, now = key.breaker(ARGV[2]), clock()
local known = redis.call('HMGET', record, 'open_until', 'probe', 'probe_until')
local open_until, probe_until = tonumber(known[1]), tonumber(known[3] or 0)
if not open_until then
  return {redis.call('EXISTS', record) == 1 and 'troubled' or 'closed', '0'}
end
if now < open_until then return {'open', exact(open_until - now)} end
if known[2] and now < probe_until then
  return {'open', exact(math.min(probe_until - now, tonumber(ARGV[5])))} -- it may be answered long before
end
redis.call('HSET', record, 'probe', ARGV[3], 'probe_until', exact(now + tonumber(ARGV[4])))
return {'probe', '0'}
