#!lua flags=allow-oom
-- Adds an entry to the audit trail. The server trims the oldest ones, several at a time.
-- KEYS  audit trail
-- ARGV  entries to keep, then names and values
-- ->    OK
redis.call('XADD', KEYS[1], 'MAXLEN', '~', ARGV[1], '*', unpack(ARGV, 2))
return {'OK'}
