-- Adds, replaces or deletes a watch. A new watch must not report changes from before it.
-- KEYS  changes
-- ARGV  the group that reads the changes; the key of the watches, for which other rights apply; HSET or HDEL, and its
--       arguments
-- ->    how many fields are new or deleted
local key, group, watches, command = KEYS[1], ARGV[1], ARGV[2], ARGV[3]
-- Fails if there are no changes yet; the group is then created with the first change.
if command == 'HSET' then redis.pcall('XGROUP', 'CREATE', key, group, '$') end
local found = redis.call(command, watches, unpack(ARGV, 4))
if #redis.call('HGETALL', watches) == 0 then redis.pcall('XGROUP', 'DESTROY', key, group) end
return found
