"""The Model Context Protocol on stdin and stdout, with the official SDK.

Uses the SDK's low-level server. The high-level one derives schemas from signatures, ignores unknown arguments, and adds
a prefix to error messages.
"""

import json
import logging
from functools import partial
from typing import Any

import anyio
import anyio.to_thread
import orjson
from jsonschema import Draft202012Validator
from mcp import types
from mcp.server.lowlevel import Server
from mcp.server.stdio import stdio_server
from mcp.shared.message import SessionMessage

from chronoverse import __version__
from chronoverse.cli.mcp.answers import tidy
from chronoverse.cli.mcp.tools import INSTRUCTIONS, Tool, Tools, tool_list
from chronoverse.client.near import explain_not_found
from chronoverse.errors import ChronoverseError, JobNotFound

log = logging.getLogger(__name__)


def run(tools: Tools, max_wait: int) -> None:
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
        # Uses anyio's threads, which can be abandoned, so that nothing waits for a canceled call.
        is_error, json = await anyio.to_thread.run_sync(answer, abandon_on_cancel=True)
        return types.CallToolResult(content=[types.TextContent(text=json.decode())], is_error=is_error)

    server = Server(
        "chronoverse", version=__version__, instructions=INSTRUCTIONS, on_list_tools=list_tools, on_call_tool=call_tool
    )
    async with stdio_server() as (reader, writer), anyio.create_task_group() as tasks:
        readable, messages = anyio.create_memory_object_stream[SessionMessage | Exception]()
        tasks.start_soon(_refuse_unreadable, reader, readable, writer)
        await server.run(messages, writer, server.create_initialization_options())


async def _refuse_unreadable(reader: Any, readable: Any, writer: Any) -> None:
    """Passes messages from ``reader`` to ``readable``. Refuses lines that the SDK would drop without an answer.

    Those are invalid JSON, invalid JSON-RPC, and requests with an unpaired surrogate, such as ``"\\ud800"``.
    """
    async with readable:
        async for message in reader:
            number, code, problem = _refusal(message) if isinstance(message, Exception) else (None, 0, "")
            if not problem:
                await readable.send(message)
                continue
            error = types.ErrorData(code=code, message=problem)
            await writer.send(SessionMessage(types.JSONRPCError(jsonrpc="2.0", id=number, error=error)))


def _refusal(error: Any) -> tuple[int | str | None, int, str]:
    """The answer's id, code and message, for a line that the SDK refused with pydantic's ``error``.

    The message is empty if there is no answer: the line is blank, or is not a request.
    """
    try:
        problems = error.errors()
        if problems[0]["type"] != "json_invalid":
            inputs = [each["input"] for each in problems if isinstance(each["input"], dict)]
            number = next((each.get("id") for each in inputs if "method" in each), None)
            known = number if type(number) in (int, str) else None
            return known, types.INVALID_REQUEST, "not a single JSON-RPC 2.0 message"
        line = problems[0]["input"]
        number = json.loads(line)["id"]
        orjson.dumps(number)
    except (json.JSONDecodeError, RecursionError) as invalid:
        return None, types.PARSE_ERROR, line.strip() and f"invalid JSON: {invalid}"
    except (AttributeError, LookupError, TypeError, ValueError):
        return None, 0, ""
    problem = "a string has an unpaired surrogate, such as \\ud800, which cannot be encoded as UTF-8"
    return number, types.INVALID_PARAMS, problem if type(number) in (int, str) else ""


def _answer(tools: Tools, tool: Tool | None, name: str, arguments: dict[str, Any]) -> tuple[bool, bytes]:
    if tool is None:
        return True, _error_json("Not Found", f"unknown tool {name}")
    try:
        problem = next(Draft202012Validator(tool.schema).iter_errors(arguments), None)
        if problem is not None:
            where = problem.json_path.removeprefix("$.").replace("$", "arguments")
            return True, _error_json("Bad Request", f"{where}: {problem.message}")
        return False, getattr(tools, tool.name)(**_with_defaults(tool, arguments))
    except JobNotFound as error:
        ids = [arguments[name] for name in ("workflow_id", "job_id") if name in arguments]
        text = explain_not_found(tools.client, *ids, of_line="line" in arguments) if ids else str(error)
        return True, _error_json(error.title, text)
    except ChronoverseError as error:
        return True, _error_json(error.title, str(error))
    except Exception:
        log.exception("the tool %s failed", tool.name)
        return True, _error_json("Internal Error", "internal error: see the program's stderr")


def _with_defaults(tool: Tool, arguments: dict[str, Any]) -> dict[str, Any]:
    """``arguments`` with the schema's defaults filled in. Converts floats such as 7.0, an integer in JSON Schema."""
    properties = tool.schema["properties"].items()
    defaults = {name: schema["default"] for name, schema in properties if "default" in schema}
    whole = {name: int(value) if isinstance(value, float) else value for name, value in arguments.items()}
    return {**defaults, **whole}


def _error_json(title: str, detail: str) -> bytes:
    # Texts have at most 1,000 bytes.
    return orjson.dumps({"error": tidy({"title": title, "detail": detail}, 1_000)})
