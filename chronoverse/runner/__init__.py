"""The runner: runs a command as a job, and publishes every line of its output.

capture/          from a command's pipes or terminal to lines
spool/            where lines wait until the store has them safely
command           one command, from its start to its exit code
tee               copies the command's output to our own
signal_forwarder  hands signals on to the command
publisher         opens the job, appends its lines, keeps its lease and ends it
append_pipeline   appends under way, of which the next leaves before the last is answered
durability        asks how far the log is safe on the store's disk
log_writer        what a runner needs of a store
http_log_writer   the same through the service
readback          reads lines back before a copy of them is deleted
run               all of that together: ``chronoverse run``
resend            delivers what a runner left: ``chronoverse deliver``
api               publishing from Python programs
"""
