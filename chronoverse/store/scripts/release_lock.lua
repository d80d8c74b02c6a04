#!lua flags=allow-oom
-- Releases the archive lock of a job if it still holds the token.
-- KEYS  archive lock
-- ARGV  token
-- ->    OK
check_types(KEYS[1])
if redis.call('GET', KEYS[1]) == ARGV[1] then redis.call('DEL', KEYS[1]) end
return {'OK'}
