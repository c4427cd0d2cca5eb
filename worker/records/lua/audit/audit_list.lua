-- Read on in a list of waiting messages: whose they are, and whether their records say so at the same moment.
-- KEYS none  ARGV 1 prefix  2 queue  3 step  4 index of the last message read (0: none)  5 its mark ('': none)
-- RETURNS as JSON {index, mark ('' at the end of the list), {id, delivery, queue of its record, fault or ''}...},
--        and for one that cannot be read {'', SHA-1, queue, 'nameless', ids of jobs with the same message...}
-- Messages are pushed at index 0 meanwhile, so the last one read is sought where it was and behind; none is passed over
-- that was in the list all the time. If it is gone, so is all that lay behind it.
local MOST, MOST_BYTES, CHUNK = 500, 512 * 1024, 8
local queue, step, index, mark = ARGV[2], ARGV[3], tonumber(ARGV[4]), ARGV[5]
local list = waiting(queue, step)
local found, bytes, last = {}, 0, nil

-- A message that names no job is remembered by its bytes once it was fetched; the ids of all that are like it go along.
local function nameless(message)
  local mark = redis.sha1hex(message)
  local row = {'', mark, queue, 'nameless'}
  for _, id in ipairs(redis.call('LRANGE', key.nameless(queue .. ':' .. mark), 0, -1)) do
    if redis.call('HGET', key.job(id), 'state') == 'queued' then row[#row + 1] = id end
  end
  return row
end

local function look(message)
  local id = identify(message)
  if not id then return nameless(message) end
  local record = redis.call('HMGET', key.job(id), 'state', 'queue', 'step', 'delivery')
  local fault = ''
  if not record[1] then fault = 'unseen'
  elseif record[1] ~= 'queued' then fault = 'surplus'
  elseif record[2] ~= queue or record[3] ~= step then fault = 'misplaced' end
  return {id, record[4] or '', record[2] or '', fault}
end

while #found < MOST and bytes < MOST_BYTES do
  local messages = redis.call('LRANGE', list, index, index + CHUNK - 1)
  for _, message in ipairs(messages) do
    if mark == '' then
      found[#found + 1] = look(message)
      last = message
    elseif redis.sha1hex(message) == mark then
      mark = ''
    end
    bytes = bytes + #message
  end
  index = index + #messages
  if #messages < CHUNK then return cjson.encode({index, '', found}) end
end
return cjson.encode({index - 1, last and redis.sha1hex(last) or mark, found})
