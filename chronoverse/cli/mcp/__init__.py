"""``chronoverse mcp``: the service's logs for programs that think, over the Model Context Protocol.

command  the command
server   the protocol, with the official SDK: the list of tools, calls, errors
tools    the six tools: what they take, and which requests they send to the service
answers  what an answer has: lines as bounded JSON that is safe to show, and the notice that they are data

https://modelcontextprotocol.io/specification/2025-11-25/server/tools describes tools.
"""
