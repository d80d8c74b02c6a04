-- Reads a job as it is now. A RUNNING job whose lease has expired is declared LOST here.
-- KEYS  log, job, lease
-- ARGV  now (ISO 8601), lease in ms, retention in ms, grace period in ms
-- ->    nil when there is neither a log nor a hash, and when the job is deleted or is being deleted; else
--       {job hash as field, value, …; first id; last id, or that of the terminal entry; first entry's timestamp; terminal
--       entry as field, value, …; 1 during the grace period of an expired lease; the score in the listing of a job whose
--       hash has no created_at; its labels as key, value, …, sorted}
-- Of the hash and of the terminal entry only the known fields are read. Of the hash none is read that is longer than
-- FIELD_BYTES, and those of the terminal entry are cut off there.
-- Only a job that has had a lease (it has an attempt) can be LOST. A foreign runner without a lease is never LOST.
-- The first call that finds the lease expired writes the end of a grace period into the lease. A server that stood still
-- lets leases expire which nobody could renew; a live runner opens the job again within the grace period. A call after
-- its end declares the job LOST. A job that waits for its next attempt has a lease without a runner, and is LOST when
-- that lease has expired. No job is declared LOST while the server has been up for less than a lease, since no
-- runner had time to renew, nor while it refuses writes, since no runner could.
local log, job, lease = KEYS[1], KEYS[2], KEYS[3]
local FIELDS = {
  'status', 'attempt', 'created_at', 'started_at', 'finished_at', 'exit_code', 'lines', 'dropped', 'archived',
  'archived_first', 'archive_state', 'archive_sha256', 'redactions', 'deleting', 'labels',
}
local TERMINAL = {event = true, status = true, exit_code = true, lines = true, dropped = true, timestamp = true}
-- Longer than any value of ours. Another writer may have written megabytes, and thousands of jobs are read together.
local FIELD_BYTES = 256
-- How many of the last numbers of a foreign log may be its end, until the end is seen. More would make each read of a
-- running foreign job slower.
local LOOK_BACK = 10

-- The fields, when the end of the job was first seen, and the id of that terminal entry.
local function read_hash()
  local hash, values = {}, redis.call('HMGET', job, 'end_seen_ms', 'end_id', unpack(FIELDS))
  for at, name in ipairs(FIELDS) do
    local value = values[at + 2]
    if value and #value <= FIELD_BYTES then
      hash[#hash + 1] = name
      hash[#hash + 1] = value
    end
  end
  return hash, end_seen(values[1]), values[2]
end

local function is_end(entry)
  return entry and field(entry[2], 'event') == 'end'
end

-- The first terminal entry of the log, whose last entry is `last`, or nil. It is the end, whatever a foreign runner writes
-- after it. `noted` is its id, once it was seen. Our own append writes nothing after an end.
local function find_end(hash, last, noted)
  local entry = noted and redis.pcall('XRANGE', log, noted, noted)[1]
  if is_end(entry) then return entry end
  local found = is_end(last) and last or nil
  if field(hash, 'attempt') and field(hash, 'created_at') and (found or not is_terminal(field(hash, 'status'))) then
    return found
  end
  local number = last and whole_number(string.match(last[1], '^%d+')) or 0
  local from = string.format('%.0f', math.max(number - LOOK_BACK + 1, 0))
  for _, each in ipairs(redis.call('XRANGE', log, from, '+', 'COUNT', LOOK_BACK)) do
    -- An entry without a number of its own, such as 5-1, is no end: readers name it and go on.
    if is_end(each) and string.match(each[1], '%-0$') then return each end
  end
  return found
end

local function read_terminal(entry)
  local terminal = {}
  for at = 1, #entry, 2 do
    if TERMINAL[entry[at]] then
      terminal[#terminal + 1] = entry[at]
      terminal[#terminal + 1] = string.sub(entry[at + 1], 1, FIELD_BYTES)
    end
  end
  return terminal
end

-- When a foreign job was first listed, or '' when it was not. The listing is not one of KEYS, for the reason that
-- is_deleted() gives.
local function listed_at()
  local workflow, id = string.match(job, '^(.*}:)(.*):job$')
  local scores = redis.pcall('ZMSCORE', workflow .. 'jobs', id)
  return scores[1] or ''
end

-- The labels, of which there are 16 at most, as key, value, …. Our scripts count them in `labels`, and a foreign runner sets
-- them with HSET alone. A hash that is much longer than ours is not read for them, nor one that the user may not read as
-- a whole. To read the hash of each job as a whole would cost a tenth of this script's time.
local function read_labels(hash)
  if field(hash, 'attempt') and field(hash, 'created_at') and not field(hash, 'labels') then return {} end
  local length = redis.pcall('HLEN', job)
  local fields = type(length) == 'number' and length <= 100 and redis.pcall('HGETALL', job) or {}
  local values, keys, labels = {}, {}, {}
  for at = 1, #fields, 2 do
    local key = string.match(fields[at], '^label:([a-z][a-z0-9._/-]*)$')
    -- 256 characters of UTF-8, and a key of 63.
    if key and #key <= 63 and #fields[at + 1] <= 1024 then
      keys[#keys + 1] = key
      values[key] = fields[at + 1]
    end
  end
  table.sort(keys)
  for at = 1, math.min(#keys, 16) do
    labels[2 * at - 1] = keys[at]
    labels[2 * at] = values[keys[at]]
  end
  return labels
end

-- The retention in ms of a job that a foreign runner has ended: the one of its workflow, or else the common one. Only our
-- own runners put it into the hash. The settings are not one of KEYS, for the reason that is_deleted() gives.
local function foreign_retention()
  local own = redis.pcall('HGET', string.match(job, '^.*}') .. ':settings', 'retention_seconds')
  own = type(own) == 'string' and whole_number(own)
  return retention_of(job, own and string.format('%.0f', own * 1000) or ARGV[3])
end

-- Stores when the end of a job was first seen, and where, and clears that when there is a new log under the job's name.
-- The server may refuse the write; the next call tries again. Here a job ends that a foreign runner has ended
-- with XADD alone: unless its runner has set an earlier time, its keys expire like those of other jobs. Without a
-- status of the end, a foreign job that had a lease would be LOST when its log is gone.
local function note_end(status, entry, seen)
  local terminal = entry and entry[2]
  local ended = terminal or is_terminal(status)
  if ended and not seen then
    redis.pcall('HSET', job, 'end_seen_ms', string.format('%.0f', now_ms()), 'end_id', entry and entry[1] or '')
    if status == 'RUNNING' then
      local ended_as, code = field(terminal, 'status'), field(terminal, 'exit_code') or ''
      local default = (code == '' or code == '0') and 'COMPLETED' or 'FAILED'
      redis.pcall('HSET', job, 'status', is_terminal(ended_as) and ended_as or default)
    end
    local retention = foreign_retention()
    redis.pcall('PEXPIRE', log, retention, 'NX')
    if not redis.call('HGET', job, 'archived') then redis.pcall('PEXPIRE', job, retention, 'NX') end
  elseif seen and not ended then
    redis.pcall('HSET', job, 'end_seen_ms', '', 'end_id', '')
    redis.pcall('PERSIST', log)
  end
end

if is_deleted(lease) then
  -- A foreign runner does not know of tombstones, so what it has written is removed here, unless the deletion of the job
  -- still continues and does it. A user who may not UNLINK leaves it to other callers.
  if type(redis.pcall('HGET', job, 'deleting')) ~= 'string' then redis.pcall('UNLINK', log, job, lease) end
  return false
end
-- The reads below also check the types of the keys. Each comes before the first write to its key.
local hash, seen, noted = read_hash()
local exists = redis.call('EXISTS', log) == 1
if #hash == 0 and not exists or field(hash, 'deleting') then return false end

local in_grace = 0
if field(hash, 'status') == 'RUNNING' and field(hash, 'attempt') then
  local holder = redis.call('GET', lease)
  if is_free(holder) and holder ~= WAITS and server_uptime() * 1000 >= tonumber(ARGV[2]) then
    local last, problem = head(log, job)
    local now, grace = now_ms(), tonumber(ARGV[4])
    local grace_end = holder and whole_number(string.sub(holder, 7))
    if grace_end and grace_end > now + grace then grace_end = nil end
    if problem ~= 'CLOSED' and not grace_end then
      redis.pcall('SET', lease, string.format('grace:%.0f', now + grace), 'PX', 20 * grace)
      in_grace = 1
    elseif problem ~= 'CLOSED' and now < grace_end then
      in_grace = 1
    elseif problem ~= 'CLOSED' and end_job(log, job, last, 'LOST', '', '0', ARGV[1], ARGV[3]) then
      redis.call('DEL', lease)
      -- With a retention of 0 both keys are gone at once.
      hash, seen, noted = read_hash()
      exists = redis.call('EXISTS', log) == 1
      if #hash == 0 and not exists then return false end
    end
  end
end
local info = exists and stream_info(log) or {}
local first, last = info['first-entry'], info['last-entry']
local terminal = exists and find_end(hash, last, noted)
note_end(field(hash, 'status'), terminal, seen)
local listed = field(hash, 'created_at') and '' or listed_at()
if not exists then return {hash, '', '', '', {}, in_grace, listed, read_labels(hash)} end
local started_at = first and field(first[2], 'timestamp') or ''
return {
  hash,
  first_id(info),
  terminal and terminal[1] or info['last-generated-id'],
  #started_at <= FIELD_BYTES and started_at or '',
  terminal and read_terminal(terminal[2]) or {},
  in_grace,
  listed,
  read_labels(hash),
}
