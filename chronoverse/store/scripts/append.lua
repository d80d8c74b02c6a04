-- Compare-and-append: stores all lines of a batch or none, except those that a quota drops. Skips lines that the log
-- already has, so the batch may be sent again.
-- KEYS  log, job, lease
-- ARGV  token, attempt, lease in ms, first number, then runs of similar lines: timestamp, stream, partial ('' or '1'),
--       number of lines, their messages
-- ->    OK next | OK next SLOW (an archiver asks for a pause) | QUOTA next (lines were dropped, but have numbers)
--       | GAP expected | DELETED | FENCED | CLOSED | TAINTED last-id
-- If the server is out of memory, the first write raises an error. It is an XADD, or the write that enables it.
local log, job, lease = KEYS[1], KEYS[2], KEYS[3]
local argv, token, attempt, ttl, first = ARGV, ARGV[1], ARGV[2], ARGV[3], tonumber(ARGV[4])

-- These reads also check the types of the three keys. check_types() would make a short append a third slower.
local values = redis.call('HMGET', job, 'archived', 'skipped', 'attempt', 'slow_until', 'bytes', 'left_out')
local last, problem, exists, ends_in_gap = head(log, job, values)
if redis.call('GET', lease) ~= token or (values[3] or attempt) ~= attempt then
  return {refusal(job, lease, token, attempt)}
end
if problem then return {problem, last} end
if first > last + 1 then return {'GAP', last + 1} end

local write, _, close = line_writer(log, job, values[5], values[6], exists, last, ends_in_gap)
local number, at = first, 5
while at <= #argv do
  local timestamp, stream, partial, count = argv[at], argv[at + 1], argv[at + 2], tonumber(argv[at + 3])
  for message = at + 4, at + 3 + count do
    if number > last then write(number, timestamp, stream, partial, argv[message]) end
    number = number + 1
  end
  at = at + 4 + count
end
local next_number = math.max(number, last + 1)
local left_out = close(next_number, argv[5])
redis.call('PEXPIRE', lease, ttl)
if left_out > 0 then return {'QUOTA', next_number} end
if values[4] and now_ms() < (whole_number(values[4]) or 0) then return {'OK', next_number, 'SLOW'} end
return {'OK', next_number}
