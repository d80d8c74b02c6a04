-- What is known of a job at this instant; and a RUNNING job whose lease is gone is declared LOST here.
-- KEYS  log, job, lease
-- ARGV  now (ISO 8601), lease in ms, retention in ms, grace in ms
-- ->    nil when there is neither a log nor a job, or it is being deleted, else
--       {job hash as field, value, …; first id; last id; first entry's timestamp; terminal entry as field, value, …;
--       1 when the runner is suspected}
-- Only a leased job (it has an attempt) can be lost: a foreign runner without a lease never is. Whoever finds the lease
-- gone first only puts the end of the grace in its place: a server that stood still lets leases expire that nobody could
-- renew, and the runner, if it lives, opens again within the grace. While the server has been up for less than a lease
-- no runner had the time to renew, and while it refuses writes none could: nobody is judged then.
local log, job, lease = KEYS[1], KEYS[2], KEYS[3]

local hash = redis.call('HGETALL', job)
local exists = redis.call('EXISTS', log) == 1
if #hash == 0 and not exists or field(hash, 'deleting') then return false end

local suspected = 0
if field(hash, 'status') == 'RUNNING' and field(hash, 'attempt') then
  local holder = redis.call('GET', lease)
  if is_free(holder) and server_uptime() * 1000 >= tonumber(ARGV[2]) then
    local last, shape = tip(log, job)
    local time, grace = redis.call('TIME'), tonumber(ARGV[4])
    local now = time[1] * 1000 + math.floor(time[2] / 1000)
    if shape ~= 'CLOSED' and not holder then
      redis.pcall('SET', lease, string.format('grace:%.0f', now + grace), 'PX', 20 * grace)
      suspected = 1
    elseif shape ~= 'CLOSED' and now < tonumber(string.sub(holder, 7)) then
      suspected = 1
    elseif shape ~= 'CLOSED' and close(log, job, last, 'LOST', '', '0', ARGV[1], ARGV[3]) then
      redis.call('DEL', lease)
      hash = redis.call('HGETALL', job)
      exists = true
    end
  end
end
if not exists then return {hash, '', '', '', {}, suspected} end

local info = stream_info(log)
local first, last = info['first-entry'], info['last-entry']
local terminal = last and field(last[2], 'event') == 'end'
return {
  hash,
  first and first[1] or '',
  info['last-generated-id'],
  first and field(first[2], 'timestamp') or '',
  terminal and last[2] or {},
  suspected,
}
