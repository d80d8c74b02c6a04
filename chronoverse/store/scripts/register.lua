-- Registers a PENDING job, so that viewers can open it before it starts.
-- KEYS  job, jobs
-- ARGV  now (ISO 8601), now (Unix ms), job id, retention in ms (of a job that no runner ever opens)
-- ->    1 when it is new, 0 when it was there, -1 when it was deleted
local job, jobs = KEYS[1], KEYS[2]
if is_deleted(job) then return -1 end
check_types(job, jobs)
redis.call('ZADD', jobs, 'NX', ARGV[2], ARGV[3])
if redis.call('HSETNX', job, 'status', 'PENDING') == 0 then return 0 end
redis.call('HSETNX', job, 'created_at', ARGV[1])
redis.call('PEXPIRE', job, ARGV[4])
return 1
