"""The runner: runs a command as a job, and publishes every line of its output. The command never waits for the store.

    Command ──> LineAssembler ──> Spool ──> Publisher ──> the store, or the service (HttpLogWriter)
      └──> Tee ──> our own stdout and stderr

capture/          reads a command's pipes or terminal into batches of lines, in the main thread
spool/            holds lines until they are safe in the store
command           runs one command: forwards signals, copies its output, returns its exit code
publisher         opens the job, appends its lines, renews its lease and ends it; releases safe lines from the spool
outage            retries after temporary errors, and tells the user
http_log_writer   publishes through the service instead of the store
ci_labels         labels from the environment of a CI system
readback          compares the runner's copy of lines with the log, before the copy is deleted
run               ``chronoverse run``: combines all of these
resend            ``chronoverse deliver``: delivers the spool file that a runner left
api               publishing from Python programs
"""
