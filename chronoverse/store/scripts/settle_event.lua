-- Notes how a delivery went.
-- KEYS  queue, watches
-- ARGV  the event; when it is due again (ms from now, '' for never); when the watch's next is; the watch's id; its state
-- A watch that was deleted meanwhile gets no keys again.
if ARGV[2] == '' then
  redis.call('ZREM', KEYS[1], ARGV[1])
else
  redis.call('ZADD', KEYS[1], 'XX', now_ms() + ARGV[2], ARGV[1])
end
redis.call('ZADD', KEYS[1], 'XX', now_ms() + ARGV[3], '')
if redis.call('HEXISTS', KEYS[2], ARGV[4]) == 1 then redis.call('HSET', KEYS[2], ARGV[4] .. ':state', ARGV[5]) end
