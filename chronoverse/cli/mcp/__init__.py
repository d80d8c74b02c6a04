"""``chronoverse mcp``: logs for AI agents, over the Model Context Protocol.

server   the protocol, with the official SDK: lists and calls tools, reports errors
tools    the eight tools: their arguments, and their requests to the service
answers  bounded JSON answers, with a notice that log lines are not instructions

https://modelcontextprotocol.io/specification/2025-11-25/server/tools describes tools.
"""

import os
import signal
from importlib.util import find_spec

import click

from chronoverse.cli.common import integer_option, make_client, read_settings
from chronoverse.errors import SettingsError


@click.command()
@integer_option(
    "Maximum timeout of wait_for. Many MCP clients abort calls after 60 s.",
    (1, 3_600),
    50,
    "--max-wait",
    metavar="SECONDS",
)
def mcp(max_wait: int) -> None:
    """Serve logs to AI agents over the Model Context Protocol.

    MCP clients start it, and use its standard input and output. Read-only, with the rights of its token.
    """
    if find_spec("mcp") is None:
        raise SettingsError("chronoverse mcp needs the MCP SDK: install the extra mcp (docs/installing.md)")
    settings = read_settings()
    # The SDK reads stdin in a thread, for which Python would wait after Ctrl-C. The default handler exits at once.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    from chronoverse.auth.minting import EVERY_WORKFLOW
    from chronoverse.cli.mcp.server import run
    from chronoverse.cli.mcp.tools import Tools

    # wait_for sends requests of 20 s, and considers an answer lost after three missing heartbeats of 8 s. All attempts
    # together last longer than a restart of the service, but less than the 60 s timeout of the TypeScript SDK.
    client = make_client(settings, EVERY_WORKFLOW, heartbeat_seconds=8, max_attempts=6, max_retry_seconds=20)
    run(Tools(client, settings.service_url.rstrip("/")), max_wait)
    # Threads of canceled calls may still wait for the service. They only read, so nothing is lost.
    os._exit(0)
