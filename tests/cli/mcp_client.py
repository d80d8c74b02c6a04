"""``chronoverse mcp`` as programs use it: with the official SDK's client, over pipes."""

import contextlib
import os
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import orjson

from tests.support.service import ROOT

# Importing the SDK takes a second, and each process that collects tests imports this file.
if TYPE_CHECKING:
    from anyio.from_thread import BlockingPortal
    from mcp import Client
    from mcp_types import CallToolResult, Tool

#: Time limit of a call on a busy machine, in seconds.
PATIENCE_SECONDS: Final = 100


class Answer(NamedTuple):
    """The answer of a call: its raw text, whether it is an error, and its JSON."""

    text: str
    is_error: bool

    @property
    def json(self) -> Any:
        """The answer as JSON."""
        return orjson.loads(self.text)

    @property
    def size(self) -> int:
        """Size of the answer in bytes."""
        return len(self.text.encode())


def read_answer(result: "CallToolResult") -> Answer:
    """The answer in a result, which consists of a single text."""
    (content,) = result.content
    assert content.type == "text"
    assert result.structured_content is None
    return Answer(content.text, result.is_error)


class McpProgram:
    """A program that has started ``chronoverse mcp``."""

    def __init__(self, portal: "BlockingPortal", client: "Client") -> None:
        self._portal = portal
        self.client = client

    def tools(self) -> list["Tool"]:
        """The tools offered."""
        return self._portal.call(self.client.list_tools).tools

    def answer(self, tool: str, **arguments: Any) -> Answer:
        """The answer of a call, possibly an error."""

        return read_answer(self._portal.call(self.client.call_tool, tool, arguments))

    def call(self, tool: str, **arguments: Any) -> Any:
        """The JSON of a call's answer, which must be no error and within the size limit."""
        answer = self.answer(tool, **arguments)
        assert not answer.is_error, answer.text
        assert answer.size <= arguments.get("max_bytes", 16_384)
        return answer.json

    def error(self, tool: str, **arguments: Any) -> tuple[str, str]:
        """Title and detail of a call's error."""
        answer = self.answer(tool, **arguments)
        assert answer.is_error, answer.text
        return answer.json["error"]["title"], answer.json["error"]["detail"]


@contextlib.contextmanager
def mcp_program(*arguments: str, mode: str = "auto", **settings: str) -> Iterator[McpProgram]:
    """Starts ``chronoverse mcp`` with these settings, and ends it after the ``with`` block."""
    from anyio.from_thread import start_blocking_portal
    from mcp import Client, StdioServerParameters
    from mcp.client.stdio import stdio_client

    environ = {f"CHRONOVERSE_{name}": text for name, text in settings.items()}
    server = StdioServerParameters(
        command=sys.executable,
        args=["-m", "chronoverse", "mcp", *arguments],
        env={**environ, "PYTHONPATH": str(ROOT), "PATH": os.environ["PATH"]},
    )
    with start_blocking_portal() as portal:
        # The default for errors is sys.stderr at import time, which a test may have replaced.
        transport = stdio_client(server, errlog=sys.__stderr__ or sys.stderr)
        client = Client(transport, mode=mode, read_timeout_seconds=PATIENCE_SECONDS)
        with portal.wrap_async_context_manager(client):
            yield McpProgram(portal, client)
