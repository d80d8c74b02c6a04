#!lua flags=allow-oom
-- Makes the runner of a job pause after each append for a while, since its log grows faster than it can be archived.
-- KEYS  job
-- ARGV  for how long, in ms of the server's clock
-- ->    OK
check_types(KEYS[1])
if redis.call('EXISTS', KEYS[1]) == 1 then
  redis.call('HSET', KEYS[1], 'slow_until', string.format('%.0f', now_ms() + tonumber(ARGV[1])))
end
return {'OK'}
