-- The last of a job whose objects are gone: its keys, and its place in the listing.
-- KEYS  log, job, lease, archive lease, archive, audit, jobs
-- ARGV  archiving token, job id
-- ->    OK | FENCED
local sealer, jobs = KEYS[4], KEYS[7]

if redis.call('GET', sealer) ~= ARGV[1] then return {'FENCED'} end
redis.call('UNLINK', KEYS[1], KEYS[2], KEYS[3], KEYS[5], KEYS[6], sealer)
redis.call('ZREM', jobs, ARGV[2])
return {'OK'}
