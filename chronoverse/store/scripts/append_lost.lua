-- Names numbers that nobody has any more, and lets the log go on behind them: the store lost these lines, and their runner
-- does not keep them either. One entry stands for all of them. Its id is the last of the numbers.
-- KEYS  log, job, lease
-- ARGV  token, lease in ms, first number, last number, now (ISO 8601)
-- ->    OK next | GAP expected | DELETED | FENCED | CLOSED | TAINTED last-id
-- Repeated after a lost reply it finds the log beyond these numbers, and says OK again.
local log, job, lease = KEYS[1], KEYS[2], KEYS[3]
local first, number = tonumber(ARGV[3]), tonumber(ARGV[4])

check_types(log, job, lease)
local last, shape = head(log, job)
local refused = refusal(job, lease, ARGV[1])
if refused then return {refused} end
if shape then return {shape, last} end
if last < number then
  if first ~= last + 1 then return {'GAP', last + 1} end
  local id, call = string.format('%.0f-0', number), redis.call
  -- Out of memory is an error before the first write, so XADD (or what makes it possible) comes first.
  resume_numbering(call, log, last)
  call('XADD', log, id, 'event', 'lost', 'from', ARGV[3], 'timestamp', ARGV[5])
  -- The next append finds as many entries added as there are numbers.
  call('XSETID', log, id, 'ENTRIESADDED', string.format('%.0f', number))
  last = number
end
redis.call('PEXPIRE', lease, ARGV[2])
return {'OK', last + 1}
