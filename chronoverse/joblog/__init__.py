"""What a job's log is: values and rules without I/O.

values      a line, a gap, the end, a job, and how Redis, Server-Sent Events and JSON write them
entries     what the entries of a job's stream in Redis mean, and which numbers are missing
ending      what the end of a job means to a reader
sse         the frames of Server-Sent Events, in both directions
chunk       the records of archived chunks of lines
matcher     whether a line matches a search, and where
shapes      which lines of two runs are the same but for numbers, times and the like
time_range  times between which lines are searched
"""
