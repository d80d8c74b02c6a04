#!lua flags=allow-oom
-- Makes a job's runner pause after each append for some time, because its log grows faster than it can be archived.
-- KEYS  job
-- ARGV  how long, in ms of the server's clock
-- ->    OK
check_types(KEYS[1])
if redis.call('EXISTS', KEYS[1]) == 1 then
  redis.call('HSET', KEYS[1], 'slow_until', string.format('%.0f', now_ms() + tonumber(ARGV[1])))
end
return {'OK'}
