-- Takes the archive lock of a job, or extends it.
-- KEYS  archive lock
-- ARGV  token, how long the lock lasts in ms
-- ->    OK | TAKEN by another archiver
check_types(KEYS[1])
local holder = redis.call('GET', KEYS[1])
if holder and holder ~= ARGV[1] then return {'TAKEN'} end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return {'OK'}
