"""The runner: runs a command as a job, and publishes every line of its output.

    Command ──> LineAssembler ──> Spool ──> Publisher ──> the store, or the service (HttpLogWriter)
      └──> Tee ──> our own stdout and stderr

capture/          from a command's pipes or terminal to batches of lines, in the main thread
spool/            where lines wait until the store has them safely
command           one command, from its start to its exit code, with its signals and the copy of its output
publisher         opens the job, appends its lines, renews its lease and ends it; releases safe lines from the spool
outage            what keeps lines from the store for a while, and what the user hears of it
http_log_writer   publishes through the service instead of the store
ci_labels         labels from the environment of a CI system
readback          compares a log with a copy of its lines, before the copy is deleted
run               ``chronoverse run``: all of these together
resend            delivers the spool file that a runner left: ``chronoverse deliver``
api               publishing from Python programs

The command never waits for the store: lines go to the spool, and the publisher's thread takes them from there.
"""
