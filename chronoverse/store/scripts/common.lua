-- Prepended to every script. All keys of a job share the hash tag of its workflow.
-- Any client with write access may have written anything into these keys. So before its first write, each script checks
-- the types of its keys: with check_types(), or by reading each key, which also raises WRONGTYPE. It parses numbers
-- with whole_number().

-- Raises WRONGTYPE unless each key is absent or has the type of its kind. A kind is the part of a key's name after the
-- last colon. key_types() comes from store/keys.py: a table built by each script would make an append 3 % slower.
local function check_types(...)
  local types = key_types()
  for _, key in ipairs({...}) do
    local found, expected = redis.call('TYPE', key).ok, types[string.match(key, '[^:]*$')]
    if found ~= 'none' and found ~= expected then
      error(redis.error_reply(string.format('WRONGTYPE %s is a %s, not a %s', key, found, expected)))
    end
  end
end

-- Parses 1 to 15 decimal digits, else returns nil. tonumber() would also accept 'nan', '1e400', '0x10' and ' 7'.
local function whole_number(text)
  return text and #text <= 15 and string.match(text, '^%d+$') and tonumber(text) or nil
end

-- The server's time in Unix milliseconds.
local function now_ms()
  local time = redis.call('TIME')
  return time[1] * 1000 + math.floor(time[2] / 1000)
end

local function is_terminal(status)
  return status == 'COMPLETED' or status == 'FAILED' or status == 'CANCELED' or status == 'LOST'
end

-- Adds a job to the listing. A listed job keeps its time, unless the entry is of a deleted job with the same id.
local function list_job(jobs, job_id, created_ms, is_there)
  if is_there then
    redis.call('ZADD', jobs, 'NX', created_ms, job_id)
  else
    redis.call('ZADD', jobs, created_ms, job_id)
  end
end

-- The score of a listed job. Uses ZADD, because a runner's user may have no right to read scores.
local function listed_score(jobs, job_id)
  return redis.call('ZADD', jobs, 'XX', 'INCR', 0, job_id)
end

-- When the end of a job was first seen, in Unix ms of the server's clock, from the field end_seen_ms. Nil if it was not
-- seen, or if the time is in the future. Retention starts at this time, because the terminal entry's time is from its
-- writer's clock.
local function end_seen(value)
  local seen = whole_number(value)
  return seen and seen <= now_ms() and seen or nil
end

-- The value of a name in a flat list of field, value, ….
local function field(flat, name)
  for at = 1, #flat, 2 do
    if flat[at] == name then return flat[at + 1] end
  end
end

-- The server's uptime in seconds.
local function server_uptime()
  return tonumber(string.match(redis.call('INFO', 'server'), 'uptime_in_seconds:(%d+)'))
end

-- The lease's value while the job waits for its next attempt: its runner has ended the attempt, but not the job.
local WAITS = 'next'

-- Whether no runner holds the lease: it is absent, the job waits for its next attempt, or settle_job.lua has replaced
-- the token with the end of a grace period.
local function is_free(holder)
  return not holder or holder == WAITS or string.sub(holder, 1, 6) == 'grace:'
end

-- Whether the log still has this entry, whose fields, joined by NUL, have this SHA-1. True for an empty id.
local function holds_entry(log, id, sha1)
  if id == '' then return true end
  local found = redis.call('XRANGE', log, id, id)[1]
  return found and redis.sha1hex(table.concat(found[2], '\0')) == sha1
end

-- Whether the job was deleted: it then has a tombstone, a string. `key` is any key of the job, from which the
-- tombstone's name is derived. A key of another type is no tombstone: a foreign runner with only XADD must not be able
-- to delete jobs.
-- The tombstone is not in KEYS. It is usually absent, and while a Cluster moves a slot, the server refuses every script
-- of which only some KEYS are present (TRYAGAIN). During such a move, this function may miss a tombstone. But open and
-- register are then refused anyway, because the job's keys are absent too.
-- https://redis.io/docs/latest/operate/oss_and_stack/reference/cluster-spec/#multi-key-operations
local function is_deleted(key)
  return type(redis.pcall('GET', (string.gsub(key, '%a+$', 'deleted')))) == 'string'
end

-- Whether this attempt holds the lease. A runner may use its token for several attempts, so the attempt is compared as
-- well. If the hash was lost, only the token is.
local function holds_lease(job, lease, token, attempt)
  return redis.call('GET', lease) == token and (redis.call('HGET', job, 'attempt') or attempt) == attempt
end

-- Why this attempt cannot append: DELETED, CLOSED or FENCED. Nil while it holds the lease.
local function refusal(job, lease, token, attempt)
  if holds_lease(job, lease, token, attempt) then return nil end
  if is_deleted(lease) then return 'DELETED' end
  local status = redis.call('HGET', job, 'status')
  return is_terminal(status) and status ~= 'LOST' and 'CLOSED' or 'FENCED'
end

-- The keys of the labels in `argv` (from `at` on: key, value, …) that cannot be set: they have another value, the job
-- has ended, or it has 16 labels. Each label is a field of the hash. Setting a label to its current value is allowed.
local function refused_labels(job, argv, at)
  if #argv < at then return {} end
  local refused, count = {}, whole_number(redis.call('HGET', job, 'labels')) or 0
  local most = is_terminal(redis.call('HGET', job, 'status')) and 0 or 16
  for each = at, #argv, 2 do
    local value = redis.call('HGET', job, 'label:' .. argv[each])
    if not value then count = count + 1 end
    if value and value ~= argv[each + 1] or not value and count > most then refused[#refused + 1] = argv[each] end
  end
  return refused
end

-- Sets the labels in `argv`, which must not be refused. The hash's field `labels` counts them.
local function set_labels(job, argv, at)
  if #argv < at then return end
  local count = whole_number(redis.call('HGET', job, 'labels')) or 0
  for each = at, #argv, 2 do count = count + redis.call('HSETNX', job, 'label:' .. argv[each], argv[each + 1]) end
  redis.call('HSET', job, 'labels', string.format('%.0f', count))
end

-- XINFO STREAM of the log, which must exist, as a table. Raises WRONGTYPE if it is not a stream.
local function stream_info(log)
  local info, flat = {}, redis.call('XINFO', 'STREAM', log)
  for at = 1, #flat, 2 do info[flat[at]] = flat[at + 1] end
  return info
end

-- The id of the log's first entry, or '' without one. For an entry about lost lines, the id of the first lost line.
local function first_id(info)
  local entry = info['first-entry']
  if not entry then return '' end
  local from = field(entry[2], 'event') == 'lost' and whole_number(field(entry[2], 'from')) or 0
  local is_earlier = from > 0 and from < tonumber(string.match(entry[1], '^%d+'))
  return is_earlier and string.format('%.0f-0', from) or entry[1]
end

-- Whether an entry reports lines that a quota dropped.
local function is_quota_gap(entry)
  return entry and field(entry[2], 'event') == 'lost' and field(entry[2], 'reason') == 'quota'
end

-- Reads a job. Returns nil if there is neither a log nor a hash, or if the job is being deleted. Otherwise returns the
-- answer of settle_job.lua, the hash's `told`, when the end was first seen, and the terminal entry.
-- Reads only the known fields of the hash and the terminal entry. Skips fields of the hash longer than FIELD_BYTES, and
-- cuts those of the terminal entry. The reads also check the types of the keys.
-- Its functions are nested, so that scripts that do not read jobs do not pay for them.
local function read_job(log, job)
  local FIELDS = {
    'status', 'attempt', 'created_at', 'started_at', 'finished_at', 'exit_code', 'lines', 'dropped', 'archived',
    'archived_first', 'archive_state', 'archive_sha256', 'redactions', 'deleting', 'labels',
  }
  local TERMINAL = {event = true, status = true, exit_code = true, lines = true, dropped = true, timestamp = true}
  -- Longer than any value of ours. Other writers may have written megabytes, and thousands of jobs are read at once.
  local FIELD_BYTES = 256
  -- How many of a foreign log's last numbers are searched for its end. More would make each read of a running foreign
  -- job slower.
  local LOOK_BACK = 10

  local function is_end(entry)
    return entry and field(entry[2], 'event') == 'end'
  end

  -- The log's first terminal entry, or nil. It is the end, even if a foreign runner writes more. `last` is the log's
  -- last entry, and `noted` the id of the end once seen. Our own append writes nothing after an end.
  local function find_end(hash, last, noted, is_foreign)
    local entry = noted and redis.pcall('XRANGE', log, noted, noted)[1]
    if is_end(entry) then return entry end
    local found = is_end(last) and last or nil
    if not is_foreign and (found or not is_terminal(field(hash, 'status'))) then return found end
    local number = last and whole_number(string.match(last[1], '^%d+')) or 0
    local from = string.format('%.0f', math.max(number - LOOK_BACK + 1, 0))
    for _, each in ipairs(redis.call('XRANGE', log, from, '+', 'COUNT', LOOK_BACK)) do
      -- An entry such as 5-1, without its own line number, is not an end: readers report and skip it.
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

  -- When a foreign job was first listed, or ''. The listing is not in KEYS for the reason given at is_deleted().
  local function listed_at()
    local workflow, id = string.match(job, '^(.*}:)(.*):job$')
    local scores = redis.pcall('ZMSCORE', workflow .. 'jobs', id)
    return scores[1] or ''
  end

  -- The labels (at most 16) as key, value, …. Our scripts count them in `labels`; a foreign runner only sets them with
  -- HSET. Returns none if the hash is much longer than ours, or if the user may not HGETALL. Reading the whole hash of
  -- each job would take a tenth of this function's time.
  local function read_labels(hash, is_foreign)
    if not is_foreign and not field(hash, 'labels') then return {} end
    local length = redis.pcall('HLEN', job)
    local fields = type(length) == 'number' and length <= 100 and redis.pcall('HGETALL', job) or {}
    local values, keys, labels = {}, {}, {}
    for at = 1, #fields, 2 do
      local key = string.match(fields[at], '^label:([a-z][a-z0-9._/-]*)$')
      -- At most 256 characters of UTF-8, and a key of 63.
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

  local hash, values = {}, redis.call('HMGET', job, 'end_seen_ms', 'end_id', 'told', unpack(FIELDS))
  for at, name in ipairs(FIELDS) do
    local value = values[at + 3]
    if value and #value <= FIELD_BYTES then
      hash[#hash + 1] = name
      hash[#hash + 1] = value
    end
  end
  local exists = redis.call('EXISTS', log) == 1
  if #hash == 0 and not exists or field(hash, 'deleting') then return nil end
  -- Our own runners set both fields.
  local is_foreign = not (field(hash, 'attempt') and field(hash, 'created_at'))
  local info = exists and stream_info(log) or {}
  local first, terminal = info['first-entry'], exists and find_end(hash, info['last-entry'], values[2], is_foreign)
  -- The archive has the whole log. What a foreign runner wrote since that log expired comes after its end.
  if not terminal and field(hash, 'archive_state') == 'complete' and is_terminal(field(hash, 'status')) then
    exists, info, first = false, {}, nil
  end
  local started_at = first and field(first[2], 'timestamp') or ''
  return {
    hash,
    exists and first_id(info) or '',
    terminal and terminal[1] or info['last-generated-id'] or '',
    #started_at <= FIELD_BYTES and started_at or '',
    terminal and read_terminal(terminal[2]) or {},
    0,
    is_foreign and listed_at() or '',
    read_labels(hash, is_foreign),
  }, values[3], end_seen(values[1]), terminal
end

-- The job status in a terminal entry.
local function status_of_end(entry)
  local status, code = field(entry, 'status'), field(entry, 'exit_code') or ''
  if is_terminal(status) then return status end
  return (code == '' or code == '0') and 'COMPLETED' or 'FAILED'
end

-- Whether this server has the workflow's changes and running jobs, if they exist. While a Cluster moves the slot, a key
-- that is missing here may be on the other server, and must not be created twice. A command with several keys is then
-- refused.
local function has_changes(job)
  local workflow = string.match(job, '^.*}:')
  return type(redis.pcall('EXISTS', job, workflow .. 'changes', workflow .. 'running')) == 'number'
end

-- The id of this server's process, or '' if the user may not run INFO.
local function server_id()
  local info = redis.pcall('INFO', 'server')
  return type(info) == 'string' and string.match(info, 'run_id:(%x+)') or ''
end

-- Appends an entry to the changes. Returns false if the server refuses it, or if the key has another type.
local function add_change(changes, number, id, status, state, server)
  local values = {'id', id, 'status', status, 'state', state, 'server', server}
  local added = redis.pcall('XADD', changes, 'MAXLEN', '10000', string.format('%.0f-0', number), unpack(values))
  return type(added) == 'string'
end

-- Appends a change to the workflow's changes: the job's id, its status (which may be DELETED), and its state (from
-- read_job(), or nil). Ids begin at the current time, and increase by one. `server` is copied from the previous change,
-- because INFO would make `open` a quarter slower; changes.lua notices a new server. Returns whether the change was
-- appended. The keys are not in KEYS for the reason given at is_deleted().
local function append_change(job, status, state)
  if not has_changes(job) then return false end
  local workflow, id = string.match(job, '^(.*}:)(.*):job$')
  local changes = workflow .. 'changes'
  local info = redis.pcall('XINFO', 'STREAM', changes)
  local entry = not info.err and field(info, 'last-entry')
  local number = info.err and now_ms() or tonumber(string.match(field(info, 'last-generated-id'), '^%d+')) + 1
  local server = entry and (field(entry[2], 'server') or '') or server_id()
  redis.pcall(status == 'RUNNING' and 'SADD' or 'SREM', workflow .. 'running', id)
  local is_added = add_change(changes, number, id, status, state and cjson.encode(state) or '', server)
  -- A week.
  redis.pcall('PEXPIRE', changes, '604800000')
  return is_added
end

-- Appends a change if the job's status, attempt, exit code or labels differ from the previous change, which is in the
-- hash's `told` ('' if that one could not be appended). A foreign job without a hash counts as reported if it is
-- among the running jobs. `state` and `told` are results of read_job(), if the caller has them.
local function note_change(log, job, state, told)
  if not state then state, told = read_job(log, job) end
  if not state then return end
  local hash, terminal = state[1], state[5]
  local status, has_end, has_lines = field(hash, 'status'), #terminal > 0, state[3] ~= '' and state[3] ~= '0-0'
  if has_end then
    status = status_of_end(terminal)
  elseif not is_terminal(status) then
    status = (has_lines or status == 'RUNNING') and 'RUNNING' or 'PENDING'
  end
  local attempt = field(hash, 'attempt') or has_lines and '1' or ''
  local labels, code = table.concat(state[8], '\0'), field(has_end and terminal or hash, 'exit_code') or ''
  local now = string.format('%s %s %s %s', status, attempt, code, labels == '' and '' or redis.sha1hex(labels))
  if not told and status == 'RUNNING' and not (field(hash, 'attempt') and field(hash, 'created_at')) and has_changes(job) then
    local workflow, id = string.match(job, '^(.*}:)(.*):job$')
    if redis.pcall('SADD', workflow .. 'running', id) ~= 1 then told = 'RUNNING 1  ' end
  end
  if now == told then return end
  local is_told = append_change(job, status, state)
  if #hash > 0 or redis.call('EXISTS', job) == 1 then redis.pcall('HSET', job, 'told', is_told and now or '') end
end

-- Returns the log's last number, and why nothing can be appended: CLOSED after a terminal entry, TAINTED if the ids are
-- not 1-0, 2-0, 3-0, … (the first value is then the last id), else nil.
-- Also returns whether the log exists, and whether it ends with lines that a quota dropped. The hash's field `skipped`
-- is the last dropped number, which the log may not contain yet: see name_skipped().
-- Raises WRONGTYPE if either key has another type. `values` are the hash's `archived` and `skipped`, if the caller has
-- read them.
-- Redis counts all entries ever added, and keeps the count across trims, restarts and rewrites. So comparing it with
-- the last number checks all ids in O(1). Archived lines keep their numbers if the log is lost: the next number follows
-- them.
local function head(log, job, values)
  values = values or redis.call('HMGET', job, 'archived', 'skipped')
  local archived, skipped = whole_number(values[1]) or 0, whole_number(values[2]) or 0
  if redis.call('EXISTS', log) == 0 then return archived, nil, false end
  local info = stream_info(log)
  local number, part = string.match(info['last-generated-id'], '^(%d+)%-(%d+)$')
  local last_entry = info['last-entry']
  if last_entry and field(last_entry[2], 'event') == 'end' then return tonumber(number), 'CLOSED', true end
  if part ~= '0' or tonumber(number) ~= info['entries-added'] or tonumber(number) < archived then
    return info['last-generated-id'], 'TAINTED', true
  end
  return math.max(tonumber(number), skipped), nil, true, is_quota_gap(last_entry)
end

-- Creates a missing log, empty and with `last` as its last number, as if all lines had been trimmed. Returns the error
-- of the first write, the only one that can be refused for lack of memory.
local function resume_numbering(call, log, last)
  if last == 0 or redis.call('EXISTS', log) == 1 then return end
  local made = call('XGROUP', 'CREATE', log, 'made', '$', 'MKSTREAM')
  if made.err then return made end
  redis.call('XGROUP', 'DESTROY', log, 'made')
  redis.call('XSETID', log, string.format('%.0f-0', last), 'ENTRIESADDED', string.format('%.0f', last))
end

-- Records in the log that a quota dropped the missing numbers up to `last`, in one entry with the number `last`. If the
-- last entry already reports dropped lines and is not archived, replaces it. The XADD is the first write. Returns its
-- error.
local function name_skipped(call, log, job, last, now)
  local info = redis.call('EXISTS', log) == 1 and stream_info(log) or {['last-generated-id'] = '0-0'}
  local before, entry = tonumber(string.match(info['last-generated-id'], '^%d+')), info['last-entry']
  if before >= last then return end
  local archived, from = whole_number(redis.call('HGET', job, 'archived')) or 0, before + 1
  local named = is_quota_gap(entry) and whole_number(field(entry[2], 'from'))
  if named and named > archived then from = named end
  local id = string.format('%.0f-0', last)
  local made = call('XADD', log, id, 'event', 'lost', 'from', string.format('%.0f', from), 'reason', 'quota', 'timestamp', now)
  if type(made) == 'table' and made.err then return made end
  -- head() compares the last number with the number of entries added.
  redis.call('XSETID', log, id, 'ENTRIESADDED', string.format('%.0f', last))
  if from <= before then redis.call('XDEL', log, entry[1]) end
end

-- Appends one entry that reports the numbers `from` to `to` as missing, and the reason.
local function name_lost(call, log, from, to, reason, now)
  local id = string.format('%.0f-0', to)
  call('XADD', log, id, 'event', 'lost', 'from', string.format('%.0f', from), 'reason', reason, 'timestamp', now)
  -- head() compares the last number with the number of entries added.
  call('XSETID', log, id, 'ENTRIESADDED', string.format('%.0f', to))
end

-- Returns four functions that append to a log within the quotas. `last` is the log's last number. `write` takes a line,
-- whose number must be the next one. `name_missing` takes the first of some missing numbers, their count, and the time.
-- `close` takes the number after the last one and the time, and returns how many lines were dropped. `charge` takes
-- other bytes that count towards the quotas, and returns whether there is room; if not, all later lines are dropped.
-- `bytes` and `left_out_before` are the hash's `bytes` and `left_out`; the other arguments are results of head().
-- Without memory, the first write raises an error. It is an XADD, or the write that enables it.
local function line_writer(log, job, bytes, left_out_before, exists, last, ends_in_gap)
  -- Bytes left for the job and for today, by the workflow's own quotas (0 is none) or else the default ones. Bytes are
  -- only counted if there is a quota, since that takes two more writes. A settings key of another type counts as empty.
  -- It is not in KEYS for the reason given at is_deleted(); if it is absent, it is not written.
  local settings = string.match(job, '^.*}') .. ':settings'
  local set = redis.pcall('HMGET', settings, 'job_bytes', 'day_bytes', 'common_job_bytes', 'common_day_bytes', 'day', 'bytes_today')
  local job_bound, day_bound = whole_number(set[1] or set[3]) or 0, whole_number(set[2] or set[4]) or 0
  local is_bounded, job_bytes, day_bytes, room, today = job_bound + day_bound > 0, 0, 0, math.huge, ''
  if is_bounded then
    today = string.format('%.0f', math.floor(now_ms() / 86400000))
    job_bytes, day_bytes = whole_number(bytes) or 0, set[5] == today and whole_number(set[6]) or 0
    if job_bound == 0 then job_bound = math.huge end
    if day_bound == 0 then day_bound = math.huge end
    room = math.min(job_bound - job_bytes, day_bound - day_bytes)
    if room <= 0 then room = -1 end
  end
  local used, stored, left_out, call = 0, 0, 0, redis.call
  if not exists then resume_numbering(call, log, last) end

  local function close_gap(timestamp)
    name_skipped(call, log, job, last, timestamp)
    ends_in_gap = false
  end

  local function charge(size)
    used = used + size
    if used > room then return false end
    stored = used
    return true
  end

  local function write(number, timestamp, stream, partial, text)
    -- An empty line counts as one byte. Otherwise a log of empty lines would be unlimited.
    if not charge(math.max(#text, 1)) then
      left_out = left_out + 1
      return
    end
    if ends_in_gap then close_gap(timestamp) end
    local id = string.format('%d-0', number)
    if partial == '' then
      call('XADD', log, id, 'timestamp', timestamp, 'message', text, 'stream', stream)
    else
      call('XADD', log, id, 'timestamp', timestamp, 'message', text, 'stream', stream, 'partial', '1')
    end
  end

  local function name_missing(number, count, timestamp)
    -- After a dropped line, these numbers belong to the same gap.
    if left_out > 0 then return end
    if ends_in_gap then close_gap(timestamp) end
    name_lost(call, log, number, number + count - 1, 'missing', timestamp)
  end

  local function close(next_number, now)
    if left_out > 0 then
      -- Readers see the gap immediately. Its end is recorded with the next line, or at the job's end.
      if not ends_in_gap then name_skipped(call, log, job, next_number - 1, now) end
      redis.call('HSET', job, 'skipped', string.format('%.0f', next_number - 1))
      redis.call('HSET', job, 'left_out', string.format('%.0f', left_out + (whole_number(left_out_before) or 0)))
      -- The quota counts as used up, so that no later, shorter line is stored.
      if job_bound - job_bytes <= day_bound - day_bytes then
        job_bytes = math.max(job_bytes, job_bound - stored)
      else
        day_bytes = math.max(day_bytes, day_bound - stored)
      end
    end
    if is_bounded and used > 0 then
      redis.call('HSET', job, 'bytes', string.format('%.0f', job_bytes + stored))
      redis.call('HSET', settings, 'day', today, 'bytes_today', string.format('%.0f', day_bytes + stored))
    end
    return left_out
  end

  return write, name_missing, close, charge
end

-- Trims the log up to a number, but keeps its last entry.
local function trim_log(log, number)
  if redis.call('EXISTS', log) == 0 then return end
  local last = tonumber(string.match(stream_info(log)['last-generated-id'], '^%d+'))
  redis.call('XTRIM', log, 'MINID', string.format('%.0f-0', math.min(number, last - 1) + 1))
end

-- Removes the text of trimmed entries, which stays in memory and in snapshots as long as another entry of their node
-- exists. Adds all entries again, under the same ids. Returns 0 if they are more than a thousand or 1 MiB, else 1.
local function forget_trimmed(log)
  if redis.call('EXISTS', log) == 0 then return 1 end
  local info = stream_info(log)
  if info.length == 0 then return 1 end
  if info.length > 1000 then return 0 end
  local entries, bytes, after = {}, 0, '-'
  repeat
    local page = redis.call('XRANGE', log, after, '+', 'COUNT', 10)
    for _, entry in ipairs(page) do
      if #entry[2] > 4000 then return 0 end -- more than unpack() can return
      for _, value in ipairs(entry[2]) do bytes = bytes + #value end
      if bytes > 2 ^ 20 then return 0 end
      entries[#entries + 1], after = entry, '(' .. entry[1]
    end
  until #page < 10
  -- The last id cannot go below the last deleted one (XDEL), which can only be lowered to 0-1.
  local start = info['max-deleted-entry-id'] == '0-0' and '0-0' or '0-1'
  redis.call('XSETID', log, info['last-generated-id'], 'ENTRIESADDED', info['entries-added'], 'MAXDELETEDID', start)
  redis.call('XTRIM', log, 'MAXLEN', 0)
  redis.call('XSETID', log, start, 'ENTRIESADDED', 0, 'MAXDELETEDID', start)
  for _, entry in ipairs(entries) do redis.call('XADD', log, entry[1], unpack(entry[2])) end
  redis.call('XSETID', log, info['last-generated-id'], 'ENTRIESADDED', info['entries-added'], 'MAXDELETEDID', info['max-deleted-entry-id'])
  return 1
end

-- A job's retention in ms: its workflow's, else the default. The workflow's is copied to the job's hash, so that
-- scripts need not read the settings. If that key were in KEYS and absent, a Cluster would refuse the script while it
-- moves the slot.
local function retention_of(job, common)
  local own = whole_number(redis.call('HGET', job, 'retention_ms'))
  return own and string.format('%.0f', own) or common
end

-- Ends a job: writes the terminal entry and the hash, and starts the retention. Returns the terminal entry's id.
-- Returns false, without a write, if the entry's number would have more than 15 digits, or (LOST only) if the server
-- refuses the write. The first XADD is the first write, and the only one that can be refused for lack of memory. An
-- archived job's hash is kept until the archive is deleted.
-- If the job was imported from the archive and its runner has not come back, the number of further lines is unknown:
-- one entry with its own number reports them as lost. `dropped` is the runner's count; lines dropped by a quota are
-- added. `no_runner` is true if another client ends the job.
local function end_job(log, job, last, status, exit_code, dropped, now, retention, no_runner)
  local number = tonumber(last) or tonumber(string.match(last, '^%d+'))
  if number >= 999999999999999 then return false end
  local call = status == 'LOST' and redis.pcall or redis.call
  if resume_numbering(call, log, number) or name_skipped(call, log, job, number, now) then return false end
  if (status == 'LOST' or no_runner) and redis.call('HGET', job, 'imported') == string.format('%.0f', number) then
    number = number + 1
    local from = string.format('%.0f', number)
    local added = call('XADD', log, from .. '-0', 'event', 'lost', 'from', from, 'timestamp', now)
    if type(added) == 'table' then return false end
  end
  local lines = string.format('%.0f', number)
  dropped = string.format('%.0f', (tonumber(dropped) or 0) + (whole_number(redis.call('HGET', job, 'left_out')) or 0))
  local entry = {'event', 'end', 'status', status, 'lines', lines, 'dropped', dropped, 'timestamp', now}
  if exit_code ~= '' then
    entry[#entry + 1] = 'exit_code'
    entry[#entry + 1] = exit_code
  end
  local id = call('XADD', log, string.format('%.0f-0', number + 1), unpack(entry))
  if type(id) == 'table' and id.err then return false end
  redis.call('HSET', job, 'status', status, 'lines', lines, 'dropped', dropped, 'finished_at', now)
  redis.call('HSET', job, 'end_seen_ms', string.format('%.0f', now_ms()))
  if exit_code ~= '' then redis.call('HSET', job, 'exit_code', exit_code) end
  note_change(log, job)
  retention = retention_of(job, retention)
  redis.call('PEXPIRE', log, retention)
  -- The marks of OpenTelemetry log records: a sender that repeats a record still gets the same answer. The key is not
  -- in KEYS for the reason given at is_deleted().
  redis.pcall('PEXPIRE', (string.gsub(log, '%a+$', 'files')), retention)
  if not redis.call('HGET', job, 'archived') then redis.call('PEXPIRE', job, retention) end
  return id
end
