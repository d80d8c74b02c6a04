-- Claims a watch's next event. In the queue, '' is scored by when the next event may be claimed (Unix ms), and events by
-- when they were queued, or due after a failure.
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
