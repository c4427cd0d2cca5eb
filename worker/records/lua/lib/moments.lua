-- Moments, by Redis' clock: seconds since the epoch.

local function clock()
  local t = redis.call('TIME')
  return tonumber(t[1]) + tonumber(t[2]) / 1000000
end

-- '' is no moment, '+5' five seconds from now, any other number seconds since the epoch.
local function moment(text, now)
  if text == '' then return nil end
  if string.sub(text, 1, 1) == '+' then return now + tonumber(string.sub(text, 2)) end
  return tonumber(text)
end

local function exact(number)
  return string.format('%.6f', number)
end

