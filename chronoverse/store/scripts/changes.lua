-- The first and last number of a workflow's changes, for readers.
-- KEYS  changes
-- ->    {first, last}
-- If the last change is from another server, or from this one before a restart, changes that readers have seen may be
-- lost, and newer ones may have the same numbers. Then the newest change is appended again, with the time as its
-- number. Readers see the gap before it, and start over.
local changes = KEYS[1]
check_types(changes)
if redis.call('EXISTS', changes) == 0 then return {1, 0} end
local info = stream_info(changes)
local first, entry, last = info['first-entry'], info['last-entry'], tonumber(string.match(info['last-generated-id'], '^%d+'))
local server = server_id()
if entry and server ~= '' and field(entry[2], 'server') ~= server then
  local function value(name) return field(entry[2], name) or '' end
  local number = math.max(now_ms(), last + 1)
  if add_change(changes, number, value('id'), value('status'), value('state'), server) then last = number end
end
return {first and tonumber(string.match(first[1], '^%d+')) or last + 1, last}
