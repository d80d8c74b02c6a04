"""A real build as the job: every way to read its log returns exactly the lines that the command printed."""

import io
import json
import shutil
import sys
import sysconfig
from pathlib import Path
from typing import Any, Final

import httpx
import pytest
import redis

from chronoverse.joblog.sse import Decoder
from tests.support.commands import run_chronoverse
from tests.support.service import Service
from tests.support.waiting import deadline

pytestmark = pytest.mark.long

WORKFLOW: Final = "builds"
JOB: Final = "stdlib"
PATH: Final = f"/workflows/{WORKFLOW}/jobs/{JOB}"

#: Packages of the standard library.
PACKAGES: Final = ("asyncio", "collections", "concurrent", "email", "encodings", "http", "importlib", "json", "logging")
#: Python compiles a tree of them, printing what it compiles to stdout and what it imports to stderr.
BUILD: Final = (sys.executable, "-vv", "-u", "-m", "compileall", "-f")


@pytest.fixture(scope="module")
def written(embedded_service: Service, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """The lines that the build printed to stdout and stderr, as shown by ``chronoverse run``."""
    tree = tmp_path_factory.mktemp("stdlib") / "lib"
    for name in PACKAGES:
        library = Path(sysconfig.get_paths()["stdlib"], name)
        shutil.copytree(library, tree / name, ignore=shutil.ignore_patterns("__pycache__"))
    run = ("run", "--workflow", WORKFLOW, "--job", JOB, "--", *BUILD, str(tree))
    done = run_chronoverse(embedded_service, *run, CHRONOVERSE_URL="")  # which leaves the embedded store
    assert done.returncode == 0
    # On a busy machine, the runner can report on stderr that the store is slow. That is not a line of the build.
    stderr = b"".join(line for line in io.BytesIO(done.stderr) if not line.startswith(b"chronoverse: "))
    lines = {"stdout": lines_of(done.stdout), "stderr": lines_of(stderr)}
    assert len(lines["stdout"]) > 100
    assert len(lines["stderr"]) > 700
    return lines


def lines_of(output: bytes) -> list[str]:
    """The lines of an output, terminated only by newlines."""
    return output.decode("utf-8", "replace").removesuffix("\n").split("\n")


def check(lines: list[dict[str, Any]], written: dict[str, list[str]]) -> None:
    """Checks that ``lines`` are the whole log: both streams as printed, numbered without gaps."""
    assert [line["sequence_num"] for line in lines] == list(range(1, sum(map(len, written.values())) + 1))
    for stream, expected in written.items():
        assert [line["message"] for line in lines if line["stream"] == stream] == expected


def test_the_event_stream_is_what_the_command_wrote(embedded_service: Service, written: dict[str, list[str]]) -> None:
    """The stream has all lines, and finishes with ``end``."""
    token = embedded_service.token(WORKFLOW)
    body = httpx.get(f"{embedded_service.url}{PATH}/events", headers={"Authorization": f"Bearer {token}"}).content
    events = list(Decoder().feed(body))

    check([json.loads(event.data) for event in events if event.event == "log"], written)
    assert events[-1].event == "end"


@pytest.mark.parametrize("order", ["asc", "desc"])
def test_all_pages_are_what_the_command_wrote(
    embedded_service: Service, written: dict[str, list[str]], order: str
) -> None:
    """The links lead through all pages, in both orders."""
    headers = {"Authorization": f"Bearer {embedded_service.token(WORKFLOW)}"}
    with httpx.Client(base_url=embedded_service.url, headers=headers) as client:
        page = client.get(f"{PATH}/logs", params={"order": order, "limit": 333})
        lines = page.json()["logs"]
        in_time = deadline(60, "the last page")
        while "next" in page.links and in_time():
            page = client.get(page.links["next"]["url"])
            lines += page.json()["logs"]

    check(lines if order == "asc" else lines[::-1], written)


def test_logs_follow_prints_what_the_command_wrote(embedded_service: Service, written: dict[str, list[str]]) -> None:
    """It prints all lines in order, and exits like the job."""
    done = run_chronoverse(embedded_service, "logs", "-f", "-o", "json", WORKFLOW, JOB)

    assert done.returncode == 0, done.stderr
    check([json.loads(line) for line in lines_of(done.stdout)], written)


def test_a_raw_xrange_is_what_the_command_wrote(embedded_service: Service, written: dict[str, list[str]]) -> None:
    """Keys, ids and fields are those of the public contract."""
    with redis.Redis(unix_socket_path=f"{embedded_service.data_dir}/server.sock") as client:
        entries: Any = client.xrange(f"chronoverse:{{{WORKFLOW}}}:{JOB}:log")
    *lines, (_, end) = entries
    check(
        [
            {
                "sequence_num": int(entry_id.removesuffix(b"-0")),
                "message": fields[b"message"].decode(),
                "stream": fields[b"stream"].decode(),
            }
            for entry_id, fields in lines
        ],
        written,
    )

    assert end[b"event"] == b"end"
    assert end[b"status"] == b"COMPLETED"
    assert end[b"exit_code"] == b"0"
    assert end[b"lines"] == str(len(lines)).encode()


def test_the_exit_code_of_a_failing_build_is_passed_on(embedded_service: Service, tmp_path: Path) -> None:
    """By ``run`` and by ``logs -f``."""
    (tmp_path / "broken.py").write_text("def (:\n")
    build = (sys.executable, "-m", "compileall", str(tmp_path))
    ran = run_chronoverse(embedded_service, "run", "--workflow", WORKFLOW, "--job", "broken", "--", *build)
    followed = run_chronoverse(embedded_service, "logs", "-f", WORKFLOW, "broken")

    assert ran.returncode == followed.returncode == 1
    assert followed.stdout == ran.stdout
