-- A job that has ended is archived whole: its hash says all there is to say, and the log itself may go soon.
-- KEYS  log, job, archive lease, archive, jobs
-- ARGV  token, last number archived, SHA-256 of all, how long the log stays in ms, job id, creation time (Unix ms),
--       then the hash as field, value, …, in which what it has already stands
-- ->    OK | GAP expected first number | FENCED
-- May be repeated. The log's time to live is only ever lowered.
local log, job, lease, archive, jobs = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]

check_types(log, job, lease, archive, jobs)
if redis.call('GET', lease) ~= ARGV[1] then return {'FENCED'} end
local archived = redis.call('HGET', job, 'archived') or '0'
if archived ~= ARGV[2] then return {'GAP', (whole_number(archived) or 0) + 1} end

redis.call('ZADD', jobs, 'NX', ARGV[6], ARGV[5])
local ended = is_terminal(redis.call('HGET', job, 'status'))
for at = 7, #ARGV, 2 do
  if ARGV[at] == 'status' and not ended then
    redis.call('HSET', job, 'status', ARGV[at + 1])
  else
    redis.call('HSETNX', job, ARGV[at], ARGV[at + 1])
  end
end
redis.call('HSET', job, 'archive_state', 'complete', 'archive_sha256', ARGV[3])
redis.call('PERSIST', job)
redis.call('PERSIST', archive)
redis.call('PEXPIRE', log, ARGV[4], 'LT')
return {'OK'}
