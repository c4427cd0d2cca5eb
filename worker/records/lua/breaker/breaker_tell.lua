-- Tell a breaker how a call ended. While it is open or half-open only the probe's word counts: other calls began before.
-- KEYS none  ARGV 1 prefix  2 breaker  3 the probe's token, '' of any other call  4 'answered' | 'failed' | 'unknown'
--   5 failures  6 within_s  7 open_s  8 open_max_s
-- RETURNS 'closed' | 'open' | 'half-open', as it is now
local LIFETIME_S = 3600 -- twice what a breaker may be open for
local record, now = key.breaker(ARGV[2]), clock()
local known = redis.call('HMGET', record, 'open_until', 'probe', 'trips', 'failed')

local function close()
  redis.call('DEL', record)
  redis.call('ZREM', key.breakers(), ARGV[2])
  return 'closed'
end

local function open(trips)
  local for_s = math.min(tonumber(ARGV[8]), tonumber(ARGV[7]) * 2 ^ math.min(trips - 1, 63))
  redis.call('HSET', record, 'open_until', exact(now + for_s), 'trips', trips)
  redis.call('HDEL', record, 'probe', 'probe_until', 'failed')
  return 'open'
end

local function stay()
  redis.call('EXPIRE', record, LIFETIME_S)
  redis.call('ZADD', key.breakers(), exact(now), ARGV[2])
  redis.call('EXPIRE', key.breakers(), LIFETIME_S)
end

if known[1] then
  if ARGV[3] == '' or known[2] ~= ARGV[3] then return now < tonumber(known[1]) and 'open' or 'half-open' end
  if ARGV[4] == 'answered' then return close() end
  if ARGV[4] == 'unknown' then
    redis.call('HDEL', record, 'probe', 'probe_until')
    return 'half-open'
  end
  local state = open(tonumber(known[3]) + 1)
  stay()
  return state
end
if ARGV[4] == 'answered' then return close() end
if ARGV[4] == 'unknown' then return 'closed' end
local failed = {}
for at in string.gmatch(known[4] or '', '%S+') do
  if now - tonumber(at) < tonumber(ARGV[6]) then failed[#failed + 1] = at end
end
failed[#failed + 1] = exact(now)
local state = 'closed'
if #failed >= tonumber(ARGV[5]) then
  state = open(1)
else
  redis.call('HSET', record, 'failed', table.concat(failed, ' '))
end
stay()
return state
