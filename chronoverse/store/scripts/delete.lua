#!lua flags=allow-oom
-- Deletes the keys of a job whose objects are deleted, and removes it from the listing.
-- KEYS  log, job, archive lock, the other keys of the job, jobs
-- ARGV  token of the archive lock, job id
-- ->    OK | RUNS, if the job has begun again since it was marked | FENCED
local log, job, lock, jobs = KEYS[1], KEYS[2], KEYS[3], KEYS[#KEYS]

-- The other keys are deleted regardless of their types.
check_types(job, lock, jobs)
if redis.call('GET', lock) ~= ARGV[1] then return {'FENCED'} end
-- mark_deleting.lua leaves no mark if there is neither a log nor a hash. Without a tombstone, a runner may have created
-- them since.
local is_marked = redis.call('HGET', job, 'deleting')
local is_new = redis.call('EXISTS', log, job) > 0 and not is_marked
if is_new and not is_deleted(log) then return {'RUNS'} end
redis.call('UNLINK', unpack(KEYS, 1, #KEYS - 1))
if redis.call('ZREM', jobs, ARGV[2]) == 1 and not is_marked then append_change(job, 'DELETED') end
return {'OK'}
