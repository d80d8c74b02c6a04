-- Opens a new attempt at a job: takes the lease, and returns the number of the next line.
-- KEYS  log, job, lease, jobs; settings, if the default quotas are known
-- ARGV  token, lease in ms, now (ISO 8601), now (Unix ms), job id, the workflow's own retention in ms ('' for none),
--       the number that the first line must get ('' for any), the default quotas in bytes for a job and for a day of
--       the workflow ('' if they are not known), then labels as key, value, …
-- ->    OK attempt next score (the job's creation time in the listing) | DELETED | HELD | CLOSED | TAINTED last-id |
--       GAP next, if the first line would get another number
--       | LABEL_SET key … (the labels that cannot be set)
-- The caller generates the token. If it repeats the call after a lost reply, it already has the lease, and nothing
-- changes.
local log, job, lease, jobs = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local token, ttl = ARGV[1], ARGV[2]

if is_deleted(lease) then return {'DELETED'} end
check_types(log, job, lease, jobs)
local last, problem, has_log = head(log, job)
local status, deleting, otlp, imported = unpack(redis.call('HMGET', job, 'status', 'deleting', 'otlp', 'imported'))
if problem == 'CLOSED' or is_terminal(status) or deleting then return {'CLOSED'} end
if problem == 'TAINTED' then return {'TAINTED', last} end

local holder = redis.call('GET', lease)
if not is_free(holder) and holder ~= token then return {'HELD'} end
if ARGV[7] ~= '' and holder ~= token and tonumber(ARGV[7]) ~= last + 1 then return {'GAP', last + 1} end
local refused = refused_labels(job, ARGV, 10)
if #refused > 0 then return {'LABEL_SET', unpack(refused)} end
-- No later command fails: all keys have the right type, and this first write is refused if memory is full.
list_job(jobs, ARGV[5], ARGV[4], has_log or redis.call('EXISTS', job) == 1)
local attempt = whole_number(redis.call('HGET', job, 'attempt')) or 0
if is_free(holder) then
  redis.call('SET', lease, token, 'PX', ttl)
  attempt = attempt + 1
end
redis.call('HSET', job, 'status', 'RUNNING', 'attempt', string.format('%.0f', attempt))
-- After this, log records are refused, even while the job waits for its next attempt.
if otlp or imported then redis.call('HSET', job, 'otlp', '0') end
-- A job with a log has begun earlier: its first entry and the listing have the times.
if not has_log then
  redis.call('HSETNX', job, 'created_at', ARGV[3])
  redis.call('HSETNX', job, 'started_at', ARGV[3])
end
set_labels(job, ARGV, 10)
if ARGV[6] ~= '' or redis.call('HGET', job, 'retention_ms') then redis.call('HSET', job, 'retention_ms', ARGV[6]) end
-- append.lua reads the quotas from the settings. A settings key of another type counts as empty.
if KEYS[5] then redis.pcall('HSET', KEYS[5], 'common_job_bytes', ARGV[8], 'common_day_bytes', ARGV[9]) end
redis.call('PERSIST', log)
redis.call('PERSIST', job)
redis.call('PEXPIRE', lease, ttl)
note_change(log, job)
return {'OK', attempt, last + 1, listed_score(jobs, ARGV[5])}
