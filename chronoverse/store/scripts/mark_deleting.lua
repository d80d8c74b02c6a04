-- From now on nobody sees the job, or can write to it: its objects are about to be deleted, and then its keys.
-- KEYS  log, job, lease, archive lease, tombstone
-- ARGV  archiving token, for how many ms the id stays deleted: 0 leaves no tombstone, nor takes one away
-- ->    OK | HELD by a runner | FENCED
local log, job, lease, sealer = KEYS[1], KEYS[2], KEYS[3], KEYS[4]

-- Also where the log is of another type.
check_types(job, lease, sealer)
if redis.call('GET', sealer) ~= ARGV[1] then return {'FENCED'} end
if not is_free(redis.call('GET', lease)) then return {'HELD'} end
if ARGV[2] ~= '0' then redis.call('SET', KEYS[5], '1', 'PX', ARGV[2]) end
if redis.call('EXISTS', log, job) > 0 then redis.call('HSET', job, 'deleting', '1') end
-- A tail that waits for the next line is woken by an end, looks at the job and finds it deleted. Otherwise it would show
-- what a foreign runner writes until its next look, which may be seconds away.
if redis.call('TYPE', log).ok == 'stream' then
  local last, shape = head(log, job)
  local id = not shape and string.format('%.0f-0', last + 1)
  if id then redis.pcall('XADD', log, id, 'event', 'end', 'status', 'CANCELED') end
end
return {'OK'}
