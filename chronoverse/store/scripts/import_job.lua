-- Creates a job from its archive, if the store has no such job or an older state of it.
-- KEYS  log, job, lease, archive, jobs
-- ARGV  job id, creation time (Unix ms), first and last number of the chunks, created_at ('' if unknown), how many ms a
--       job without an end waits for its runner ('' if it has ended), its number of redactions, 1 if the store has lost
--       data (archivers then delete no objects), whether the first line that store and chunks share has the same time in both
--       ('1' or '0'; '-' without such a line; '' if not compared yet), number of the following arguments that are
--       fields of the hash as field, value, …; then the chunks, each as last number, record, bytes of its messages, and
--       number of lines that a quota dropped (0 if unknown)
-- ->    OK 1 (created), 0 (the store already has it), 2 (its runner has come back, but has not yet resent its lines, or
--       an archiver has added chunks), 3 (the store has another job with this id), 4 (lines were redacted since the
--       chunks were read) or 5 (compare a line) | DELETED
-- First decides in which state the store has the job, then writes: all of it, or only the chunks below a log that
-- continues.
local log, job, lease, archive, jobs = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
local last, redactions, records = tonumber(ARGV[4]), tonumber(ARGV[7]), 11 + tonumber(ARGV[10])
local is_running, has_lost_data = ARGV[6] ~= '', ARGV[8] == '1'

-- Whether the log, from a number on, reports lines as lost that the chunks have.
local function lacks_lines(from)
  while from <= last do
    local page = redis.call('XRANGE', log, string.format('%.0f-0', from), '+', 'COUNT', 100)
    for _, entry in ipairs(page) do
      if field(entry[2], 'event') == 'lost' and (field(entry[2], 'reason') or 'lost') == 'lost' then return true end
      from = tonumber(string.match(entry[1], '^%d+')) + 1
      if from > last then return false end
    end
    if #page < 100 then return false end
  end
  return false
end

-- The number of redactions in the name of a record's object, 0 if it was not redacted.
local function redactions_in(record)
  local unique = string.match(record, '%-(%x+)%.jsonl%.zst"') or ''
  return #unique == 24 and tonumber(string.sub(unique, 17), 16) or 0
end

local function is_of_lost_lines(record)
  return string.find(record, '/%d+%-%d+%-%x+%-lost[^/"]*"') ~= nil
end

-- Compares the chunks with the store's records.
local function compare_chunks()
  local given, found = {}, {}
  for at = records, #ARGV, 4 do
    local record = ARGV[at + 1]
    given[record] = true
    if redis.call('ZSCORE', archive, record) then
      found.has_common = found.has_common or not is_of_lost_lines(record)
    else
      found.is_redacted = found.is_redacted or redactions_in(record) > 0
      -- The store can have these lines.
      found.is_lost = found.is_lost or is_of_lost_lines(record)
    end
  end
  for at, record in ipairs(redis.call('ZRANGE', archive, 0, -1)) do
    found.has_others = found.has_others or not given[record]
    if not given[record] and is_of_lost_lines(record) then
      found.is_repaired = true
      if at == 1 then found.lost_to = tonumber(redis.call('ZSCORE', archive, record)) end
    end
    found.is_outdated = found.is_outdated or redactions_in(record) > redactions
  end
  return found, given
end

-- The state of the job in the store:
-- 'absent'
-- 'older': an old copy, which lacks the last lines, a redaction of a complete archive, or a repaired chunk
-- 'restarted': its runner came back before this call. Log or archive begin with lost lines, up to the second result
-- 'continued': its runner has continued an old copy, or resent lines since an archived end. The store has old text of
-- redacted lines, other records, or a log that reports lines as lost
-- or the number to return. It is the same job if it has the same creation time, one of the chunks, the same time of
-- the first line that both have (chunks may have been merged since), or no line and no end but LOST.
local function state_of(chunks, redacted)
  if redis.call('EXISTS', log, job) == 0 then return 'absent' end
  local fields = redis.call('HMGET', job, 'created_at', 'archived', 'deleting', 'archived_first', 'status')
  local created_at, archived, deleting, archived_first, status = unpack(fields)
  local stored, problem, has_log = head(log, job)
  if deleting or problem == 'TAINTED' then return 0 end
  if problem == 'CLOSED' then stored = stored - 1 end
  local begin, is_held = has_log and not archived and stream_info(log)['first-entry'], not is_free(redis.call('GET', lease))
  local is_lost = begin and field(begin[2], 'event') == 'lost' and field(begin[2], 'from') == '1'
  local lost_to = is_lost and tonumber(string.match(begin[1], '^%d+')) or chunks.lost_to
  local is_empty = stored == 0 and (problem ~= 'CLOSED' or status == 'LOST')
  local is_same = created_at and created_at == ARGV[5] or chunks.has_common or is_empty or ARGV[9] == '1'
  if not is_same and ARGV[9] == '' then return 5 end
  if not is_same and ARGV[9] == '0' then return 3 end
  local can_repair, is_old = has_lost_data and chunks.is_repaired, has_lost_data and is_same
  archived = whole_number(archived) or 0

  if lost_to and archived > last then return 2 end
  if stored >= last and lost_to then return 'restarted', lost_to end
  local is_ahead = stored > last or stored == last and (is_running or is_held)
  if is_ahead and is_old and archived <= last and (not chunks.is_lost or chunks.is_redacted) then
    local differs = chunks.is_redacted or chunks.has_others or (whole_number(archived_first) or 0) > tonumber(ARGV[3])
    if differs or lacks_lines(archived + 1) then return 'continued', 0 end
  end
  local is_complete = field({unpack(ARGV, 11, records - 1)}, 'archive_state') == 'complete'
  local lacks_redaction = redacted < redactions and is_complete or redacted <= redactions and chunks.is_redacted
  local is_older = stored < last or stored == last and (lacks_redaction or can_repair) and not is_running
  if is_same and is_older and not is_held then return 'older' end
  if is_held and (lost_to or not has_log and archived == 0 or has_lost_data and stored < last) then return 2 end
  return not is_same and not lost_to and 3 or 0
end

check_types(log, job, lease, archive, jobs)
if is_deleted(lease) then return {'DELETED'} end
local chunks, given = compare_chunks()
local redacted = whole_number(redis.call('HGET', job, 'redactions')) or 0
local state, lost_to = state_of(chunks, redacted)
if type(state) == 'number' then return {'OK', state} end
if redacted > redactions and chunks.is_outdated then return {'OK', 4} end
local is_below, to = state == 'restarted' or state == 'continued', #ARGV
if state == 'restarted' and redactions == 0 then
  -- The log has lines of a damaged chunk. It keeps them, and all after them, except old text of redacted lines.
  local archived, before = whole_number(redis.call('HGET', job, 'archived')) or 0, 0
  for at = records, to, 4 do
    if before >= archived and tonumber(ARGV[at]) > lost_to and is_of_lost_lines(ARGV[at + 1]) then
      if before == 0 then return {'OK', 0} end
      last, to = before, at - 1
      break
    end
    before = tonumber(ARGV[at])
  end
end

-- Only the first write can be refused for lack of memory.
redis.call('HSET', job, 'archived', string.format('%.0f', last), 'archived_first', ARGV[3])
local counts = is_below and redis.call('HMGET', job, 'bytes', 'left_out', 'skipped') or {}
local bytes = whole_number(counts[1]) or 0
-- Of the lines dropped by a quota, count those after the chunks (they are the newest), then those of the chunks.
local left_out = math.min(whole_number(counts[2]) or 0, math.max((whole_number(counts[3]) or 0) - last, 0))
for at = records, to, 4 do
  redis.call('ZADD', archive, ARGV[at], ARGV[at + 1])
  -- Lines that a runner has resent already count towards its quota.
  if tonumber(ARGV[at]) <= (lost_to or math.huge) then bytes = bytes + tonumber(ARGV[at + 2]) end
  left_out = left_out + tonumber(ARGV[at + 3])
end
-- Afterwards: while a Cluster moves a slot, a key that becomes empty cannot be written again.
for _, record in ipairs(redis.call('ZRANGE', archive, 0, -1)) do
  if not given[record] then redis.call('ZREM', archive, record) end
end
if bytes > 0 then redis.call('HSET', job, 'bytes', string.format('%.0f', bytes)) end
if left_out > 0 or counts[2] then redis.call('HSET', job, 'left_out', string.format('%.0f', left_out)) end
redis.call('PERSIST', job)
if redactions > redacted then redis.call('HSET', job, 'redactions', ARGV[7]) end
list_job(jobs, ARGV[1], ARGV[2], state == 'older' or state == 'continued')
redis.call('HDEL', job, 'archive_state', 'archive_sha256', 'archive_shapes', 'swept')
if not is_below then redis.call('HDEL', job, 'finished_at', 'exit_code', 'lines', 'dropped', 'end_seen_ms', 'end_id') end
for at = 11, records - 1, 2 do
  local is_time = ARGV[at] == 'created_at' or ARGV[at] == 'started_at'
  if not is_below or state == 'restarted' and is_time then redis.call('HSET', job, ARGV[at], ARGV[at + 1]) end
end
if is_below then
  -- Resent lines can have text that was redacted. Readers must not find an entry about lost lines instead of a line.
  redis.call('XTRIM', log, 'MINID', string.format('%.0f-0', last + 1))
  if redis.call('EXISTS', log) == 1 and tonumber(string.match(stream_info(log)['last-generated-id'], '^%d+')) < last then
    -- A quota dropped the log's last lines. head() compares its last number with `archived`.
    redis.call('XSETID', log, string.format('%.0f-0', last), 'ENTRIESADDED', string.format('%.0f', last))
  end
  if redactions > 0 then forget_trimmed(log) end
  note_change(log, job)
  return {'OK', 1}
end
if is_running then
  -- Its runner may come back and continue. If not, the job becomes LOST, and end_job() reports missing lines.
  redis.call('HSET', job, 'imported', ARGV[4])
  redis.call('SET', lease, WAITS, 'PX', ARGV[6])
else
  redis.call('UNLINK', lease)
end
-- Last: a server that is moving the slot redirects reads of a missing key, so note_change() can now fail.
redis.call('UNLINK', log)
pcall(note_change, log, job)
return {'OK', 1}
