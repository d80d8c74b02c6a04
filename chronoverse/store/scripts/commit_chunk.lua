-- Takes a chunk into the log's record of what is archived, and lets the store's own copy of old lines go.
-- KEYS  log, job, archive lease, archive, garbage
-- ARGV  token, first number, last number, record, number up to which lines leave the store (0: none do),
--       id of the last entry that was read for the chunk ('' for no such check), SHA-1 of its fields,
--       name of the chunk's object
-- ->    OK | GAP expected first number | DELETED | FENCED
-- A chunk that is recorded already is OK again. Nothing is refused for memory once the ZADD has passed, and the chunk's
-- object was read back before: so a line is always in one of the two places. Where the log is not what was read, as
-- when it was lost meanwhile and written anew, the answer is a GAP: what the store has lost its runner sends again, and
-- maybe differently. The log's last entry never leaves the store. An object that was condemned meanwhile is not recorded.
local log, job, lease, archive, garbage = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
local first, last, trim = tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[5])

check_types(log, job, lease, archive, garbage)
-- A foreign runner knows nothing of tombstones. What it writes is taken away by the next look, and must not get into the
-- archive before that: nothing would delete it there.
if is_deleted(log) then return {'DELETED'} end
if redis.call('GET', lease) ~= ARGV[1] then return {'FENCED'} end
local archived = whole_number(redis.call('HGET', job, 'archived')) or 0
if archived == 0 or archived + 1 == first then
  if not holds(log, ARGV[6], ARGV[7]) then return {'GAP', archived + 1} end
  if redis.call('HGET', garbage, ARGV[8]) ~= 'writer:' .. ARGV[1] then return {'FENCED'} end
  redis.call('ZADD', archive, string.format('%.0f', last), ARGV[4])
  redis.call('HDEL', garbage, ARGV[8])
  redis.call('HSETNX', job, 'archived_first', string.format('%.0f', first))
  redis.call('HSET', job, 'archived', string.format('%.0f', last))
  -- The objects do not expire, so neither may what is known of them.
  redis.call('PERSIST', job)
elseif redis.call('ZSCORE', archive, ARGV[4]) == false then
  return {'GAP', archived + 1}
end
if trim > 0 and redis.call('EXISTS', log) == 1 then
  local tip_number = tonumber(string.match(stream_info(log)['last-generated-id'], '^%d+'))
  redis.call('XTRIM', log, 'MINID', string.format('%.0f-0', math.min(trim, last, tip_number - 1) + 1))
end
return {'OK'}
