#!lua flags=allow-oom
-- Marks an ended job as fully archived. Its hash then has all its data, and the log expires.
-- KEYS  log, job, archive lock, archive, jobs
-- ARGV  token, last number archived, SHA-256 of the whole log, how long the log is kept in ms, job id, creation time
--       (Unix ms), versions of data derived from the log, then fields of the hash as field, value, …; fields that the
--       hash has are not changed
-- ->    OK | GAP expected first number | FENCED
-- Can be repeated. Never increases the log's time to live.
local log, job, lock, archive, jobs = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]

check_types(log, job, lock, archive, jobs)
if redis.call('GET', lock) ~= ARGV[1] then return {'FENCED'} end
local archived = redis.call('HGET', job, 'archived') or '0'
if archived ~= ARGV[2] then return {'GAP', (whole_number(archived) or 0) + 1} end

redis.call('ZADD', jobs, 'NX', ARGV[6], ARGV[5])
local ended = is_terminal(redis.call('HGET', job, 'status'))
for at = 8, #ARGV, 2 do
  if ARGV[at] == 'status' and not ended then
    redis.call('HSET', job, 'status', ARGV[at + 1])
  else
    redis.call('HSETNX', job, ARGV[at], ARGV[at + 1])
  end
end
redis.call('HSET', job, 'archive_state', 'complete', 'archive_sha256', ARGV[3], 'archive_shapes', ARGV[7])
redis.call('PERSIST', job)
redis.call('PERSIST', archive)
redis.call('PEXPIRE', log, ARGV[4], 'LT')
return {'OK'}
