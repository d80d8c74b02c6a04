-- Registers a PENDING job, so that viewers can open it before it starts.
-- KEYS  job, jobs
-- ARGV  now (ISO 8601), now (Unix ms), job id, retention in ms (if no runner ever opens the job), then labels as key,
--       value, …
-- ->    OK new (1 or 0) score (the job's creation time in the listing) | DELETED
--       | LABEL_SET key … (the labels that cannot be set; for an ended job, all that it does not have)
-- A job that a foreign runner has begun already exists. Its log is not in KEYS for the reason given at is_deleted().
local job, jobs = KEYS[1], KEYS[2]
if is_deleted(job) then return {'DELETED'} end
check_types(job, jobs)
local refused = refused_labels(job, ARGV, 5)
if #refused > 0 then return {'LABEL_SET', unpack(refused)} end
local log = string.gsub(job, 'job$', 'log')
local has_log = redis.call('EXISTS', log) == 1
list_job(jobs, ARGV[3], ARGV[2], has_log or redis.call('EXISTS', job) == 1)
local new = has_log and 0 or redis.call('HSETNX', job, 'status', 'PENDING')
if new == 1 then
  -- With a count, the labels of a foreign runner that holds a lease are read, too.
  redis.call('HSETNX', job, 'created_at', ARGV[1])
  redis.call('HSETNX', job, 'labels', '0')
  redis.call('PEXPIRE', job, ARGV[4])
end
set_labels(job, ARGV, 5)
note_change(log, job)
return {'OK', new, listed_score(jobs, ARGV[3])}
