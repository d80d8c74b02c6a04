#!lua flags=allow-oom
-- Marks objects for deletion. After that, no script can record them, however late it runs.
-- KEYS  archive lock, garbage
-- ARGV  token, names of objects that have no record and are not in the garbage
-- ->    {name, seconds since it was marked, 'replaced' by a redaction, 'merged' into a larger chunk or '', name, …}
-- The holder of the lock marks all objects in the garbage, because their writers have lost the lock. Other callers only
-- mark, and get, the objects whose upload they began.
-- No job has more than a few thousand objects to delete. More than MOST names were written by someone else, and would
-- block the server: the whole key is then deleted. The job's objects can still be found in its folder.
local lock, garbage, token = KEYS[1], KEYS[2], ARGV[1]
local MOST = 10000

check_types(lock, garbage)
if redis.call('HLEN', garbage) > MOST then redis.call('UNLINK', garbage) end
local is_holder = redis.call('GET', lock) == token
local time = redis.call('TIME')
local now = tonumber(time[1])

if is_holder then
  for at = 2, #ARGV do redis.call('HSETNX', garbage, ARGV[at], time[1]) end
end
local answer, flat = {}, redis.call('HGETALL', garbage)
for at = 1, #flat, 2 do
  local name, value = flat[at], flat[at + 1]
  local why, marked_at = string.match(value, '^(%a+):(%d+)$')
  if why ~= 'replaced' and why ~= 'merged' then why = nil end
  local since = whole_number(why and marked_at or value)
  local is_own = value == 'writer:' .. token
  if not since and (is_holder or is_own) then
    redis.call('HSET', garbage, name, time[1])
    since = now
  elseif not is_holder then
    since = nil
  end
  if since then
    answer[#answer + 1] = name
    answer[#answer + 1] = string.format('%.0f', now - since)
    answer[#answer + 1] = why or ''
  end
end
return answer
