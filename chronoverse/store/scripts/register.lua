-- Registers a PENDING job, so that viewers can open it before it starts.
-- KEYS  job, jobs
-- ARGV  now (ISO 8601), now (Unix ms), job id, retention in ms (of a job that no runner ever opens)
-- ->    OK new (1 or 0) score (the job's creation time in the listing) | DELETED
local job, jobs = KEYS[1], KEYS[2]
if is_deleted(job) then return {'DELETED'} end
check_types(job, jobs)
redis.call('ZADD', jobs, 'NX', ARGV[2], ARGV[3])
local new = redis.call('HSETNX', job, 'status', 'PENDING')
if new == 1 then
  redis.call('HSETNX', job, 'created_at', ARGV[1])
  redis.call('PEXPIRE', job, ARGV[4])
end
return {'OK', new, listed_score(jobs, ARGV[3])}
