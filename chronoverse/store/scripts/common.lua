-- Put before every script. All of a job's keys share the hash tag of its workflow.
-- Anybody who may write to the store may have written anything into these keys. So a script begins with check_types(),
-- before its first write, and reads numbers with whole_number().

-- What each kind of key must be. A kind is the part of a key's name after its last colon.
local TYPES = {
  log = 'stream', job = 'hash', lease = 'string', sealer = 'string', archive = 'zset', audit = 'list', jobs = 'zset',
  garbage = 'hash',
}

-- Raises WRONGTYPE unless each of these keys is absent or of its kind's type.
local function check_types(...)
  for _, key in ipairs({...}) do
    local found, expected = redis.call('TYPE', key).ok, TYPES[string.match(key, '[^:]*$')]
    if found ~= 'none' and found ~= expected then
      error(redis.error_reply(string.format('WRONGTYPE %s is a %s, not a %s', key, found, expected)))
    end
  end
end

-- The whole number in a text of 1 to 15 decimal digits, else nil. tonumber() takes more: 'nan', '1e400', '0x10', ' 7'.
local function whole_number(text)
  return text and #text <= 15 and string.match(text, '^%d+$') and tonumber(text) or nil
end

-- Unix milliseconds by the server's clock.
local function now_ms()
  local time = redis.call('TIME')
  return time[1] * 1000 + math.floor(time[2] / 1000)
end

local function is_terminal(status)
  return status == 'COMPLETED' or status == 'FAILED' or status == 'CANCELED' or status == 'LOST'
end

-- When the end of a job was first seen, in Unix ms by the server's clock; nil when it has not been. Retention counts from
-- then: the time that the terminal entry names is by the clock of whoever wrote it. A time still to come is none.
local function end_seen(job)
  local seen = whole_number(redis.call('HGET', job, 'end_seen_ms'))
  return seen and seen <= now_ms() and seen or nil
end

-- The value behind a name in a flat list of field, value, field, value, …
local function field(flat, name)
  for at = 1, #flat, 2 do
    if flat[at] == name then return flat[at + 1] end
  end
end

-- Seconds since the server's start.
local function server_uptime()
  return tonumber(string.match(redis.call('INFO', 'server'), 'uptime_in_seconds:(%d+)'))
end

-- Whether nobody holds a lease with this value: it is gone, or a look has put the end of its grace in its place.
local function is_free(holder)
  return not holder or string.sub(holder, 1, 6) == 'grace:'
end

-- Whether the log still holds the entry whose fields, joined by NUL, have this SHA-1. An empty id asks for nothing.
local function holds(log, id, sha1)
  if id == '' then return true end
  local found = redis.call('XRANGE', log, id, id)[1]
  return found and redis.sha1hex(table.concat(found[2], '\0')) == sha1
end

-- Whether the job was deleted: then its tombstone is there, a string. Its name follows from `key`, any key of the job.
-- A key of another type is no tombstone: a foreign runner, who may XADD and nothing else, must not delete jobs so.
-- The tombstone is read here without being one of KEYS: it is hardly ever there, and while a Cluster moves a slot it
-- refuses every script (TRYAGAIN) of whose KEYS some are there and some are not. During the move this may say no; but
-- then open and register are refused themselves, for the keys of the job that they would make are not there either.
-- https://redis.io/docs/latest/operate/oss_and_stack/reference/cluster-spec/#multi-key-operations
local function is_deleted(key)
  return type(redis.pcall('GET', (string.gsub(key, '%a+$', 'deleted')))) == 'string'
end

-- Why nothing can be appended under this token: DELETED, CLOSED or FENCED. Nil while the lease holds it.
local function refusal(job, lease, token)
  if redis.call('GET', lease) == token then return nil end
  if is_deleted(lease) then return 'DELETED' end
  local status = redis.call('HGET', job, 'status')
  return is_terminal(status) and status ~= 'LOST' and 'CLOSED' or 'FENCED'
end

local function stream_info(log)
  local info, flat = {}, redis.call('XINFO', 'STREAM', log)
  for at = 1, #flat, 2 do info[flat[at]] = flat[at + 1] end
  return info
end

-- The last number in the log, and what is wrong with adding to it:
-- CLOSED behind a terminal entry, TAINTED when the ids are not 1-0, 2-0, 3-0, … (then the last id comes first).
-- entries-added survives trims, restarts and rewrites, so this audit of the whole numbering costs O(1).
-- What is archived keeps its numbers when the log itself is lost: then the next is the one behind.
local function head(log, job)
  local archived = whole_number(redis.call('HGET', job, 'archived')) or 0
  if redis.call('EXISTS', log) == 0 then return archived, nil end
  local info = stream_info(log)
  local number, part = string.match(info['last-generated-id'], '^(%d+)%-(%d+)$')
  local last_entry = info['last-entry']
  if last_entry and field(last_entry[2], 'event') == 'end' then return tonumber(number), 'CLOSED' end
  if part ~= '0' or tonumber(number) ~= info['entries-added'] or tonumber(number) < archived then
    return info['last-generated-id'], 'TAINTED'
  end
  return tonumber(number), nil
end

-- Makes a log that is not there an empty one whose last number is `last`: as it was when all up to there had been
-- trimmed. Its first write is the one that may be refused for memory, and that error is returned.
local function resume_numbering(call, log, last)
  if last == 0 or redis.call('EXISTS', log) == 1 then return end
  local made = call('XGROUP', 'CREATE', log, 'made', '$', 'MKSTREAM')
  if made.err then return made end
  redis.call('XGROUP', 'DESTROY', log, 'made')
  redis.call('XSETID', log, string.format('%.0f-0', last), 'ENTRIESADDED', string.format('%.0f', last))
end

-- For how long a job is kept behind its end, in ms: as its workflow had it, or else as is common. What a workflow has of
-- its own stands in the job's hash as well: a key that may not be there would hold up every script while a Cluster moves
-- the others.
local function kept(job, common)
  local own = whole_number(redis.call('HGET', job, 'retention_ms'))
  return own and string.format('%.0f', own) or common
end

-- Writes the terminal entry and all that goes with it. Returns false, with nothing written, beyond the 15 digits that
-- a number may have, and for a lost job when the server refuses: the XADD is the first write, and the only one that
-- can be refused for memory. What is archived stays until all of the job goes, and so does the job.
local function close(log, job, last, status, exit_code, dropped, now, retention)
  local number = tonumber(last) or tonumber(string.match(last, '^%d+'))
  if number >= 999999999999999 then return false end
  local lines = string.format('%.0f', number)
  local entry = {'event', 'end', 'status', status, 'lines', lines, 'dropped', dropped, 'timestamp', now}
  if exit_code ~= '' then
    entry[#entry + 1] = 'exit_code'
    entry[#entry + 1] = exit_code
  end
  local call = status == 'LOST' and redis.pcall or redis.call
  if resume_numbering(call, log, number) then return false end
  local id = call('XADD', log, string.format('%.0f-0', number + 1), unpack(entry))
  if type(id) == 'table' and id.err then return false end
  redis.call('HSET', job, 'status', status, 'lines', lines, 'dropped', dropped, 'finished_at', now)
  redis.call('HSET', job, 'end_seen_ms', string.format('%.0f', now_ms()))
  if exit_code ~= '' then redis.call('HSET', job, 'exit_code', exit_code) end
  retention = kept(job, retention)
  redis.call('PEXPIRE', log, retention)
  if not redis.call('HGET', job, 'archived') then redis.call('PEXPIRE', job, retention) end
  return true
end
