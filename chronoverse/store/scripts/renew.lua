-- Extends the lease if this attempt holds it. PEXPIRE works even if the server is out of memory; SET would be refused.
-- KEYS  job, lease
-- ARGV  token, attempt, lease in ms
-- ->    OK | DELETED | FENCED
local job, lease = KEYS[1], KEYS[2]
check_types(job, lease)
if not holds_lease(job, lease, ARGV[1], ARGV[2]) then return {is_deleted(lease) and 'DELETED' or 'FENCED'} end
redis.call('PEXPIRE', lease, ARGV[3])
return {'OK'}
