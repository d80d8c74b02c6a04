-- The last of a job whose objects are gone: its keys, and its place in the listing.
-- KEYS  log, job, lease, archive lease, archive, audit, garbage, jobs
-- ARGV  archiving token, job id
-- ->    OK | HELD, when it has begun anew since it was doomed | FENCED
local log, job, sealer, jobs = KEYS[1], KEYS[2], KEYS[4], KEYS[8]

-- Of any type the others are deleted.
check_types(job, sealer, jobs)
if redis.call('GET', sealer) ~= ARGV[1] then return {'FENCED'} end
-- Where there was neither a log nor a hash, and no tombstone was left, nobody was kept from making them.
local anew = redis.call('EXISTS', log, job) > 0 and not redis.call('HGET', job, 'deleting')
if anew and not is_deleted(log) then return {'HELD'} end
redis.call('UNLINK', KEYS[1], KEYS[2], KEYS[3], KEYS[5], KEYS[6], KEYS[7], sealer)
redis.call('ZREM', jobs, ARGV[2])
return {'OK'}
