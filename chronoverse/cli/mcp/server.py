"""The Model Context Protocol on stdin and stdout, with the official SDK.

The SDK's low-level server is used. Its other one makes schemas out of signatures, ignores arguments that it does not
know, and writes its own text in front of errors.
"""

import logging
from functools import partial
from typing import Any, Final

import anyio
import anyio.to_thread
import orjson
from jsonschema import Draft202012Validator
from mcp import types
from mcp.server.lowlevel import Server
from mcp.server.stdio import stdio_server

from chronoverse import __version__
from chronoverse.cli.mcp.answers import tidy
from chronoverse.cli.mcp.tools import INSTRUCTIONS, Tool, Tools, tool_list
from chronoverse.errors import ChronoverseError

#: Bytes of an error's text.
ERROR_BYTES: Final = 1_000

log = logging.getLogger(__name__)


def run(tools: Tools, max_wait: int) -> None:
    """Serves ``tools`` until stdin ends. Calls that are still running then are abandoned, but their threads live on.

    ``wait_for`` waits for at most ``max_wait`` seconds.
    """
    anyio.run(_serve, tools, max_wait)


async def _serve(tools: Tools, max_wait: int) -> None:
    listed = tool_list(max_wait)
    by_name = {tool.name: tool for tool in listed}

    async def list_tools(_context: Any, _params: Any) -> types.ListToolsResult:
        hints = types.ToolAnnotations(read_only_hint=True, open_world_hint=False)
        return types.ListToolsResult(
            tools=[
                types.Tool(name=name, description=description, input_schema=schema, annotations=hints)
                for name, description, schema in listed
            ]
        )

    async def call_tool(_context: Any, params: types.CallToolRequestParams) -> types.CallToolResult:
        answer = partial(_answer, tools, by_name.get(params.name), params.name, params.arguments or {})
        # Not asyncio's: a call that is cancelled must not be waited for.
        is_error, json = await anyio.to_thread.run_sync(answer, abandon_on_cancel=True)
        return types.CallToolResult(content=[types.TextContent(text=json.decode())], is_error=is_error)

    server = Server(
        "chronoverse",
        version=__version__,
        instructions=INSTRUCTIONS,
        on_list_tools=list_tools,
        on_call_tool=call_tool,
    )
    async with stdio_server() as (reader, writer):
        await server.run(reader, writer, server.create_initialization_options())


def _answer(tools: Tools, tool: Tool | None, name: str, arguments: dict[str, Any]) -> tuple[bool, bytes]:
    """Whether the call has failed, and the answer's JSON, or the error's."""
    if tool is None:
        return True, _error_json("Not Found", f"there is no tool {name}")
    try:
        problem = next(Draft202012Validator(tool.schema).iter_errors(arguments), None)
        if problem is not None:
            return True, _error_json("Bad Request", f"{problem.json_path.removeprefix('$.')}: {problem.message}")
        return False, getattr(tools, tool.name)(**_with_defaults(tool, arguments))
    except ChronoverseError as error:
        return True, _error_json(error.title, str(error))
    except Exception:
        log.exception("the tool %s failed", tool.name)
        return True, _error_json("Internal Error", "something went wrong here; the program's stderr says what")


def _with_defaults(tool: Tool, arguments: dict[str, Any]) -> dict[str, Any]:
    """``arguments``, and the schema's defaults for the others. JSON's 7.0 is the integer 7."""
    properties = tool.schema["properties"].items()
    defaults = {name: schema["default"] for name, schema in properties if "default" in schema}
    whole = {name: int(value) if isinstance(value, float) else value for name, value in arguments.items()}
    return {**defaults, **whole}


def _error_json(title: str, detail: str) -> bytes:
    return orjson.dumps({"error": tidy({"title": title, "detail": detail}, ERROR_BYTES)})
