-- Appends one entry that reports a range of lines as lost, so that the log can continue after them: the store lost
-- these lines, and their runner no longer has them. The entry's id is the last number of the range.
-- KEYS  log, job, lease
-- ARGV  token, attempt, lease in ms, first number, last number, now (ISO 8601), reason: lost or missing
-- ->    OK next | GAP expected | DELETED | FENCED | CLOSED | TAINTED last-id
-- A call repeated after a lost reply gets OK again: the log already has these numbers.
local log, job, lease = KEYS[1], KEYS[2], KEYS[3]
local first, number = tonumber(ARGV[4]), tonumber(ARGV[5])

check_types(log, job, lease)
local last, problem = head(log, job)
local refused = refusal(job, lease, ARGV[1], ARGV[2])
if refused then return {refused} end
if problem then return {problem, last} end
if last < number then
  if first ~= last + 1 then return {'GAP', last + 1} end
  local call = redis.call
  -- If the server is out of memory, the first write raises an error. It is an XADD, or the write that enables it.
  resume_numbering(call, log, last)
  name_skipped(call, log, job, last, ARGV[6])
  name_lost(call, log, first, number, ARGV[7], ARGV[6])
  last = number
end
redis.call('PEXPIRE', lease, ARGV[3])
return {'OK', last + 1}
