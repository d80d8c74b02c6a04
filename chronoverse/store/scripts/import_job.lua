-- Creates a job from its archive, if the store has no such job or an older state of it.
-- KEYS  log, job, lease, archive, jobs
-- ARGV  job id, creation time (Unix ms), first and last number of the chunks, created_at ('' if unknown), how many ms a
--       job without an end waits for its runner ('' if it has ended), its number of redactions, 1 if the store has lost
--       data (archivers then delete no objects), number of the following arguments that are fields of the hash as
--       field, value, …; then the chunks, each as last number, record, bytes of its messages, and number of lines that a
--       quota dropped (0 if unknown)
-- ->    OK 1 (created), 0 (the store already has it), 2 (its runner has come back, but has not yet resent its lines) or
--       3 (the store has another job with this id) or 4 (lines were redacted since the chunks were read) | DELETED
-- A store restored from an old copy has an older state of a job: it lacks the last lines of the chunks, or a redaction
-- of a complete archive. It is the same job if it has the same creation time, the first of the chunks, or a line 1 with
-- the same time (that chunk may have been merged since). A runner that came back before this call has restarted its
-- log, with a first entry that reports the lines from 1 on as lost: the chunks and the times are then added. Chunks
-- whose lines it has resent do not count towards its quota. If lines were redacted, the resent ones are trimmed: they
-- have the old text. A runner that continues an old copy reports the lines after it as lost: the chunks then replace
-- all lines that they have, without a change to the quota.
local log, job, lease, archive, jobs = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
local last, redactions, fields = tonumber(ARGV[4]), tonumber(ARGV[7]), tonumber(ARGV[9])
local records = 10 + fields

-- The time of line 1 in the store: from its first record (the frame's earliest time) or its log. Nil without either.
local function first_time()
  local record = redis.call('ZRANGE', archive, 0, 0)[1]
  local entry = not record and redis.call('XRANGE', log, '1-0', '1-0')[1]
  if entry then return field(entry[2], 'timestamp') end
  local is_json, chunk = pcall(cjson.decode, record or '')
  local frame = is_json and type(chunk) == 'table' and type(chunk.frames) == 'table' and chunk.frames[1]
  return type(frame) == 'table' and chunk.first == 1 and frame[4] or nil
end

-- Whether the log reports lost lines among those from a number on that the chunks have.
local function lacks_lines(from)
  while from <= last do
    local page = redis.call('XRANGE', log, string.format('%.0f-0', from), '+', 'COUNT', 100)
    for _, entry in ipairs(page) do
      local is_gap = field(entry[2], 'event') == 'lost' and (field(entry[2], 'reason') or 'lost') == 'lost'
      if is_gap and (whole_number(field(entry[2], 'from')) or last) <= last then return true end
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

-- Of the chunks without a record: whether one was redacted, and whether one is of lost lines, which the store can have.
local function compare_chunks()
  local is_redacted, is_lost = false, false
  for at = records, #ARGV, 4 do
    local record = ARGV[at + 1]
    if not redis.call('ZSCORE', archive, record) then
      is_redacted = is_redacted or redactions_in(record) > 0
      is_lost = is_lost or string.find(record, '-lost.jsonl', 1, true) ~= nil
    end
  end
  return is_redacted, is_lost
end

-- Whether the store has recorded a redaction since the chunks were read.
local function has_later_redaction()
  for _, record in ipairs(redis.call('ZRANGE', archive, 0, -1)) do
    if redactions_in(record) > redactions then return true end
  end
  return false
end

check_types(log, job, lease, archive, jobs)
if is_deleted(lease) then return {'DELETED'} end
local is_known, goes_on, is_behind = redis.call('EXISTS', log, job) > 0, false, false
local lacks_to, trim_to = math.huge, 0
local redacted = whole_number(redis.call('HGET', job, 'redactions')) or 0
if is_known then
  local created_at, archived, deleting = unpack(redis.call('HMGET', job, 'created_at', 'archived', 'deleting'))
  local stored, problem, has_log = head(log, job)
  if deleting or problem == 'TAINTED' then return {'OK', 0} end
  if problem == 'CLOSED' then stored = stored - 1 end
  local begin, holder = has_log and not archived and stream_info(log)['first-entry'], redis.call('GET', lease)
  local lacks = begin and field(begin[2], 'event') == 'lost' and field(begin[2], 'from') == '1'
  goes_on = lacks and stored >= last
  if goes_on then
    -- The entry about lost lines has the number of the last one: readers must not find it instead of an archived line.
    lacks_to = tonumber(string.match(begin[1], '^%d+'))
    trim_to = redactions > 0 and last or lacks_to <= last and lacks_to or 0
  end
  local began = ARGV[3] == '1' and ARGV[5] ~= '' and first_time() or nil
  local is_same = created_at and created_at == ARGV[5] or redis.call('ZSCORE', archive, ARGV[records + 1]) or began == ARGV[5]
  local is_complete = field({unpack(ARGV, 10, records - 1)}, 'archive_state') == 'complete'
  local is_older = stored < last or (redacted < redactions and is_complete)
  local went_back = is_same and is_older and is_free(holder)
  local is_old = ARGV[6] ~= '' and ARGV[8] == '1' and is_same
  archived = whole_number(archived) or 0
  if is_old and not goes_on and stored >= last and archived <= last then
    local is_redacted, is_lost = compare_chunks()
    is_behind = not is_lost and (is_redacted or lacks_lines(archived + 1))
    if is_behind then goes_on, lacks_to, trim_to = true, 0, last end
  end
  if not goes_on and not went_back then
    local lacks_more = lacks or (not has_log and archived == 0) or (is_old and stored < last)
    local still_sends = ARGV[6] ~= '' and not is_free(holder) and lacks_more
    local is_other = began and not is_same and not lacks
    return {'OK', still_sends and 2 or is_other and 3 or 0}
  end
  if redacted > redactions and has_later_redaction() then return {'OK', 4} end
end

-- Only the first write can be refused for lack of memory.
redis.call('HSET', job, 'archived', ARGV[4], 'archived_first', ARGV[3])
local counts = goes_on and redis.call('HMGET', job, 'bytes', 'left_out', 'skipped') or {}
local bytes, imported = whole_number(counts[1]) or 0, {}
-- Readers see the chunks' gaps, not those of resent lines. Lines dropped later are the newest.
local left_out = math.min(whole_number(counts[2]) or 0, math.max((whole_number(counts[3]) or 0) - last, 0))
for at = records, #ARGV, 4 do
  redis.call('ZADD', archive, ARGV[at], ARGV[at + 1])
  imported[ARGV[at + 1]] = true
  if tonumber(ARGV[at]) <= lacks_to then bytes = bytes + tonumber(ARGV[at + 2]) end
  left_out = left_out + tonumber(ARGV[at + 3])
end
-- Afterwards: while a Cluster moves a slot, a key that becomes empty cannot be written again.
for _, record in ipairs(redis.call('ZRANGE', archive, 0, -1)) do
  if not imported[record] then redis.call('ZREM', archive, record) end
end
if bytes > 0 then redis.call('HSET', job, 'bytes', string.format('%.0f', bytes)) end
if left_out > 0 or counts[2] then redis.call('HSET', job, 'left_out', string.format('%.0f', left_out)) end
redis.call('PERSIST', job)
if redactions > redacted then redis.call('HSET', job, 'redactions', ARGV[7]) end
if goes_on then
  for at = 10, records - 1, 2 do
    local is_time = ARGV[at] == 'created_at' or ARGV[at] == 'started_at'
    if is_time and not is_behind then redis.call('HSET', job, ARGV[at], ARGV[at + 1]) end
  end
  list_job(jobs, ARGV[1], ARGV[2], is_behind)
  redis.call('XTRIM', log, 'MINID', string.format('%.0f-0', trim_to + 1))
  if redactions > 0 then forget_trimmed(log) end
  note_change(log, job)
  return {'OK', 1}
end
redis.call('HDEL', job, 'finished_at', 'exit_code', 'lines', 'dropped', 'end_seen_ms', 'end_id')
redis.call('HDEL', job, 'archive_state', 'archive_sha256', 'archive_shapes', 'swept')
for at = 10, records - 1, 2 do redis.call('HSET', job, ARGV[at], ARGV[at + 1]) end
if ARGV[6] ~= '' then
  -- Its runner may come back and continue. If not, the job becomes LOST, and end_job() reports missing lines.
  redis.call('HSET', job, 'imported', ARGV[4])
  redis.call('SET', lease, WAITS, 'PX', ARGV[6])
else
  redis.call('UNLINK', lease)
end
list_job(jobs, ARGV[1], ARGV[2], is_known)
-- Last: a change needs the log, which a server that moves the slot would look for elsewhere.
redis.call('UNLINK', log)
pcall(note_change, log, job)
return {'OK', 1}
