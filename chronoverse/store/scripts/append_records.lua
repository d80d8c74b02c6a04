-- Appends the lines of OpenTelemetry log records, from any sender, to the log. Skips what the log already has, so
-- records may be sent again, even by many senders at once. For each source of numbered records, the key `files` has a
-- mark: the number of the last record appended. `batches` has the digests of the last batches, because records without
-- numbers have no mark, and a batch may have the end of one file and the beginning of the next.
-- KEYS  log, job, lease, files, batches, jobs
-- ARGV  now (ISO 8601), now (Unix ms), job id, digest of the batch, how many ms it is remembered, how many ms the log
--       waits for missing records, how many ms the job lives without records ('' forever), the status with which the
--       job ends after the lines ('' if it does not end), its exit code, retention in ms, '1' if a new job may begin,
--       the workflow's own retention in ms ('' for none), the default quotas in bytes for a job and for a day ('' if
--       they are not known), number of sources; for each source its id, and the digest of its record number 1 if the
--       batch has it; then runs: timestamp, stream, partial ('' or '1'), number of messages, source (0 for none),
--       number of the first record, how much each message adds to that number (0: all belong to one record), the first
--       record's time (Unix microseconds), the messages
-- ->    OK left_out begun score (begun: '1' for a new job, with its creation time in the listing) | WAIT left_out begun
--       score (records are missing; those before them were appended, and the job continues) | NEW (there is no such
--       job; nothing was done) | FILES (too many files) | DELETED | HELD | CLOSED | TAINTED last-id
-- A value in `files` has: the number of the last record, the digest of the first record, since when records after the
-- last one are missing (Unix ms, or 0), and the lowest number received after these.
-- A rotation starts a new file with the same name, whose numbers begin at 1 again; the digest of its first record
-- differs. Records of the old file may still arrive, and are recognized by their times and numbers: see mark_of(). Its
-- mark, `<id>:before`, has: its last record's number when the new file began, its last record's number now, the last
-- two values as above, and the time of the new file's first record.
local log, job, lease, files, batches, jobs = unpack(KEYS)
local argv, now, digest, status, call = ARGV, ARGV[1], ARGV[4], ARGV[8], redis.call
-- The highest last number of a log that can be appended to. A log without free numbers could not end.
local HIGHEST = 5e11
-- Maximum number of files per job, and the bytes of each mark, which count towards the quotas.
local MOST_FILES, FILE_BYTES = 10000, 100

check_types(log, job, lease, files, batches, jobs)
local time = now_ms()
if tonumber(call('ZSCORE', batches, digest) or 0) > time - ARGV[5] then return {'OK', 0, '', ''} end
if is_deleted(lease) then return {'DELETED'} end
local values = call('HMGET', job, 'archived', 'skipped', 'attempt', 'status', 'bytes', 'left_out', 'otlp', 'deleting', 'imported')
local last, problem, exists, ends_in_gap = head(log, job, values)
if problem == 'TAINTED' or last > HIGHEST then return {'TAINTED', last} end

local marks, at = {}, 16
for source = 1, tonumber(ARGV[15]) do
  local number, first, since, least
  local value, before = unpack(call('HMGET', files, argv[at], argv[at] .. ':before'))
  if value then
    number, first, since, least = string.match(value, '^(%d+) (%x*) (%d+) (%d+)$')
  elseif call('HLEN', files) >= MOST_FILES then
    return {'FILES'}
  end
  local mark = {id = argv[at], number = tonumber(number) or 0, first = first or '', since = tonumber(since) or 0}
  mark.least, mark.new_first, mark.is_new = tonumber(least) or 0, argv[at + 1], not value
  if before then
    local from, rest, missing_since, least_of_rest, ends = string.match(before, '^(%d+) (%d+) (%d+) (%d+) (-?%d+)$')
    mark.before = {number = tonumber(rest) or 0, since = tonumber(missing_since) or 0, least = tonumber(least_of_rest) or 0}
    mark.before.from, mark.before.ends = tonumber(from) or 0, tonumber(ends) or -math.huge
  end
  marks[source] = mark
  at = at + 2
end

-- Whether this record is the first one of a new file.
local function is_rotated(mark, number)
  return number == 1 and mark.number > 0 and mark.first ~= '' and mark.new_first ~= '' and mark.first ~= mark.new_first
end

-- The mark for a record: the old file's if the record belongs to the rest of the old file. Such a record is not later
-- than the new file's first record, and follows the last one of the old file. If it could belong to either, its number
-- decides: the new file's next number means the new file. (A program's times need not be in order.)
local function mark_of(mark, number, time)
  local before = mark.before
  if not before or number <= before.from or time > before.ends then return mark end
  local is_next, follows = number == mark.number + 1, number == before.number + 1 or number == before.open
  local is_of_rest = time < before.ends and (follows or not is_next) or follows and not is_next
  return is_of_rest and before or mark
end

-- Whether the log lacks a record of the batch.
local function has_news()
  if #marks == 0 then return true end
  local run = at
  while run <= #argv do
    local count, number = argv[run + 3], tonumber(argv[run + 5])
    local mark = mark_of(marks[tonumber(argv[run + 4])], number, tonumber(argv[run + 7]))
    if number + (count - 1) * argv[run + 6] > mark.number or is_rotated(mark, number) then return true end
    run = run + 8 + count
  end
  return false
end

local holder = call('GET', lease)
local is_new = not exists and last == 0 and not values[3] and (not values[4] or values[4] == 'PENDING')
if problem == 'CLOSED' or is_terminal(values[4]) or values[8] then
  return {has_news() and 'CLOSED' or 'OK', 0, '', ''}
end
-- A runner's first attempt makes the job its own. An imported job that waits could be a runner's or a sender's.
local is_of_records = values[7] == '1' or (not values[7] and values[9] and holder == WAITS)
if not is_free(holder) or not (is_new or is_of_records) then
  return {has_news() and 'HELD' or 'OK', 0, '', ''}
end
local begun, score = '', ''
if is_new then
  if ARGV[11] == '' then return {'NEW'} end
  -- This first write is refused if the server is out of memory.
  list_job(jobs, ARGV[3], ARGV[2], call('EXISTS', job) == 1)
  call('HSETNX', job, 'created_at', now)
  call('HSET', job, 'status', 'RUNNING', 'attempt', '1', 'started_at', now)
  if ARGV[12] ~= '' then call('HSET', job, 'retention_ms', ARGV[12]) end
  -- A settings key of another type counts as empty.
  local settings = string.match(job, '^.*}') .. ':settings'
  if ARGV[13] ~= '' then redis.pcall('HSET', settings, 'common_job_bytes', ARGV[13], 'common_day_bytes', ARGV[14]) end
  call('PERSIST', job)
  begun, score = '1', listed_score(jobs, ARGV[3])
end

local write, name_missing, close, charge = line_writer(log, job, values[5], values[6], exists, last, ends_in_gap)
local next_number, waits = last + 1, false
-- If the quota has no room for a file's mark, all records of the file are dropped.
for _, mark in ipairs(marks) do mark.is_left_out = mark.is_new and not charge(FILE_BYTES) end

-- Whether a record may be appended now: it follows the mark, or the log has waited long enough for the records in
-- between. It then takes the lowest number first; after twice that time, any number.
local function is_due(mark, number)
  if number <= mark.number + 1 then return number > mark.number end
  if mark.crosses then return true end
  if mark.since == 0 or mark.since > time then
    mark.since, mark.least = time, number
  end
  mark.least = math.min(mark.least, number)
  local waited, patience = time - mark.since, tonumber(ARGV[6])
  mark.crosses = waited >= patience and (number == mark.least or waited >= 2 * patience)
  waits = waits or not mark.crosses
  return mark.crosses
end

while at <= #argv do
  local timestamp, stream, partial, count = argv[at], argv[at + 1], argv[at + 2], tonumber(argv[at + 3])
  local mark, number, step = marks[tonumber(argv[at + 4])], tonumber(argv[at + 5]), tonumber(argv[at + 6])
  local record_time = tonumber(argv[at + 7])
  if mark then mark = mark_of(mark, number, record_time) end
  for message = at + 8, at + 7 + count do
    local is_wanted = true
    -- A record may have several lines, all with step 0.
    if mark and (step > 0 or number ~= mark.open) and not mark.is_left_out then
      if is_rotated(mark, number) then
        if mark.before or charge(FILE_BYTES) then
          mark.before = {from = mark.number, number = mark.number, since = mark.since, least = mark.least, ends = record_time}
        end
        mark.number = 0
      end
      is_wanted = is_due(mark, number)
      if is_wanted then
        local missing = number - mark.number - 1
        if missing > 0 then name_missing(next_number, missing, timestamp) end
        next_number = next_number + missing
        if number == 1 then mark.first = mark.new_first end
        mark.number, mark.open, mark.since, mark.least = number, number, 0, 0
      end
    end
    if is_wanted then
      write(next_number, timestamp, stream, partial, argv[message])
      next_number = next_number + 1
    end
    number = number + step
  end
  at = at + 8 + count
end
local left_out = close(next_number, now)
for _, mark in ipairs(marks) do
  if not mark.is_left_out then
    call('HSET', files, mark.id, string.format('%.0f %s %.0f %.0f', mark.number, mark.first, mark.since, mark.least))
  end
  local rest = mark.before
  if rest then
    local value = string.format('%.0f %.0f %.0f %.0f %.0f', rest.from, rest.number, rest.since, rest.least, rest.ends)
    call('HSET', files, mark.id .. ':before', value)
  end
end
if not values[7] then call('HSET', job, 'otlp', '1') end
if ARGV[7] == '' then
  call('SET', lease, WAITS)
else
  call('SET', lease, WAITS, 'PX', ARGV[7])
end
if begun ~= '' then note_change(log, job) end
if waits then return {'WAIT', left_out, begun, score} end
call('ZREMRANGEBYSCORE', batches, '-inf', time - ARGV[5])
call('ZADD', batches, time, digest)
call('PEXPIRE', batches, ARGV[5])
if status ~= '' and end_job(log, job, next_number - 1, status, ARGV[9], '0', now, ARGV[10]) then call('DEL', lease) end
return {'OK', left_out, begun, score}
