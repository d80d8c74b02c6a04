-- Writes down the name of an object that is about to be written. Until a record names the object, it is garbage.
-- KEYS  archive lease, garbage
-- ARGV  token, name of the object
-- ->    OK | FENCED
local lease, garbage = KEYS[1], KEYS[2]

check_types(lease, garbage)
if redis.call('GET', lease) ~= ARGV[1] then return {'FENCED'} end
redis.call('HSET', garbage, ARGV[2], 'writer:' .. ARGV[1])
return {'OK'}
