-- A write that only changes a time to live. WAITAOF and WAIT wait for the last write of their own connection. After
-- this write, they cover everything that any connection wrote before.
-- KEYS  log, job, lease
-- ARGV  token, lease in ms, retention in ms, attempt
-- ->    OK next (one after the last entry; for an ended job, one after the terminal entry) | DELETED | FENCED
-- An ended job's last attempt gets OK, even if the job became LOST: whether lines are on disk does not depend on the
-- end.
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
-- The whole log is archived, and the store has removed it.
if not problem and last > 0 and last == whole_number(lines) then return {'OK', last + 2} end
return {'FENCED'}
