-- Queues an event of a watch, once.
-- KEYS  told, queue, watches
-- ARGV  what distinguishes the event, the event, how many may wait, the watch's id
-- ->    whether it was queued: not if it was queued before, if too many are waiting, or if the watch was deleted
if redis.call('HEXISTS', KEYS[3], ARGV[4]) == 0 then return 0 end
-- A week.
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now_ms() - 604800000)
if redis.call('ZADD', KEYS[1], 'NX', now_ms(), ARGV[1]) == 0 then return 0 end
if redis.call('ZCARD', KEYS[2]) > tonumber(ARGV[3]) then
  redis.call('HINCRBY', KEYS[3], ARGV[4] .. ':dropped', 1)
  return 0
end
return redis.call('ZADD', KEYS[2], now_ms(), ARGV[2])
