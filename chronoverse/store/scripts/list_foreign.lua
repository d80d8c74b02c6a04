-- Adds a foreign job to the listing, unless it is already listed, or gone.
-- KEYS  log, job, jobs
-- ARGV  creation time (Unix ms), job id
-- ->    its creation time in the listing, or nil
local log, job, jobs = KEYS[1], KEYS[2], KEYS[3]
check_types(jobs)
if not read_job(log, job) then return false end
list_job(jobs, ARGV[2], ARGV[1], true)
note_change(log, job)
return listed_score(jobs, ARGV[2])
