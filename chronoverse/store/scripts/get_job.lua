-- What is known of a job at this instant; and a RUNNING job whose lease is gone is declared LOST here.
-- KEYS  log, job, lease
-- ARGV  now (ISO 8601), lease in ms, retention in ms, grace in ms
-- ->    nil when there is neither a log nor a job, or it is being deleted or was, else
--       {job hash as field, value, …; first id; last id; first entry's timestamp; terminal entry as field, value, …;
--       1 when the runner is suspected}
-- Of the hash and of the terminal entry only the fields that mean something, and none that is longer than FIELD_BYTES.
-- Only a leased job (it has an attempt) can be lost: a foreign runner without a lease never is. Whoever finds the lease
-- gone first only puts the end of the grace in its place: a server that stood still lets leases expire that nobody could
-- renew, and the runner, if it lives, opens again within the grace. While the server has been up for less than a lease
-- no runner had the time to renew, and while it refuses writes none could: nobody is judged then.
local log, job, lease = KEYS[1], KEYS[2], KEYS[3]
local FIELDS = {
  'status', 'attempt', 'created_at', 'started_at', 'finished_at', 'exit_code', 'lines', 'dropped', 'archived',
  'archived_first', 'archive_state', 'redactions', 'deleting',
}
local TERMINAL = {event = true, status = true, exit_code = true, lines = true, dropped = true, timestamp = true}
-- Longer than any of ours: of thousands of jobs looked at together each could bring megabytes that somebody else wrote.
local FIELD_BYTES = 256

local function read_hash()
  local hash, values = {}, redis.call('HMGET', job, unpack(FIELDS))
  for at, name in ipairs(FIELDS) do
    local value = values[at]
    if value and #value <= FIELD_BYTES then
      hash[#hash + 1] = name
      hash[#hash + 1] = value
    end
  end
  return hash
end

local function read_terminal(entry)
  local terminal = {}
  for at = 1, #entry, 2 do
    if TERMINAL[entry[at]] and #entry[at + 1] <= FIELD_BYTES then
      terminal[#terminal + 1] = entry[at]
      terminal[#terminal + 1] = entry[at + 1]
    end
  end
  return terminal
end

-- Remembers when the end of a job was first seen, and forgets it when another log is written under its name. The server
-- may refuse it; the next look tries again. For a foreign job this may be the first field of the hash, which then lives
-- as long as a job that only the store has.
local function note_end(ended)
  local seen = end_seen(job)
  if ended and not seen then
    local new = redis.call('EXISTS', job) == 0
    redis.pcall('HSET', job, 'end_seen_ms', string.format('%.0f', now_ms()))
    if new then redis.pcall('PEXPIRE', job, ARGV[3]) end
  elseif seen and not ended then
    redis.pcall('HSET', job, 'end_seen_ms', '')
  end
end

if is_deleted(lease) then
  -- A foreign runner knows nothing of tombstones: what it has written is taken away, unless the deletion itself still
  -- has to do that. A user who may not UNLINK leaves it to others.
  if type(redis.pcall('HGET', job, 'deleting')) ~= 'string' then redis.pcall('UNLINK', log, job, lease) end
  return false
end
check_types(log, job, lease)
local hash = read_hash()
local exists = redis.call('EXISTS', log) == 1
if #hash == 0 and not exists or field(hash, 'deleting') then return false end

local suspected = 0
if field(hash, 'status') == 'RUNNING' and field(hash, 'attempt') then
  local holder = redis.call('GET', lease)
  if is_free(holder) and server_uptime() * 1000 >= tonumber(ARGV[2]) then
    local last, shape = head(log, job)
    local now, grace = now_ms(), tonumber(ARGV[4])
    local over_at = holder and whole_number(string.sub(holder, 7))
    if over_at and over_at > now + grace then over_at = nil end
    if shape ~= 'CLOSED' and not over_at then
      redis.pcall('SET', lease, string.format('grace:%.0f', now + grace), 'PX', 20 * grace)
      suspected = 1
    elseif shape ~= 'CLOSED' and now < over_at then
      suspected = 1
    elseif shape ~= 'CLOSED' and close(log, job, last, 'LOST', '', '0', ARGV[1], ARGV[3]) then
      redis.call('DEL', lease)
      -- Both may have gone at once: a workflow may keep its jobs for no time at all.
      hash, exists = read_hash(), redis.call('EXISTS', log) == 1
      if #hash == 0 and not exists then return false end
    end
  end
end
local info = exists and stream_info(log) or {}
local first, last = info['first-entry'], info['last-entry']
local terminal = last and field(last[2], 'event') == 'end'
note_end(terminal or is_terminal(field(hash, 'status')))
if not exists then return {hash, '', '', '', {}, suspected} end
local started_at = first and field(first[2], 'timestamp') or ''
return {
  hash,
  first and first[1] or '',
  info['last-generated-id'],
  #started_at <= FIELD_BYTES and started_at or '',
  terminal and read_terminal(last[2]) or {},
  suspected,
}
