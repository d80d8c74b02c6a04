"""``chronoverse mcp`` as a program uses it: with the official SDK's client, over pipes."""

import contextlib
import os
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import orjson

from tests.support.service import ROOT

# The SDK takes a second to import, and each process that collects tests imports this file.
if TYPE_CHECKING:
    from anyio.from_thread import BlockingPortal
    from mcp import Client
    from mcp_types import CallToolResult, Tool

#: Seconds that a call may take on a busy machine.
PATIENCE_SECONDS: Final = 100


class Answer(NamedTuple):
    """What a call has answered: the text as it came, whether it is an error, and the JSON in it."""

    text: str
    is_error: bool

    @property
    def json(self) -> Any:
        """The answer as JSON."""
        return orjson.loads(self.text)

    @property
    def size(self) -> int:
        """Bytes of the answer."""
        return len(self.text.encode())


def read_answer(result: "CallToolResult") -> Answer:
    """The answer of a result, which has one text and nothing else."""
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
        """The tools that it offers."""
        return self._portal.call(self.client.list_tools).tools

    def answer(self, tool: str, **arguments: Any) -> Answer:
        """The answer of a call, which may be an error."""

        return read_answer(self._portal.call(self.client.call_tool, tool, arguments))

    def call(self, tool: str, **arguments: Any) -> Any:
        """The JSON of a call's answer, which is no error and not larger than allowed."""
        answer = self.answer(tool, **arguments)
        assert not answer.is_error, answer.text
        assert answer.size <= arguments.get("max_bytes", 16_384)
        return answer.json

    def error(self, tool: str, **arguments: Any) -> tuple[str, str]:
        """The title and the detail of a call's error."""
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
        # Its default for errors is what sys.stderr was at its import, and a test may have replaced that.
        transport = stdio_client(server, errlog=sys.__stderr__ or sys.stderr)
        client = Client(transport, mode=mode, read_timeout_seconds=PATIENCE_SECONDS)
        with portal.wrap_async_context_manager(client):
            yield McpProgram(portal, client)
