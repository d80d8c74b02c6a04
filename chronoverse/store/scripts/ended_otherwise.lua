-- Finds the jobs of our own runners that have ended with a status other than this one. Their status is final.
-- KEYS  the jobs' hashes
-- ARGV  status
-- ->    for each job, 1 if it has, else 0
local found = {}
for at, job in ipairs(KEYS) do
  local values = redis.pcall('HMGET', job, 'status', 'attempt', 'created_at')
  -- A foreign runner sets at most one of the last two fields, and may end its job again.
  local ended = not values.err and values[2] and values[3] and is_terminal(values[1]) and values[1] ~= ARGV[1]
  found[at] = ended and 1 or 0
end
return found
