-- Look at jobs: is each where its record says, and can it still end? A job is seen whole, never amid a step.
-- KEYS none  ARGV 1 prefix  2... pairs of a job id and the key of the set in which it was found ('' for its record)
-- RETURNS as JSON {number of records by state, {id, where found, state, stamp, queue, owner, fault...} for each pair that is
--        queued or at fault}; the stamp changes with every step of a job's life
local counts, rows = {}, {}

local function contains(set, id)
  local kind = redis.call('TYPE', set).ok
  if kind == 'set' then return redis.call('SISMEMBER', set, id) == 1 end
  return kind == 'zset' and redis.call('ZSCORE', set, id) ~= false
end

-- The sets in which a job of this state has to be.
local function places(state, queue, owner, alone)
  if state == 'delayed' then return {alone and key.alone(queue) or key.delayed(queue)} end
  if state == 'replaced' then return {key.delayed(queue)} end
  if state == 'dead' then return {key.dead()} end
  if HELD[state] then return {key.leased(queue), key.held(owner)} end
  return {}
end

local function faults(id, found_in, state, queue, owner, alone)
  local found = {}
  if found_in ~= '' and not contains(found_in, id) then return found end
  if not state then
    if redis.call('EXISTS', key.job(id)) == 1 then found[1] = 'no state'
    elseif found_in ~= '' then found[1] = 'no record' end
    return found
  end
  local astray = found_in ~= ''
  for _, place in ipairs(places(state, queue, owner, alone)) do
    if place == found_in then astray = false
    elseif found_in == '' and not contains(place, id) then found[#found + 1] = 'not in ' .. place end
  end
  if astray then found[#found + 1] = 'astray' end
  if found_in ~= '' then return found end
  local mortal = redis.call('TTL', key.job(id)) ~= -1
  if not (state == 'purged' or ENDED[state]) or state == 'dead' then
    if mortal then found[#found + 1] = 'mortal' end
    if state ~= 'queued' and redis.call('HEXISTS', key.job(id), 'message') == 0 then found[#found + 1] = 'no message' end
  elseif not mortal then
    found[#found + 1] = 'immortal'
  end
  if HELD[state] and not redis.call('ZSCORE', key.owners(), owner) then found[#found + 1] = 'abandoned' end
  return found
end

for i = 2, #ARGV, 2 do
  local id, found_in = ARGV[i], ARGV[i + 1]
  local record = redis.call('HMGET', key.job(id), 'state', 'queue', 'owner', 'alone', 'step', 'delivery', 'purged')
  local state, queue = record[7] and 'purged' or record[1], record[2] or ''
  local found = faults(id, found_in, state, queue, record[3] or '', record[4])
  if state and found_in == '' then counts[state] = (counts[state] or 0) + 1 end
  if #found > 0 or state == 'queued' then
    local stamp = table.concat({state or '', queue, record[5] or '', record[6] or ''}, ' ')
    rows[#rows + 1] = {id, found_in, state or '', stamp, queue, record[3] or '', unpack(found)}
  end
end
return cjson.encode({counts, rows})
