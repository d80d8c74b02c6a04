-- The workflow's retention has changed: a running job is told, an ended one that only the store has goes accordingly.
-- KEYS  log, job
-- ARGV  the workflow's own retention in ms ('' for none), when the job ended, as its hash said ('' while it runs), ms from
--       now until its time is over
-- ->    1 when that is so, 0 of a job that is not what it was, or that the archive has whole
local log, job = KEYS[1], KEYS[2]
local finished_at, state, archived = unpack(redis.call('HMGET', job, 'finished_at', 'archive_state', 'archived'))
if (finished_at or '') ~= ARGV[2] or state == 'complete' or redis.call('EXISTS', job) == 0 then return 0 end
redis.call('HSET', job, 'retention_ms', ARGV[1])
if not finished_at then return 1 end
redis.call('PEXPIRE', log, ARGV[3])
if not archived then redis.call('PEXPIRE', job, ARGV[3]) end
return 1
