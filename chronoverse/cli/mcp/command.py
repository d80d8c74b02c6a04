"""The command ``chronoverse mcp``."""

import os
import signal
from importlib.util import find_spec
from typing import Final

import click

from chronoverse.cli.common import open_client, read_settings
from chronoverse.errors import SettingsError

#: Seconds of ``wait_for``, at most, unless the command says otherwise. The official SDK for TypeScript gives up a call
#: after 60 s, and so do clients that are made with it.
_MAX_WAIT: Final = 50
#: Seconds of silence after which an answer counts as lost, as three heartbeats. A wait is asked for in pieces of 20 s.
_HEARTBEAT_SECONDS: Final = 8.0
#: Attempts at a request, and the seconds for which it is tried again: longer than a service takes to restart, and with
#: one more attempt shorter than the 60 s after which clients give up.
_ATTEMPTS: Final = 6
_RETRY_SECONDS: Final = 20.0


@click.command()
@click.option(
    "--max-wait",
    type=click.IntRange(1, 3_600),
    default=_MAX_WAIT,
    show_default=True,
    metavar="SECONDS",
    help="The longest wait_for. Many MCP clients give up a call after 60 s.",
)
def mcp(max_wait: int) -> None:
    """Serve logs to programs over the Model Context Protocol, on standard input and output.

    An MCP client starts this command. It only reads, with the rights of its token, until standard input ends.
    """
    if find_spec("mcp") is None:
        raise SettingsError("chronoverse mcp needs the MCP SDK: pip install 'chronoverse[mcp]'")
    settings = read_settings()
    # The SDK reads stdin in a thread, for which Python would wait after Ctrl-C. The system's handler ends us at once.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    from chronoverse.auth.minting import EVERY_WORKFLOW
    from chronoverse.cli.mcp.server import run
    from chronoverse.cli.mcp.tools import Tools

    client = open_client(
        settings,
        EVERY_WORKFLOW,
        heartbeat_seconds=_HEARTBEAT_SECONDS,
        max_attempts=_ATTEMPTS,
        max_retry_seconds=_RETRY_SECONDS,
    )
    run(Tools(client, settings.service_url.rstrip("/")), max_wait)
    # Threads of calls that were abandoned may still wait for the service. They only read, so nothing is lost.
    os._exit(0)
