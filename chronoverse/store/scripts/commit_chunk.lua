#!lua flags=allow-oom
-- Records an archived chunk, and trims old lines from the log.
-- KEYS  log, job, archive lock, archive, garbage
-- ARGV  token, first number not yet archived, last number, record, number up to which to trim the log (0: not at all),
--       id of the last entry read for the chunk ('' for no check), SHA-1 of its fields, name of the chunk's object,
--       record of the previous last chunk that this one replaces ('' for none), name of its object, which becomes
--       garbage in the same step
-- ->    OK | GAP expected first number | DELETED | FENCED
-- A chunk that is already recorded gets OK again. The caller has verified the chunk's object, and nothing after the
-- ZADD can be refused for lack of memory. So a line is always in at least one place, and the log keeps its last entry.
-- Returns GAP if the log no longer has the entry that was read: the store lost the log, and its runner resends lines,
-- which may differ. An object that has been marked as garbage is not recorded.
local log, job, lock, archive, garbage = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
local first, last, trim = tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[5])

check_types(log, job, lock, archive, garbage)
-- A foreign runner ignores tombstones, and may write under a deleted id. settle_job.lua removes its writes. They must
-- not be archived before that, because nothing would delete them from the archive.
if is_deleted(log) then return {'DELETED'} end
if redis.call('GET', lock) ~= ARGV[1] then return {'FENCED'} end
local archived = whole_number(redis.call('HGET', job, 'archived')) or 0
if archived == 0 or archived + 1 == first then
  if not holds_entry(log, ARGV[6], ARGV[7]) then return {'GAP', archived + 1} end
  if redis.call('HGET', garbage, ARGV[8]) ~= 'writer:' .. ARGV[1] then return {'FENCED'} end
  if ARGV[9] ~= '' and not redis.call('ZSCORE', archive, ARGV[9]) then return {'GAP', archived + 1} end
  -- While a Cluster moves a slot, a key that becomes empty cannot be written again. So each key gets its new value first.
  redis.call('ZADD', archive, string.format('%.0f', last), ARGV[4])
  if ARGV[9] ~= '' then
    redis.call('ZREM', archive, ARGV[9])
    redis.call('HSET', garbage, ARGV[10], 'merged:' .. redis.call('TIME')[1])
  end
  redis.call('HDEL', garbage, ARGV[8])
  redis.call('HSETNX', job, 'archived_first', string.format('%.0f', first))
  -- The first entry may be trimmed now. Its time is the start of a foreign job that was registered before. The listing
  -- has the start of other foreign jobs.
  local entry = archived == 0 and redis.call('HGET', job, 'created_at') and redis.call('XRANGE', log, '-', '+', 'COUNT', 1)[1]
  local started_at = entry and field(entry[2], 'timestamp')
  if started_at and #started_at <= 256 then redis.call('HSETNX', job, 'started_at', started_at) end
  redis.call('HSET', job, 'archived', string.format('%.0f', last))
  -- The objects do not expire, so the job's hash must not either.
  redis.call('PERSIST', job)
elseif redis.call('ZSCORE', archive, ARGV[4]) == false then
  return {'GAP', archived + 1}
end
if trim > 0 then trim_log(log, math.min(trim, last)) end
return {'OK'}
