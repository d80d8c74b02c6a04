"""From a command's output to lines.

pipes            reads both pipes in one loop, so that there is one order and one clock
pseudoterminal   gives the command a terminal instead
line_assembler   one stream's bytes to batches of lines: all of the following together
line_splitter    bytes to lines
progress_filter  progress bars to lines
masking          secrets to ***
foreground       makes the command's process group the terminal's foreground group
"""
