-- What is known of a job at this instant; and a RUNNING job whose lease is gone is declared LOST here.
-- KEYS  log, job, lease
-- ARGV  now (ISO 8601), lease in ms, retention in ms
-- ->    nil when there is neither a log nor a job, else
--       {job hash as field, value, …; first id; last id; first entry's timestamp; terminal entry as field, value, …}
-- Only a leased job (it has an attempt) can be lost: a foreign runner without a lease never is. While the
-- server has been up for less than a lease no runner had the time to renew, and while it refuses writes
-- none could: nobody is judged then.
local log, job, lease = KEYS[1], KEYS[2], KEYS[3]

local hash = redis.call('HGETALL', job)
local exists = redis.call('EXISTS', log) == 1
if #hash == 0 and not exists then return false end

if field(hash, 'status') == 'RUNNING' and field(hash, 'attempt') and redis.call('EXISTS', lease) == 0 then
  local last, shape = tip(log)
  local uptime = tonumber(string.match(redis.call('INFO', 'server'), 'uptime_in_seconds:(%d+)'))
  if shape ~= 'CLOSED' and uptime * 1000 >= tonumber(ARGV[2]) then
    if close(log, job, last, 'LOST', '', '0', ARGV[1], ARGV[3]) then
      hash = redis.call('HGETALL', job)
      exists = true
    end
  end
end
if not exists then return {hash, '', '', '', {}} end

local info = stream_info(log)
local first, last = info['first-entry'], info['last-entry']
local terminal = last and field(last[2], 'event') == 'end'
return {
  hash,
  first and first[1] or '',
  info['last-generated-id'],
  first and field(first[2], 'timestamp') or '',
  terminal and last[2] or {},
}
