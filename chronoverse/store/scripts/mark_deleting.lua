#!lua flags=allow-oom
-- Hides a job from readers, and refuses its runners. Its objects, and then its keys, are about to be deleted. Without
-- the chunks' records, no reader reports a deleted object as missing.
-- KEYS  log, job, lease, archive lock, tombstone, archive, garbage
-- ARGV  token of the archive lock, how many ms the id stays deleted (0 neither creates nor removes a tombstone)
-- ->    OK | RUNS: a runner holds the job | FENCED
local log, job, lease, lock = KEYS[1], KEYS[2], KEYS[3], KEYS[4]

-- The log may have any type.
check_types(job, lease, lock)
if redis.call('GET', lock) ~= ARGV[1] then return {'FENCED'} end
if not is_free(redis.call('GET', lease)) then return {'RUNS'} end
if ARGV[2] ~= '0' then redis.call('SET', KEYS[5], '1', 'PX', ARGV[2]) end
if redis.call('EXISTS', log, job) > 0 then
  local is_log, state = pcall(read_job, log, job)
  if redis.call('HSET', job, 'deleting', '1') == 1 then append_change(job, 'DELETED', is_log and state or nil) end
  -- If the deletion is interrupted, archivers find the job by its garbage: it may have no other key that they look for.
  redis.pcall('HSET', KEYS[7], 'deleting', redis.call('TIME')[1])
end
redis.call('UNLINK', KEYS[6])
-- The terminal entry wakes readers that wait for the next line. They reread the job, and find it deleted. Otherwise
-- they would show a foreign runner's lines until their next check, perhaps seconds later.
if redis.call('TYPE', log).ok == 'stream' then
  local last, problem = head(log, job)
  local id = not problem and string.format('%.0f-0', last + 1)
  if id then redis.pcall('XADD', log, id, 'event', 'end', 'status', 'CANCELED') end
end
return {'OK'}
