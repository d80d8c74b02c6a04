"""Reads new lines once for all viewers, and leads each viewer through a log.

tail          the one reader of a worker: waits for the next lines of every watched job, and checks the jobs
feed          a watched job in a worker: a ring of encoded frames
viewer        one reader's cursor: replay first, then the ring, then the end
changes, workflow_viewer  the same for a workflow's changes
replay        reads lines older than the ring for a viewer
replay_cache  segments that several replays share
"""
