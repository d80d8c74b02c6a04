-- Lets go of a lease that still holds the token.
-- KEYS  archive lease
-- ARGV  token
check_types(KEYS[1])
if redis.call('GET', KEYS[1]) == ARGV[1] then redis.call('DEL', KEYS[1]) end
return {'OK'}
