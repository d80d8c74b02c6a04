"""New lines, read once for all who watch, and each viewer's walk through a log.

tail          the one reader of a worker: waits for the next lines of every watched job, and checks the jobs
feed          what a worker holds of a watched job: a ring of encoded frames
viewer        one reader's cursor: replay first, then the ring, then the end
changes, workflow_viewer  the same for a workflow's changes, which are read as a log's lines are
replay        a viewer's walk through lines that are older than the ring
replay_cache  parts of logs that several replays read, each read once
"""
