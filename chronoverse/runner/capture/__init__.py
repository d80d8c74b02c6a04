"""Capture: from a command's output to lines.

    pipes ──> LineAssembler, one for each stream ──────────────────────> LineBatch
                ProgressFilter ──> Masks ──> LineSplitter

pipes            reads both pipes in one loop, so all lines have one order and one clock
terminals        lends our terminal to the command, or allocates a pseudo-terminal instead of two pipes
line_assembler   turns one stream's bytes into batches of lines, with ``joblog.line_splitter`` and the masks
masking          replaces secrets by ***
"""
