-- Settles what time has decided about a job, and reads it: a RUNNING job whose lease has expired is declared LOST here.
-- KEYS  log, job, lease
-- ARGV  now (ISO 8601), lease in ms, retention in ms, grace period in ms
-- ->    nil when there is neither a log nor a hash, and when the job is deleted or is being deleted; else
--       {job hash as field, value, …; first id; last id, or that of the terminal entry; first entry's timestamp; terminal
--       entry as field, value, …; 1 during the grace period of an expired lease; the score in the listing of a foreign
--       runner's job; its labels as key, value, …, sorted}
-- Only a job that has had a lease (it has an attempt) can be LOST. A foreign runner without a lease is never LOST.
-- The first call that finds the lease expired writes the end of a grace period into the lease. A server that stood still
-- lets leases expire which nobody could renew; a live runner opens the job again within the grace period. A call after
-- its end declares the job LOST. A job that waits for its next attempt has a lease without a runner, and is LOST when
-- that lease has expired. No job is declared LOST while the server has been up for less than a lease, since no
-- runner had time to renew, nor while it refuses writes, since no runner could.
local log, job, lease = KEYS[1], KEYS[2], KEYS[3]

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
  -- A foreign runner does not know of tombstones, so what it has written is removed here, unless the deletion of the job
  -- still continues and does it. A user who may not UNLINK leaves it to other callers.
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
      redis.pcall('SET', lease, string.format('grace:%.0f', now + grace), 'PX', 20 * grace)
      state[6] = 1
    elseif problem ~= 'CLOSED' and now < grace_end then
      state[6] = 1
    elseif problem ~= 'CLOSED' and end_job(log, job, last, 'LOST', '', '0', ARGV[1], ARGV[3]) then
      redis.call('DEL', lease)
      -- With a retention of 0 both keys are gone at once.
      state, told, seen, terminal = read_job(log, job)
      if not state then return false end
    end
  end
end
note_end(field(state[1], 'status'), terminal, seen)
-- A foreign runner notes no change. Of jobs that an older version of this program has written, those before it are not
-- known.
if told or (state[7] ~= '' and not seen) then note_change(log, job, state, told) end
return state
