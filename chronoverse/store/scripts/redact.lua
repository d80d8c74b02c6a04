-- Records a chunk in which lines were redacted, and removes its lines, and archived ones after them, from the log.
-- KEYS  log, job, archive lock, archive, audit, garbage
-- ARGV  token, first number, last number, record, the record that it replaces ('' if it comes after all others), the
--       redaction for the audit list, how many redactions to keep, then as for commit_chunk: id of the last entry read
--       for the chunk ('' for no check), SHA-1 of its fields, name of the chunk's object; name of the object that it
--       replaces ('' for none), which becomes garbage in the same step; the job's new number of redactions
-- ->    OK 1, or 0 if the log is too large to forget the trimmed text | GAP expected first number | FENCED
-- A chunk that is already recorded gets OK again. The caller has verified the chunk's object, and nothing after the
-- ZADD can be refused for lack of memory.
local log, job, lock, archive, audit, garbage = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5], KEYS[6]
local first, last, record, old = tonumber(ARGV[2]), tonumber(ARGV[3]), ARGV[4], ARGV[5]

check_types(log, job, lock, archive, audit, garbage)
if redis.call('GET', lock) ~= ARGV[1] then return {'FENCED'} end
if redis.call('ZSCORE', archive, record) then return {'OK', forget_trimmed(log)} end
local archived = whole_number(redis.call('HGET', job, 'archived')) or 0
if old ~= '' then
  if not redis.call('ZSCORE', archive, old) then return {'GAP', archived + 1} end
elseif archived > 0 and archived + 1 ~= first then
  return {'GAP', archived + 1}
end
if not holds_entry(log, ARGV[8], ARGV[9]) then return {'GAP', archived + 1} end
if redis.call('HGET', garbage, ARGV[10]) ~= 'writer:' .. ARGV[1] then return {'FENCED'} end

redis.call('ZADD', archive, string.format('%.0f', last), record)
if old ~= '' then
  redis.call('ZREM', archive, old)
  redis.call('HSET', garbage, ARGV[11], 'replaced:' .. redis.call('TIME')[1])
else
  redis.call('HSETNX', job, 'archived_first', string.format('%.0f', first))
  redis.call('HSET', job, 'archived', string.format('%.0f', last))
end
-- After the HSET: while a Cluster moves a slot, a key that becomes empty cannot be written again.
redis.call('HDEL', garbage, ARGV[10])
-- These fields describe the archive before the redaction. The archiver writes them again.
redis.call('HDEL', job, 'archive_state', 'archive_sha256', 'archive_shapes', 'swept')
redis.call('HSET', job, 'redactions', ARGV[12])
redis.call('PERSIST', job)
redis.call('RPUSH', audit, ARGV[6])
redis.call('LTRIM', audit, -tonumber(ARGV[7]), -1)
-- Archived lines in the same node would keep the trimmed text: by default, a node has at most a hundred.
trim_log(log, math.max(last, math.min(archived, last + 100)))
return {'OK', forget_trimmed(log)}
