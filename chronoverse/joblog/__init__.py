"""The values and rules of a job's log, without I/O.

model        lines, gaps, ends, jobs and times, also as Server-Sent Events and JSON
entries      decodes the entries of a job's Redis stream, and finds missing numbers
events       the events of a stream: names and frames
sse          encodes and decodes Server-Sent Events
chunk        the records of archived chunks of lines
labels       keys and values that describe a job, such as its branch
matcher      matches lines against a search query
secret_forms masks secrets with known formats, such as keys and tokens
line_filter  selects the lines of a filtered stream
shapes       the shape of a line: its text without numbers, times etc., to compare lines of two runs
timelines    a log's pauses, compared with those of good runs; a running job's remaining time
causes       finds the likely cause in a failed job's log, without good runs
past_runs    the runs that have a line of a given shape, and the verdict on a failure
line_splitter splits bytes, including progress bars, into lines
comparing    compares a copy of lines with a log, by digests
terminal     makes lines safe to print on a terminal
watches      webhooks about a workflow's jobs
summary      a job's new lines, errors and last lines, in a limited number of bytes
"""
