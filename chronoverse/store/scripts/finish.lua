-- The terminal entry, the job's hash, the lease dropped and the retention begun: all or nothing.
-- KEYS  log, job, lease
-- ARGV  token, now (ISO 8601), status, exit code ('' when unknown), dropped, retention in ms, next number, attempt
-- ->    OK | GAP expected | DELETED | FENCED | TAINTED last-id (beyond all numbers)
-- Repeated after a lost reply it finds its own attempt ended as it asked, behind the same line, and says OK again. The
-- line matters: a job that was declared LOST has the same status and attempt, but maybe not all of the lines.
local log, job, lease = KEYS[1], KEYS[2], KEYS[3]
local token, now, status, exit_code, dropped, retention = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5], ARGV[6]

check_types(log, job, lease)
local last, shape = head(log, job)
local ended = redis.call('HMGET', job, 'status', 'attempt', 'lines')
if redis.call('GET', lease) ~= token then
  if is_deleted(lease) then return {'DELETED'} end
  local is_same = ended[1] == status and ended[2] == ARGV[8] and whole_number(ended[3]) == tonumber(ARGV[7]) - 1
  return {is_same and 'OK' or 'FENCED'}
end
if shape == 'CLOSED' then return {'FENCED'} end
if not shape and tonumber(ARGV[7]) ~= last + 1 then return {'GAP', last + 1} end

if not close(log, job, last, status, exit_code, dropped, now, retention) then return {'TAINTED', last} end
redis.call('DEL', lease)
return {'OK'}
