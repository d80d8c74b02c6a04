-- Takes the event of a watch that is due first, for a while. Its queue has events by when they are due (Unix ms), and '' by
-- when the next may be taken.
-- KEYS  queue
-- ARGV  for how long (ms)
-- ->    the event, or nil
local now = now_ms()
if tonumber(redis.call('ZSCORE', KEYS[1], '') or 0) > now then return false end
for _, event in ipairs(redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', now, 'LIMIT', 0, 2)) do
  if event ~= '' then
    redis.call('ZADD', KEYS[1], now + ARGV[1], '')
    return event
  end
end
return false
