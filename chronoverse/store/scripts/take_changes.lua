-- Reads the next changes for the processes that share them, a consumer group.
-- KEYS  changes
-- ARGV  the group; '' for changes that nobody has read, or for how many ms one has read them without an answer; the number
--       of the last change that the caller can do without, as all before it
-- ->    {entries, 0} | {{}, the last number}: some were trimmed that nobody has read and answered
local key, group, idle = KEYS[1], ARGV[1], ARGV[2]
local groups = redis.pcall('XINFO', 'GROUPS', key)
-- There are no changes.
if groups.err then return {{}, 0} end
local read
for _, each in ipairs(groups) do
  if field(each, 'name') == group then read = field(each, 'last-delivered-id') end
end
if not read then
  redis.call('XGROUP', 'CREATE', key, group, '0')
  read = '0-0'
end

local function number(id) return tonumber(string.match(id, '^%d+')) end

local info, waits = stream_info(key), redis.call('XPENDING', key, group)[2]
local first = info['first-entry'] and info['entries-added'] > info['length'] and number(info['first-entry'][1]) or 0
if first > ARGV[3] + 1 and (number(read) + 1 < first or waits and number(waits) < first) then
  return {{}, number(info['last-generated-id'])}
end
if idle ~= '' then return {redis.call('XAUTOCLAIM', key, group, group, idle, '0-0', 'COUNT', 100)[2], 0} end
local found = redis.call('XREADGROUP', 'GROUP', group, group, 'COUNT', 100, 'STREAMS', key, '>')
return {found and found[1][2] or {}, 0}
