-- Takes jobs of which nothing is left out of their workflow's listing. A job that has begun since it was last looked at
-- stays: the test and the removal are one step.
-- KEYS  jobs, then each job's log and hash
-- ARGV  the job ids, in the same order
-- ->    how many were taken out
local jobs, gone = KEYS[1], 0
for number, id in ipairs(ARGV) do
  if redis.call('EXISTS', KEYS[2 * number], KEYS[2 * number + 1]) == 0 then
    gone = gone + redis.call('ZREM', jobs, id)
  end
end
return gone
