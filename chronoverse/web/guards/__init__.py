"""What bounds the work, the memory and the sockets of a worker.

admission        who may open an event stream or a download, and the drain at the end
connection       sockets of all requests: limits for slow clients, and which are closed to make room
event_loop       lets other greenlets of the worker run
memory           divides a limited amount of memory among subjects
rates            a token bucket, and the limit on how fast a subject publishes
turns            bounds how many requests do the same expensive work at a time, and serves subjects in turn
replay_throttle  slows many replays down, so that live lines are not delayed
unread_answers   bounds the memory for answers that their clients have not read yet
"""
