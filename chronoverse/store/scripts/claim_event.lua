-- Claims a watch's next event. In the queue, events are scored by when they were queued or last failed (Unix ms), and ''
-- by when the next event may be claimed.
-- KEYS  queue
-- ARGV  duration of the claim (ms)
-- ->    the event, or nil
local now = now_ms()
if tonumber(redis.call('ZSCORE', KEYS[1], '') or 0) > now then return false end
for _, event in ipairs(redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', '+inf', 'LIMIT', 0, 2)) do
  if event ~= '' then
    redis.call('ZADD', KEYS[1], now + ARGV[1], '')
    return event
  end
end
return false
