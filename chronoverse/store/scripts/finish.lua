-- Ends a job: writes the terminal entry and the job's hash, deletes the lease and starts the retention. All or nothing.
-- With the status PENDING, ends only the attempt: the job stays RUNNING, and its lease shows that it waits for its next
-- attempt. It becomes LOST if none comes in time. If the job later ends as COMPLETED or FAILED, its exit code is the
-- highest of its own and of those of the attempts that count.
-- With the token '', ends a job that no runner holds.
-- KEYS  log, job, lease
-- ARGV  token ('' without a runner: then the next number is '', and the attempt is the workflow's own retention in ms),
--       now (ISO 8601), status, exit code ('' if unknown), dropped, retention in ms (PENDING: how long the job waits,
--       in ms), next number, attempt, '1' if the exit code of a PENDING attempt counts for the job
-- ->    OK | GAP expected | DELETED | FENCED | TAINTED last-id (no number is left)
--       | UNKNOWN (without a runner: there is no job) | RUNS (a runner holds the job)
--       | OK status exit-code (without a runner: the job had already ended; these are the values for its end)
-- A call repeated after a lost reply gets OK again: its attempt has already ended with this status after this line. The
-- line is compared because a job that was declared LOST may have the same status and attempt, but lack lines.
local log, job, lease = KEYS[1], KEYS[2], KEYS[3]
local token, now, status, exit_code, dropped, retention = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5], ARGV[6]

check_types(log, job, lease)
local last, problem = head(log, job)
local ended = redis.call('HMGET', job, 'status', 'attempt', 'lines', 'worst_exit_code', 'end_seen_ms', 'deleting')
local worst = whole_number(ended[4]) or 0
if (status == 'COMPLETED' or status == 'FAILED') and worst > math.max(tonumber(exit_code) or 0, 0) then
  status, exit_code = 'FAILED', ended[4]
end
if token == '' then
  local holder = redis.call('GET', lease)
  if is_deleted(lease) or ended[6] then return {'DELETED'} end
  if redis.call('EXISTS', log, job) == 0 then return {'UNKNOWN'} end
  if problem == 'CLOSED' or is_terminal(ended[1]) or end_seen(ended[5]) then return {'OK', status, exit_code} end
  -- If the lease has expired, settle_job.lua decides. A foreign runner has no attempt.
  if holder ~= WAITS and (holder or ended[2]) then return {'RUNS'} end
elseif not holds_lease(job, lease, token, ARGV[8]) then
  if is_deleted(lease) then return {'DELETED'} end
  if status == 'PENDING' and redis.call('GET', lease) == WAITS and not problem then
    return {ended[2] == ARGV[8] and tonumber(ARGV[7]) == last + 1 and 'OK' or 'FENCED'}
  end
  local is_same = ended[1] == status and ended[2] == ARGV[8] and whole_number(ended[3]) == tonumber(ARGV[7]) - 1
  return {is_same and 'OK' or 'FENCED'}
end
if problem == 'CLOSED' then return {'FENCED'} end
if token ~= '' and not problem and tonumber(ARGV[7]) ~= last + 1 then return {'GAP', last + 1} end

if status == 'PENDING' then
  redis.call('SET', lease, WAITS, 'PX', retention)
  if ARGV[9] == '1' and (tonumber(exit_code) or 0) > worst then redis.call('HSET', job, 'worst_exit_code', exit_code) end
  return {'OK'}
end
if token == '' and ARGV[8] ~= '' then redis.call('HSET', job, 'retention_ms', ARGV[8]) end
local id = end_job(log, job, last, status, exit_code, dropped, now, retention, token == '')
if not id then return {'TAINTED', last} end
-- Anything that a foreign runner writes later comes after this end.
if token == '' then redis.call('HSET', job, 'end_id', id) end
redis.call('DEL', lease)
return {'OK'}
