-- Decides that objects are to be deleted: from now on no record can name them, whatever script arrives late.
-- KEYS  archive lease, garbage
-- ARGV  token, names of objects that no record names and that nobody has written down
-- ->    {name, seconds since it was decided, name, seconds, …}
-- Who holds the lease decides this for all objects that are written down, for their writers have lost the lease. Who
-- has lost it decides it for the objects that were its own, and is told of those alone.
-- No job has more than some thousand objects to delete. More names than MOST were written by a stranger, would hold up
-- the server, and are forgotten all together: the job's objects are found in its folder then.
local lease, garbage, token = KEYS[1], KEYS[2], ARGV[1]
local MOST = 10000

check_types(lease, garbage)
if redis.call('HLEN', garbage) > MOST then redis.call('UNLINK', garbage) end
local is_holder = redis.call('GET', lease) == token
local time = redis.call('TIME')
local now = tonumber(time[1])

if is_holder then
  for at = 2, #ARGV do redis.call('HSETNX', garbage, ARGV[at], time[1]) end
end
local answer, written = {}, redis.call('HGETALL', garbage)
for at = 1, #written, 2 do
  local name, value = written[at], written[at + 1]
  local since = whole_number(value)
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
  end
end
return answer
