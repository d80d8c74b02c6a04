-- Extends the lease if it still holds the token. PEXPIRE works on a server out of memory, which would refuse SET.
-- KEYS  lease
-- ARGV  token, lease in ms
-- ->    OK | DELETED | FENCED
check_types(KEYS[1])
if redis.call('GET', KEYS[1]) ~= ARGV[1] then
  return {is_deleted(KEYS[1]) and 'DELETED' or 'FENCED'}
end
redis.call('PEXPIRE', KEYS[1], ARGV[2])
return {'OK'}
