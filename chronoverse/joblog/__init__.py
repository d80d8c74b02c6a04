"""What a job's log is: values and rules without I/O.

model a line, a gap, the end, a job and their times, and their forms as Server-Sent Events and JSON
entries      decodes the entries of a job's Redis stream, and finds missing numbers
events       the events of a stream: their names and their frames
sse          encodes and decodes Server-Sent Events
chunk        the records of archived chunks of lines
labels       what a job was for, such as its branch
matcher      whether a line matches a search, and where
secret_forms masks secrets known by their form, such as keys and tokens
line_filter  which lines a stream with a filter has
shapes       the shape of a line: lines of two runs with the same shape differ only in numbers, times and the like
timelines    the pauses of a log, compared with those of good runs; the time left of a running job
causes       finds the likely cause in a failed log, without good runs
past_runs    which runs have lines of one shape, and the verdict on a failure
line_splitter splits bytes into lines, also progress bars
comparing    compares a copy of lines with a log, by digests
terminal     makes lines safe to print on a terminal
watches      webhooks about a workflow's jobs
summary      a job's new lines, errors and last lines, in a bounded number of bytes
"""
