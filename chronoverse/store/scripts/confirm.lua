-- A write that changes only a time to live. A WAITAOF or WAIT after it, on the same connection, then is about everything
-- that was written before by any connection: both wait for the last write of their own connection.
-- KEYS  log, job, lease
-- ARGV  token, lease in ms, retention in ms, attempt
-- ->    OK next (one after the last entry; of an ended job, one after the terminal entry) | DELETED | FENCED
-- For an ended job the answer is OK to its last attempt, even when it ended as LOST: whether lines are on the disk does
-- not depend on how the job ended.
local log, job, lease = KEYS[1], KEYS[2], KEYS[3]

check_types(log, job, lease)
local last, problem = head(log, job)
if holds_lease(job, lease, ARGV[1], ARGV[4]) then
  redis.call('PEXPIRE', lease, ARGV[2])
  return {'OK', (tonumber(last) or tonumber(string.match(last, '^%d+'))) + 1}
end
if is_deleted(lease) then return {'DELETED'} end
local status, attempt, lines = unpack(redis.call('HMGET', job, 'status', 'attempt', 'lines'))
if not is_terminal(status) or (attempt or ARGV[4]) ~= ARGV[4] then return {'FENCED'} end
if not redis.call('HGET', job, 'archived') then redis.call('PEXPIRE', job, retention_of(job, ARGV[3])) end
if problem == 'CLOSED' then return {'OK', last + 1} end
-- All of the log is in the archive, and the store no longer has it.
if not problem and last > 0 and last == whole_number(lines) then return {'OK', last + 2} end
return {'FENCED'}
