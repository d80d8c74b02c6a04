-- Has the runner of a job go slowly for a while: its log grows faster than it can be archived.
-- KEYS  job
-- ARGV  for how long, in ms of the server's clock
-- ->    OK
if redis.call('EXISTS', KEYS[1]) == 1 then
  local time = redis.call('TIME')
  local now = time[1] * 1000 + math.floor(time[2] / 1000)
  redis.call('HSET', KEYS[1], 'slow_until', string.format('%.0f', now + tonumber(ARGV[1])))
end
return {'OK'}
