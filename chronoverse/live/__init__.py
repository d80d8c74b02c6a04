"""Reads new lines once per worker, and sends each viewer its log: older lines first, then new ones.

tail          a worker's single live reader: reads new lines of all watched jobs, and checks the jobs' states
feed          a watched job in a worker: a ring buffer of encoded frames
viewer        one event stream: replays older lines, follows the feed, sends the end
changes, workflow_viewer  feed and viewer of a workflow's changes
replay        reads the lines that are no longer in the ring, for one viewer
replay_cache  segments that several replays share
"""
