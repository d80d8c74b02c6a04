"""Capture: turns a command's output into lines.

    pipes ──> LineAssembler, one per stream ───────────────────────────> LineBatch
                ProgressFilter ──> Masks ──> LineSplitter

pipes            reads both pipes in one loop, so that their lines share one order and one clock
terminals        lends our terminal to the command, or allocates a pseudo-terminal that replaces the two pipes
line_assembler   turns one stream's bytes into batches of lines
masking          replaces secrets with ***
"""
