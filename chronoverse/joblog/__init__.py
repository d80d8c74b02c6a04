"""What a job's log is: values and rules without I/O.

values      a line, a gap, the end, a job, and their spellings in Redis, Server-Sent Events and JSON
entries     what the entries of a job's stream in Redis mean, whoever wrote them
sse         the frames of Server-Sent Events, in both directions
chunk       what is known of an archived chunk of lines
matcher     whether a line matches a search, and where
time_range  from when until when lines are searched
"""
