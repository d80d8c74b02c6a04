-- A write that changes nothing but a time to live. A WAITAOF or WAIT behind it, on the same connection, is about
-- everything that was written before, by whatever connection: both wait for the caller's own last write only.
-- KEYS  log, job, lease
-- ARGV  token, lease in ms, retention in ms, attempt
-- ->    OK next (one past the last entry, of a job that has ended the terminal one) | DELETED | FENCED
local log, job, lease = KEYS[1], KEYS[2], KEYS[3]

check_types(log, job, lease)
local last, shape = tip(log, job)
if redis.call('GET', lease) == ARGV[1] then
  redis.call('PEXPIRE', lease, ARGV[2])
  return {'OK', (tonumber(last) or tonumber(string.match(last, '^%d+'))) + 1}
end
if is_deleted(lease) then return {'DELETED'} end
local status, attempt = unpack(redis.call('HMGET', job, 'status', 'attempt'))
if shape ~= 'CLOSED' or not is_terminal(status) or status == 'LOST' or attempt ~= ARGV[4] then return {'FENCED'} end
if not redis.call('HGET', job, 'archived') then redis.call('PEXPIRE', job, kept(job, ARGV[3])) end
return {'OK', last + 1}
