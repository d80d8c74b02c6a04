-- What is known of a job's archiving.
-- KEYS  log, job, archive, workflow's settings
-- ->    {archived, archive_state, deleting, swept, finished_at, archived_at, the settings' retention_seconds,
--       the log's first id, its last id}; '' for what there is not
-- A hash that was lost is told again what the records of the chunks say.
local log, job, archive, settings = KEYS[1], KEYS[2], KEYS[3], KEYS[4]

local names = {'archived', 'archive_state', 'deleting', 'swept', 'finished_at', 'archived_at'}
local answer = redis.call('HMGET', job, unpack(names))
if not answer[1] then
  local ends = {redis.call('ZRANGE', archive, 0, 0)[1], redis.call('ZRANGE', archive, -1, -1)[1]}
  if ends[1] then
    local first, last = cjson.decode(ends[1])['first'], cjson.decode(ends[2])['last']
    answer[1] = string.format('%.0f', last)
    redis.call('HSET', job, 'archived', answer[1], 'archived_first', string.format('%.0f', first))
    redis.call('PERSIST', job)
  end
end
answer[7] = redis.call('HGET', settings, 'retention_seconds')
for at = 1, 7 do answer[at] = answer[at] or '' end
local info = redis.call('EXISTS', log) == 1 and stream_info(log) or {}
answer[8] = info['first-entry'] and info['first-entry'][1] or ''
answer[9] = info['last-generated-id'] or ''
return answer
