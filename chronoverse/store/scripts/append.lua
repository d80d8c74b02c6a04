-- Compare-and-append: stores all lines of a batch or none, but for those that a quota leaves out. Lines that the log
-- already has are skipped, so the batch may be sent again.
-- KEYS  log, job, lease
-- ARGV  token, attempt, lease in ms, first number, then runs of lines alike: timestamp, stream, partial ('' or '1'),
--       how many, their messages
-- ->    OK next | OK next SLOW (an archiver asks for a pause) | QUOTA next (lines were left out, and have their numbers)
--       | GAP expected | DELETED | FENCED | CLOSED | TAINTED last-id
-- When the server is out of memory, the first write raises an error. So XADD (or what makes it possible) is the first.
local log, job, lease = KEYS[1], KEYS[2], KEYS[3]
local argv, token, attempt, ttl, first = ARGV, ARGV[1], ARGV[2], ARGV[3], tonumber(ARGV[4])

-- These reads also check the types of the three keys. check_types() would cost a third of a short append.
local values = redis.call('HMGET', job, 'archived', 'skipped', 'attempt', 'slow_until', 'bytes', 'left_out')
local last, problem, exists, ends_in_gap = head(log, job, values)
if redis.call('GET', lease) ~= token or (values[3] or attempt) ~= attempt then
  return {refusal(job, lease, token, attempt)}
end
if problem then return {problem, last} end
if first > last + 1 then return {'GAP', last + 1} end

-- How many bytes the workflow's own bounds (0 is none), or else the common ones, leave for the job and for today. Only
-- where there is a bound are bytes counted: that takes two more writes. A settings key of another type holds no settings.
-- It is not one of KEYS, for the reason that is_deleted() gives: where it is not there, it is not written either.
local settings = string.match(job, '^.*}') .. ':settings'
local set = redis.pcall('HMGET', settings, 'job_bytes', 'day_bytes', 'common_job_bytes', 'common_day_bytes', 'day', 'bytes_today')
local job_bound, day_bound = whole_number(set[1] or set[3]) or 0, whole_number(set[2] or set[4]) or 0
local is_bounded, job_bytes, day_bytes, room, today = job_bound + day_bound > 0, 0, 0, math.huge, ''
if is_bounded then
  today = string.format('%.0f', math.floor(now_ms() / 86400000))
  job_bytes, day_bytes = whole_number(values[5]) or 0, set[5] == today and whole_number(set[6]) or 0
  if job_bound == 0 then job_bound = math.huge end
  if day_bound == 0 then day_bound = math.huge end
  room = math.min(job_bound - job_bytes, day_bound - day_bytes)
  if room <= 0 then room = -1 end
end
local used, stored, left_out = 0, 0, 0

local call, number, at = redis.call, first, 5
if not exists then resume_numbering(call, log, last) end
while at <= #argv do
  local timestamp, stream, partial, count = argv[at], argv[at + 1], argv[at + 2], tonumber(argv[at + 3])
  for message = at + 4, at + 3 + count do
    if number > last then
      local text = argv[message]
      used = used + #text
      if used > room then
        left_out = left_out + 1
      else
        if ends_in_gap then
          name_skipped(call, log, job, last, timestamp)
          ends_in_gap = false
        end
        local id = string.format('%d-0', number)
        if partial == '' then
          call('XADD', log, id, 'timestamp', timestamp, 'message', text, 'stream', stream)
        else
          call('XADD', log, id, 'timestamp', timestamp, 'message', text, 'stream', stream, 'partial', '1')
        end
        stored = used
      end
    end
    number = number + 1
  end
  at = at + 4 + count
end
if left_out > 0 then
  -- Readers hear at once that there is a gap. Its end is named with the next line, or at the job's end.
  if not ends_in_gap then name_skipped(call, log, job, number - 1, argv[5]) end
  redis.call('HSET', job, 'skipped', string.format('%.0f', number - 1))
  redis.call('HSET', job, 'left_out', string.format('%.0f', left_out + (whole_number(values[6]) or 0)))
  -- The bound counts as reached, so that no later, shorter line is stored.
  if job_bound - job_bytes <= day_bound - day_bytes then
    job_bytes = math.max(job_bytes, job_bound - stored)
  else
    day_bytes = math.max(day_bytes, day_bound - stored)
  end
end
if is_bounded and number > last + 1 then
  redis.call('HSET', job, 'bytes', string.format('%.0f', job_bytes + stored))
  redis.call('HSET', settings, 'day', today, 'bytes_today', string.format('%.0f', day_bytes + stored))
end
redis.call('PEXPIRE', lease, ttl)
local next_number = math.max(number, last + 1)
if left_out > 0 then return {'QUOTA', next_number} end
if values[4] and now_ms() < (whole_number(values[4]) or 0) then return {'OK', next_number, 'SLOW'} end
return {'OK', next_number}
