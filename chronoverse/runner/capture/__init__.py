"""Capture: from a command's output to lines.

    pipes ──> LineAssembler, one for each stream ──────────────────────> LineBatch
                ProgressFilter ──> Masker ──> LineSplitter

pipes            reads both pipes in one loop, so all lines have one order and one clock
pseudoterminal   gives the command a terminal instead of two pipes
foreground       lets the command read from our own terminal
line_assembler   turns one stream's bytes into batches of lines, also progress bars, with the two below
masking          replaces secrets by ***
line_splitter    splits bytes into lines
"""
