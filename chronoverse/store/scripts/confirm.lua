-- A write that changes nothing but a time to live. A WAITAOF or WAIT behind it, on the same connection, is about
-- everything that was written before, by whatever connection: both wait for the caller's own last write only.
-- KEYS  log, job, lease
-- ARGV  token, lease in ms, retention in ms, attempt
-- ->    OK next (one past the last entry, of a job that has ended the terminal one) | DELETED | FENCED
-- An ended job is told of to the attempt that was its last, LOST or not: what is on the disk does not depend on how it ended.
local log, job, lease = KEYS[1], KEYS[2], KEYS[3]

check_types(log, job, lease)
local last, shape = head(log, job)
if redis.call('GET', lease) == ARGV[1] then
  redis.call('PEXPIRE', lease, ARGV[2])
  return {'OK', (tonumber(last) or tonumber(string.match(last, '^%d+'))) + 1}
end
if is_deleted(lease) then return {'DELETED'} end
local status, attempt, lines = unpack(redis.call('HMGET', job, 'status', 'attempt', 'lines'))
if not is_terminal(status) or attempt ~= ARGV[4] then return {'FENCED'} end
if not redis.call('HGET', job, 'archived') then redis.call('PEXPIRE', job, kept(job, ARGV[3])) end
if shape == 'CLOSED' then return {'OK', last + 1} end
-- All of the log is in the archive, and the store has let it go.
if not shape and last > 0 and last == whole_number(lines) then return {'OK', last + 2} end
return {'FENCED'}
