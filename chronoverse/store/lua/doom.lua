-- From now on nobody sees the job, or can write to it: its objects are about to be deleted, and then its keys.
-- KEYS  log, job, lease, archive lease
-- ARGV  archiving token
-- ->    OK | HELD by a runner | FENCED
local log, job, lease, sealer = KEYS[1], KEYS[2], KEYS[3], KEYS[4]

-- Also where the log is of another type.
check_types(job, lease, sealer)
if redis.call('GET', sealer) ~= ARGV[1] then return {'FENCED'} end
if not is_free(redis.call('GET', lease)) then return {'HELD'} end
if redis.call('EXISTS', log, job) > 0 then redis.call('HSET', job, 'deleting', '1') end
return {'OK'}
