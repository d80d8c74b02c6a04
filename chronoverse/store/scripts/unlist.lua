-- Removes jobs that have neither a log nor a hash from their workflow's listing and running jobs. The check and the
-- removal are one step, so a job that has just begun stays.
-- KEYS  jobs, then each job's log and hash
-- ARGV  the job ids, in the same order
-- ->    number of jobs removed
local jobs, removed = KEYS[1], 0
for number, id in ipairs(ARGV) do
  if redis.call('EXISTS', KEYS[2 * number], KEYS[2 * number + 1]) == 0 then
    if redis.call('ZREM', jobs, id) == 1 then
      removed = removed + 1
      append_change(KEYS[2 * number + 1], 'DELETED')
    else
      redis.pcall('SREM', string.gsub(jobs, 'jobs$', 'running'), id)
    end
  end
end
return removed
