-- What is known of a workflow.
-- KEYS  jobs
-- ARGV  how many of its newest jobs
-- ->    {how many jobs it has; how many of them run; the score of the newest one; its id; the statuses of the newest ones,
--       the newest first, with a space between; the ids of those that are '?'}
-- A status is '?' unless the hash says that the job runs or has ended. Nil when there are no jobs. The statuses are one
-- text, since a page has a hundred workflows. The other keys are none of KEYS, for the reason that is_deleted() gives.
local workflow, newest = string.match(KEYS[1], '^.*:'), redis.call('ZRANGE', KEYS[1], 0, ARGV[1] - 1, 'REV')
if not newest[1] then return false end
local running = redis.pcall('SCARD', workflow .. 'running')
local found = {
  redis.call('ZCARD', KEYS[1]),
  type(running) == 'number' and running or 0,
  redis.call('ZMSCORE', KEYS[1], newest[1])[1],
  newest[1],
  '',
}
local statuses = {}
for at, id in ipairs(newest) do
  local status = redis.pcall('HGET', workflow .. id .. ':job', 'status')
  if status ~= 'RUNNING' and not is_terminal(status) then
    status = '?'
    found[#found + 1] = id
  end
  statuses[at] = status
end
found[5] = table.concat(statuses, ' ')
return found
