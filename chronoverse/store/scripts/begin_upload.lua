#!lua flags=allow-oom
-- Adds the name of an object to the garbage before it is uploaded. Recording the object removes it again. If the
-- archiver crashes in between, the object remains garbage.
-- KEYS  archive lock, garbage
-- ARGV  token, name of the object
-- ->    OK | FENCED
local lock, garbage = KEYS[1], KEYS[2]

check_types(lock, garbage)
if redis.call('GET', lock) ~= ARGV[1] then return {'FENCED'} end
redis.call('HSET', garbage, ARGV[2], 'writer:' .. ARGV[1])
return {'OK'}
