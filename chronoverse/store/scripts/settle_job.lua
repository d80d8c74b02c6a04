-- Reads a job. Declares a RUNNING job LOST if its lease has expired.
-- KEYS  log, job, lease
-- ARGV  now (ISO 8601), lease in ms, retention in ms, grace period in ms
-- ->    nil if there is neither a log nor a hash, or if the job is deleted or being deleted; else {job hash as field,
--       value, …; first id; last id, or the terminal entry's; first entry's timestamp; terminal entry as field, value,
--       …; 1 during the grace period of an expired lease; score of a foreign job in the listing; labels as key, value,
--       …, sorted}
-- Only a job that has had a lease (it has an attempt) can become LOST, not a foreign job without a lease.
-- The first call that finds the lease expired writes the end of a grace period into the lease. A server that hung can
-- expire leases that nobody could renew; a live runner reopens the job within the grace period. A later call declares
-- the job LOST. A job that waits for its next attempt has a lease without a runner, and becomes LOST when it expires.
-- No job is declared LOST while the server has been up for less than a lease, because no runner had time to renew, nor
-- while it refuses writes, because no runner could.
local log, job, lease = KEYS[1], KEYS[2], KEYS[3]

-- The retention in ms of a job ended by a foreign runner: its workflow's, else the default. Only our own runners put it
-- into the hash. The settings are not in KEYS for the reason given at is_deleted().
local function foreign_retention()
  local own = redis.pcall('HGET', string.match(job, '^.*}') .. ':settings', 'retention_seconds')
  own = type(own) == 'string' and whole_number(own)
  return retention_of(job, own and string.format('%.0f', own * 1000) or ARGV[3])
end

-- Stores when and where the end of a job was first seen, and clears that if the job's log was replaced by a new one. If
-- the server refuses the write, the next call retries. This also ends jobs that a foreign runner has ended with XADD
-- only: their keys expire like those of other jobs, unless the runner has set an earlier time. Without a stored status,
-- a foreign job that had a lease would become LOST when its log is gone.
local function note_end(status, entry, seen)
  local ended = entry or is_terminal(status)
  if ended and not seen then
    redis.pcall('HSET', job, 'end_seen_ms', string.format('%.0f', now_ms()), 'end_id', entry and entry[1] or '')
    if status == 'RUNNING' then redis.pcall('HSET', job, 'status', status_of_end(entry[2])) end
    local retention = foreign_retention()
    redis.pcall('PEXPIRE', log, retention, 'NX')
    if not redis.call('HGET', job, 'archived') then redis.pcall('PEXPIRE', job, retention, 'NX') end
  elseif seen and not ended then
    redis.pcall('HSET', job, 'end_seen_ms', '', 'end_id', '')
    redis.pcall('PERSIST', log)
  end
end

if is_deleted(lease) then
  -- A foreign runner ignores tombstones. Its writes are removed here, unless a deletion in progress does that. If this
  -- user may not UNLINK, other callers do it.
  if type(redis.pcall('HGET', job, 'deleting')) ~= 'string' then redis.pcall('UNLINK', log, job, lease) end
  return false
end
local state, told, seen, terminal = read_job(log, job)
if not state then return false end

if field(state[1], 'status') == 'RUNNING' and field(state[1], 'attempt') then
  local holder = redis.call('GET', lease)
  if is_free(holder) and holder ~= WAITS and server_uptime() * 1000 >= tonumber(ARGV[2]) then
    local last, problem = head(log, job)
    local now, grace = now_ms(), tonumber(ARGV[4])
    local grace_end = holder and whole_number(string.sub(holder, 7))
    if grace_end and grace_end > now + grace then grace_end = nil end
    if problem ~= 'CLOSED' and not grace_end then
      -- Kept for a week: the next call may be days later.
      redis.pcall('SET', lease, string.format('grace:%.0f', now + grace), 'PX', 604800000)
      state[6] = 1
    elseif problem ~= 'CLOSED' and now < grace_end then
      state[6] = 1
    elseif problem ~= 'CLOSED' and end_job(log, job, last, 'LOST', '', '0', ARGV[1], ARGV[3]) then
      redis.call('DEL', lease)
      -- With a retention of 0, both keys are already gone.
      state, told, seen, terminal = read_job(log, job)
      if not state then return false end
    end
  end
end
note_end(field(state[1], 'status'), terminal, seen)
-- A foreign runner appends no changes. Earlier changes of jobs written by an older version are unknown.
if told or (state[7] ~= '' and not seen) then note_change(log, job, state, told) end
return state
