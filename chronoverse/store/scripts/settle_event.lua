-- Records the result of a delivery.
-- KEYS  queue, watches
-- ARGV  the event; when the watch's next event is due (ms from now; '' if this one is done); the watch's id; its state;
--       how many events it dropped
-- Creates no keys for a watch that was deleted in the meantime.
if ARGV[2] == '' then redis.call('ZREM', KEYS[1], ARGV[1], '') end
-- A failed event comes after all events that are queued before it is due.
local due = now_ms() + (tonumber(ARGV[2]) or 0)
redis.call('ZADD', KEYS[1], 'XX', due, ARGV[1], due, '')
if redis.call('HEXISTS', KEYS[2], ARGV[3]) == 1 then
  redis.call('HSET', KEYS[2], ARGV[3] .. ':state', ARGV[4])
  redis.call('HINCRBY', KEYS[2], ARGV[3] .. ':dropped', ARGV[5])
end
