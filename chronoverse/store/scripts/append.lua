-- Compare-and-append: stores all lines of a batch or none. Lines that the log already has are skipped, so the batch may
-- be sent again.
-- KEYS  log, job, lease
-- ARGV  token, attempt, lease in ms, first number, then runs of lines alike: timestamp, stream, partial ('' or '1'),
--       how many, their messages
-- ->    OK next | OK next SLOW (an archiver asks for a pause) | GAP expected | DELETED | FENCED | CLOSED | TAINTED last-id
-- When the server is out of memory, the first write raises an error. So XADD (or what makes it possible) is the first.
local log, job, lease = KEYS[1], KEYS[2], KEYS[3]
local token, attempt, ttl, first = ARGV[1], ARGV[2], ARGV[3], tonumber(ARGV[4])

-- These reads also check the types of the three keys. check_types() would cost a third of a short append.
local last, problem, exists = head(log, job)
local refused = refusal(job, lease, token, attempt)
if refused then return {refused} end
if problem then return {problem, last} end
if first > last + 1 then return {'GAP', last + 1} end

local call, number, at = redis.call, first, 5
if not exists then resume_numbering(call, log, last) end
while at <= #ARGV do
  local timestamp, stream, partial, count = ARGV[at], ARGV[at + 1], ARGV[at + 2], tonumber(ARGV[at + 3])
  for message = at + 4, at + 3 + count do
    if number > last then
      local id = string.format('%d-0', number)
      if partial == '' then
        call('XADD', log, id, 'timestamp', timestamp, 'message', ARGV[message], 'stream', stream)
      else
        call('XADD', log, id, 'timestamp', timestamp, 'message', ARGV[message], 'stream', stream, 'partial', '1')
      end
    end
    number = number + 1
  end
  at = at + 4 + count
end
redis.call('PEXPIRE', lease, ttl)
local answer, slow_until = {'OK', math.max(number, last + 1)}, redis.call('HGET', job, 'slow_until')
if slow_until and now_ms() < (whole_number(slow_until) or 0) then answer[3] = 'SLOW' end
return answer
