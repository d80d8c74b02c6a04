-- Claims a watch's next event. Scores in the queue are Unix ms: of '', when the next event may be claimed; of an event,
-- when it was queued or, after a failure, when it is due.
-- KEYS  queue, watches
-- ARGV  duration of the claim (ms), the watch's id
-- ->    JSON of the event, the watch, and its state; or nil
local now = now_ms()
if tonumber(redis.call('ZSCORE', KEYS[1], '') or 0) > now then return false end
for _, event in ipairs(redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', '+inf', 'LIMIT', 0, 2)) do
  if event ~= '' then
    local watches = redis.call('HGETALL', KEYS[2])
    local watch, state = field(watches, ARGV[2]), field(watches, ARGV[2] .. ':state')
    -- It was deleted.
    if not watch then return false end
    redis.call('ZADD', KEYS[1], now + ARGV[1], '')
    return '[' .. event .. ',' .. watch .. ',' .. (state or '[]') .. ']'
  end
end
return false
