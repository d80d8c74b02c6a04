#!lua flags=allow-oom
-- Reads how far a job is archived.
-- KEYS  log, job, archive, workflow's settings
-- ->    {archived, archive_state, deleting, swept, ms since the end was seen, archived_at, the settings'
--       retention_seconds, the log's first id, its last id, when the end was seen in Unix ms, archive_shapes}; '' for
--       each missing value
-- If the job's hash was lost, restores its archive fields from the records of the chunks.
local log, job, archive, settings = KEYS[1], KEYS[2], KEYS[3], KEYS[4]

-- The first and last number in a chunk's record. Raises an error for an invalid record.
local function span(record)
  local is_json, chunk = pcall(cjson.decode, record)
  if is_json and type(chunk) == 'table' then
    local first, last = tonumber(chunk.first), tonumber(chunk.last)
    if first and last and first >= 1 and first <= last and last <= 999999999999999 and first % 1 == 0 and last % 1 == 0
    then
      return first, last
    end
  end
  error(redis.error_reply('WRONGTYPE ' .. archive .. ' holds something that is no record of a chunk'))
end

check_types(log, job, archive)
local names = {'archived', 'archive_state', 'deleting', 'swept', 'end_seen_ms', 'archived_at'}
local answer = redis.call('HMGET', job, unpack(names))
if not answer[1] then
  local first_record, last_record = redis.call('ZRANGE', archive, 0, 0)[1], redis.call('ZRANGE', archive, -1, -1)[1]
  if first_record then
    local first, last = span(first_record), select(2, span(last_record))
    answer[1] = string.format('%.0f', last)
    redis.call('HSET', job, 'archived', answer[1], 'archived_first', string.format('%.0f', first))
    redis.call('PERSIST', job)
  end
end
local seen = end_seen(redis.call('HGET', job, 'end_seen_ms'))
answer[5] = seen and string.format('%.0f', now_ms() - seen)
-- A settings key of another type counts as empty. The workflow's jobs are still archived.
local retention = redis.pcall('HGET', settings, 'retention_seconds')
answer[7] = type(retention) == 'string' and retention
for at = 1, 7 do answer[at] = answer[at] or '' end
local info = redis.call('EXISTS', log) == 1 and stream_info(log) or {}
answer[8] = first_id(info)
answer[9] = info['last-generated-id'] or ''
answer[10] = seen and string.format('%.0f', seen) or ''
answer[11] = redis.call('HGET', job, 'archive_shapes') or ''
return answer
