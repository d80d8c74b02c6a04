-- Describes a workflow, for listings.
-- KEYS  jobs
-- ARGV  number of newest jobs to describe
-- ->    {number of jobs; number of running jobs; score of the newest job; its id; statuses of the newest jobs, newest
--       first, separated by spaces; ids of those whose status is '?'}
-- A status is '?' unless the id is valid and the hash has RUNNING or an end. Nil if there are no jobs. The statuses are
-- one string, because a page has a hundred workflows. The other keys are not in KEYS for the reason given at
-- is_deleted().
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
  if status ~= 'RUNNING' and not is_terminal(status) or not string.match(id, '^%w[%w._-]*$') then
    status = '?'
    found[#found + 1] = id
  end
  statuses[at] = status
end
found[5] = table.concat(statuses, ' ')
return found
