#!lua flags=allow-oom
-- Acquires or extends the archive lock of a job.
-- KEYS  archive lock
-- ARGV  token, how long the lock lasts in ms, 1 to only extend it
-- ->    1, or nil: another archiver has the lock, or there is none to extend, as the store may have lost the job
check_types(KEYS[1])
local holder = redis.call('GET', KEYS[1])
if holder ~= ARGV[1] and (holder or ARGV[3] == '1') then return false end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return 1
