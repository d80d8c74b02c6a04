-- Reads the next changes for the processes that share them, as a consumer group.
-- KEYS  changes
-- ARGV  the group; after how many ms a change that was read is read again, unless it was acknowledged; the number up to
--       which the caller does not need changes; the key of the watches, for which other rights apply
-- ->    {entries, 0} | {{}, the last number} if needed changes were trimmed before they were acknowledged
local key, group, idle = KEYS[1], ARGV[1], ARGV[2]
local groups = redis.pcall('XINFO', 'GROUPS', key)
-- There are no changes.
if groups.err then return {{}, 0} end
local read
for _, each in ipairs(groups) do
  if field(each, 'name') == group then read = field(each, 'last-delivered-id') end
end
if not read then
  -- No watches: a watch that is added later must not report these changes.
  if #redis.call('HGETALL', ARGV[4]) == 0 then return {{}, 0} end
  redis.call('XGROUP', 'CREATE', key, group, '0')
  read = '0-0'
end

local function number(id) return tonumber(string.match(id, '^%d+')) end

local info, waits = stream_info(key), redis.call('XPENDING', key, group)[2]
local first = info['first-entry'] and info['entries-added'] > info['length'] and number(info['first-entry'][1]) or 0
if first > ARGV[3] + 1 and (number(read) + 1 < first or waits and number(waits) < first) then
  return {{}, number(info['last-generated-id'])}
end
local old = waits and redis.call('XAUTOCLAIM', key, group, group, idle, '0-0', 'COUNT', 100)[2] or {}
if #old > 0 then return {old, 0} end
local found = redis.call('XREADGROUP', 'GROUP', group, group, 'COUNT', 100, 'STREAMS', key, '>')
return {found and found[1][2] or {}, 0}
