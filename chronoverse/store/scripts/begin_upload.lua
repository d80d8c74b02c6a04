#!lua flags=allow-oom
-- Adds the name of an object that is about to be written to the garbage. It is taken out again when the object has a
-- record. If the archiver dies in between, the object stays garbage.
-- KEYS  archive lock, garbage
-- ARGV  token, name of the object
-- ->    OK | FENCED
local lock, garbage = KEYS[1], KEYS[2]

check_types(lock, garbage)
if redis.call('GET', lock) ~= ARGV[1] then return {'FENCED'} end
redis.call('HSET', garbage, ARGV[2], 'writer:' .. ARGV[1])
return {'OK'}
