-- Puts a chunk in which something was redacted into the record of what is archived, and takes the store's own copy of
-- its lines away.
-- KEYS  log, job, archive lease, archive, audit, garbage
-- ARGV  token, first number, last number, record, the record in whose place it comes ('' when it is behind them all),
--       what to remember of this, how much of that is kept, and as for a seal: id of the last entry that was read for
--       the chunk ('' for no such check), SHA-1 of its fields; name of the chunk's object, name of the object that it
--       replaces ('' for none), which is written down as garbage in the same step
-- ->    OK | GAP expected first number | FENCED
-- A chunk that is recorded already is OK again. Nothing is refused for memory once the ZADD has passed, and the chunk's
-- object was read back before.
local log, job, lease, archive, audit, garbage = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5], KEYS[6]
local first, last, record, old = tonumber(ARGV[2]), tonumber(ARGV[3]), ARGV[4], ARGV[5]

check_types(log, job, lease, archive, audit, garbage)
if redis.call('GET', lease) ~= ARGV[1] then return {'FENCED'} end
if redis.call('ZSCORE', archive, record) then return {'OK'} end
local archived = whole_number(redis.call('HGET', job, 'archived')) or 0
if old ~= '' then
  if not redis.call('ZSCORE', archive, old) then return {'GAP', archived + 1} end
elseif archived > 0 and archived + 1 ~= first then
  return {'GAP', archived + 1}
end
if not holds(log, ARGV[8], ARGV[9]) then return {'GAP', archived + 1} end
if redis.call('HGET', garbage, ARGV[10]) ~= 'writer:' .. ARGV[1] then return {'FENCED'} end

redis.call('ZADD', archive, string.format('%.0f', last), record)
redis.call('HDEL', garbage, ARGV[10])
if old ~= '' then
  redis.call('ZREM', archive, old)
  redis.call('HSET', garbage, ARGV[11], redis.call('TIME')[1])
else
  redis.call('HSETNX', job, 'archived_first', string.format('%.0f', first))
  redis.call('HSET', job, 'archived', string.format('%.0f', last))
end
-- What was made of the whole archive is made again.
redis.call('HDEL', job, 'archive_state', 'archive_sha256', 'swept')
local redactions = whole_number(redis.call('HGET', job, 'redactions')) or 0
redis.call('HSET', job, 'redactions', string.format('%.0f', redactions + 1))
redis.call('PERSIST', job)
redis.call('RPUSH', audit, ARGV[6])
redis.call('LTRIM', audit, -tonumber(ARGV[7]), -1)
if redis.call('EXISTS', log) == 1 then
  -- The log's last entry never leaves the store.
  local tip_number = tonumber(string.match(stream_info(log)['last-generated-id'], '^%d+'))
  redis.call('XTRIM', log, 'MINID', string.format('%.0f-0', math.min(last, tip_number - 1) + 1))
end
return {'OK'}
