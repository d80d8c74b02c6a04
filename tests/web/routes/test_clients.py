"""Event stream clients of other projects. All of them must read the same lines from a difficult log."""

import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Final

import httpx
import httpx_sse
import orjson
import pytest
import sseclient
from ld_eventsource import SSEClient
from ld_eventsource.config import ConnectStrategy

from chronoverse.client.client import Client
from chronoverse.joblog.model import JobRef, Line
from tests.support.service import Service
from tests.support.tools import tool, unavailable
from tests.web.routes.foreign import TIMESTAMP, Foreign, ask_all
from tests.web.routes.wire import blocks

CLIENTS: Final = Path(__file__).parents[2] / "clients"
#: Time limit of any client for ten megabytes, in seconds.
PATIENCE_SECONDS: Final = 30
#: The size of a piece of a long line.
PART_BYTES: Final = 65_536

#: The messages of a hostile job, one per line.
HOSTILE: Final[list[bytes]] = [
    b"",
    b" ",
    b"  two spaces before, two behind  ",
    b"\r",
    b"\r\n",
    b"a\rb\r\nc\r",
    b"a\n\nevent: end\ndata: x",
    b'\n\nevent: end\ndata: {"status":"stream_ended"}\nid: 999999\n\n',
    b"data: x",
    b"data:",
    b"event: end",
    b"event: error",
    b"id: 999",
    b"id: 1\x000",
    b"retry: 1",
    b": a comment",
    b":",
    b"\xef\xbb\xbfa byte order mark first",
    b"NUL \x00 in between",
    bytes(range(32)),
    bytes(range(127, 160)),
    "".join(map(chr, range(127, 161))).encode(),
    "line\u2028paragraph\u2029next\u0085tab\x0bfeed\x0cend".encode(),
    b"no UTF-8: \xff\xfe\x80 \xc3( \xe2\x82 \xf0\x9f\x99",
    b"overlong: \xc0\xaf \xe0\x80\xaf",
    b"beyond: \xf4\x90\x80\x80",
    rb"a lone surrogate as text: \ud800 \udfff",
    b"a lone surrogate as bytes: \xed\xa0\x80 \xed\xbf\xbf",
    b"a pair of them as bytes: \xed\xa0\xbd\xed\xb8\x80",
    "noncharacters \ufffe \uffff and beyond \U0001f642 \U0010ffff".encode(),
    rb'quotes " \" and backslashes \ \\ \n \u0000',
    b"</script><!-- <img src=x onerror=alert(1)>",
    b"\x1b[2J\x1b]0;title\x07\x1b]52;c;aGk=\x07",
    ("right to left \u202e\u2066 combining a" + "\u0301" * 50).encode(),
]
#: The job's lines: hostile ones, a giant line in pieces, many empty ones, and a last one that marks the end.
GIANT: Final = ("0123456789abcde\u00e9" * 640_000).encode()[: 10 * 2**20]
PARTS: Final = [GIANT[start : start + PART_BYTES] for start in range(0, len(GIANT), PART_BYTES)]
WRITTEN: Final = [*HOSTILE, *PARTS, *[b""] * 1000, b"the last"]

#: The id and message of each line that a client reads.
Lines = list[tuple[str, str]]


@pytest.fixture(scope="module")
def written(service: Service) -> Foreign:
    job = Foreign(str(service.redis_url), "clients", "hostile")
    partial = range(len(HOSTILE) + 1, len(HOSTILE) + len(PARTS))
    commands: list[tuple[str | bytes, ...]] = []
    for number, message in enumerate(WRITTEN, 1):
        fields = ("timestamp", TIMESTAMP, "message", message, "stream", "stdout")
        more = ("partial", "1") if number in partial else ()
        commands.append(("XADD", job.key, f"{number}-0", *fields, *more))
    ask_all(str(service.redis_url), commands)
    job.last = len(WRITTEN)
    return job.end()


@pytest.fixture(scope="module")
def expected() -> Lines:
    """The lines that every client must read; bytes that are not UTF-8 are replaced."""
    return [(str(number), message.decode("utf-8", "replace")) for number, message in enumerate(WRITTEN, 1)]


def message(data: str) -> str:
    found: str = orjson.loads(data)["message"]
    return found


def curl(url: str, token: str) -> Lines:
    """Reads the bytes with curl and splits them at blank lines."""
    command = [tool("curl"), "--silent", "--no-buffer", "--max-time", str(PATIENCE_SECONDS), "-H", "@-", url]
    body = subprocess.run(command, input=f"Authorization: Bearer {token}".encode(), capture_output=True, check=True)
    return [(block["id"], block["data"]["message"]) for block in blocks(body.stdout) if block["event"] == "log"]


def httpx_sse_client(url: str, token: str) -> Lines:
    headers = {"Authorization": f"Bearer {token}"}
    with (
        httpx.Client(timeout=PATIENCE_SECONDS, verify=False) as client,
        httpx_sse.connect_sse(client, "GET", url, headers=headers) as source,
    ):
        return [(event.id, message(event.data)) for event in source.iter_sse() if event.event == "log"]


def sseclient_py(url: str, token: str) -> Lines:
    """Reads with sseclient-py, over httpx."""
    headers = {"Authorization": f"Bearer {token}"}
    with httpx.stream("GET", url, headers=headers, timeout=PATIENCE_SECONDS, verify=False) as response:
        events = sseclient.SSEClient(response.iter_bytes()).events()
        return [(str(event.id), message(event.data)) for event in events if event.event == "log"]


def launchdarkly(url: str, token: str) -> Lines:
    """Reads with launchdarkly-eventsource, which would reconnect at the end, so it is stopped there."""
    strategy = ConnectStrategy.http(url, headers={"Authorization": f"Bearer {token}"})
    client = SSEClient(strategy)
    found: Lines = []
    for event in client.events:
        if event.event == "end":
            break
        if event.event == "log":
            found.append((str(event.last_event_id), message(event.data)))
    client.close()
    return found


def ours(url: str, token: str) -> Lines:
    """Reads with the client behind ``chronoverse logs -f``."""
    base, _, path = url.partition("/workflows/")
    workflow_id, _, job_id, _ = path.split("/")
    client = Client(base, token)
    items = [*client.follow(JobRef(workflow_id, job_id))]
    client.close()
    return [(str(item.sequence_num), item.message) for item in items if isinstance(item, Line)]


def node(script: str) -> Callable[[str, str], Lines]:
    """Reads with an npm client, run by ``script``."""

    def read(url: str, token: str) -> Lines:
        if not (CLIENTS / "node_modules").is_dir():
            unavailable("npm install --prefix tests/clients was not run")
        environ = os.environ | {"STREAM_URL": url, "STREAM_TOKEN": token}
        command = [tool("node"), str(CLIENTS / script)]
        done = subprocess.run(command, env=environ, capture_output=True, timeout=PATIENCE_SECONDS, check=False)
        assert (done.returncode, done.stderr) == (0, b"")
        return [tuple(orjson.loads(line)) for line in done.stdout.split(b"\n") if line]

    return read


@pytest.mark.parametrize(
    "client",
    [
        pytest.param(curl, id="curl"),
        pytest.param(httpx_sse_client, id="httpx-sse"),
        pytest.param(sseclient_py, id="sseclient-py"),
        pytest.param(ours, id="chronoverse"),
        pytest.param(launchdarkly, id="launchdarkly-eventsource", marks=pytest.mark.long),
        pytest.param(node("eventsource.mjs"), id="eventsource", marks=pytest.mark.long),
        pytest.param(node("parser.mjs"), id="eventsource-parser", marks=pytest.mark.long),
    ],
)
def test_every_client_reads_the_same_lines(
    service: Service, written: Foreign, expected: Lines, client: Callable[[str, str], Lines]
) -> None:
    """Every id and message, none missing and none added."""
    found = client(f"{service.url}{written.path}/events", service.token("clients"))

    assert len(found) == len(expected)
    different = [
        (number, pair) for number, pair in enumerate(zip(found, expected, strict=True), 1) if pair[0] != pair[1]
    ]
    assert not different, ascii(different)[:2000]
