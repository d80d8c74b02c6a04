#!lua flags=allow-oom
-- Applies a workflow's new retention to a job. A running job gets it as a field of its hash. An ended job that is not
-- archived gets a new time to live.
-- KEYS  log, job
-- ARGV  the workflow's own retention in ms ('' for none), the job's effective retention in ms
-- ->    1 if applied, 0 if there is no such job, or if it is fully archived
local log, job = KEYS[1], KEYS[2]

check_types(log, job)
local finished_at, state, archived, seen = unpack(redis.call('HMGET', job, 'finished_at', 'archive_state', 'archived', 'end_seen_ms'))
if state == 'complete' or redis.call('EXISTS', job) == 0 then return 0 end
redis.call('HSET', job, 'retention_ms', ARGV[1])
-- A foreign job has no finished_at.
seen = end_seen(seen)
if not finished_at and not seen then return 1 end
local now = now_ms()
local left = string.format('%.0f', (seen or now) + tonumber(ARGV[2]) - now)
redis.call('PEXPIRE', log, left)
-- As in end_job().
redis.pcall('PEXPIRE', (string.gsub(log, '%a+$', 'files')), left)
if not archived then redis.call('PEXPIRE', job, left) end
return 1
