"""``chronoverse download``, ``redact`` and ``delete``: requests, changes and exit codes."""

import contextlib
import gzip
import json
import os
import re
import stat
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import orjson
import pytest

from chronoverse.auth.rights import ADMIN, READ, WRITE
from chronoverse.joblog.model import Attempt, JobRef, Line, Status
from chronoverse.store import Store
from tests.cli.conftest import COMMAND, PATIENCE_SECONDS, Cli, environ
from tests.support.scripted import ScriptedService, answer, problem
from tests.support.servers import RedisServer
from tests.support.service import Service

TIME: Final = "2026-03-03T10:00:05.123Z"
WORKFLOW: Final = "wf_changes"

NewJob = Callable[..., Attempt]


@pytest.fixture
def new_job(backend: RedisServer) -> Iterator[NewJob]:
    """Creates a job with the arguments as lines, ended unless ``running``."""
    store = Store(backend.url)

    def make(name: str, *messages: str, running: bool = False) -> Attempt:
        attempt = store.open(JobRef(WORKFLOW, name), "a" * 32)
        store.append(attempt, [Line(n, TIME, message, "stdout") for n, message in enumerate(messages, 1)])
        if not running:
            store.finish(attempt, Status.COMPLETED, 0, 0, len(messages) + 1)
        return attempt

    yield make
    store.close()


@pytest.fixture
def settings(service: Service) -> dict[str, str]:
    """An administrator's settings."""
    return {"URL": service.url, "TOKEN": service.token(WORKFLOW, scopes=[READ, ADMIN])}


def printed(cli: Cli, job: str, settings: dict[str, str]) -> list[str]:
    return cli("logs", WORKFLOW, job, **settings).stdout.splitlines()


def test_a_download_is_a_file(
    cli: Cli, settings: dict[str, str], new_job: NewJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the name a browser would choose, and the permissions of other new files."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "other").touch()
    new_job("saved", "one", "\x1b[31mtwo\x1b[2J")
    done = cli("download", WORKFLOW, "saved", **settings)
    path = tmp_path / f"{WORKFLOW}-saved.txt"

    assert (done.returncode, done.stdout) == (0, "")
    assert done.stderr == f"chronoverse: saved {path.name} (8 bytes)\n"
    assert path.read_text() == "one\ntwo\n"
    assert stat.S_IMODE(path.stat().st_mode) == stat.S_IMODE((tmp_path / "other").stat().st_mode)
    assert {each.name for each in tmp_path.iterdir()} == {path.name, "other"}
    for target in ("/dev/null", "other"):
        (link := tmp_path / f"to {target[-4:]}").symlink_to(target)
        assert cli("download", WORKFLOW, "saved", str(link), **settings).returncode == 0
        assert link.is_symlink()
    assert (tmp_path / "other").read_text() == "one\ntwo\n"


def test_a_download_can_be_filtered_and_printed(cli: Cli, settings: dict[str, str], new_job: NewJob) -> None:
    """``-`` is standard output, where nothing else is printed."""
    messages = ["one", "\x1b[31mtwo\x1b[0m"]
    new_job("printed", *messages)

    def download(*options: str) -> str:
        done = cli("download", WORKFLOW, "printed", "-", *options, **settings)
        assert (done.returncode, done.stderr) == (0, "")
        return done.stdout

    assert download("--raw") == "".join(f"{message}\n" for message in messages)
    assert download("--search", "^t", "--regex") == "two\n"
    assert download("--stream", "stderr") == ""
    assert [line["message"] for line in json.loads(download("--format", "json"))] == messages
    assert [json.loads(line)["sequence_num"] for line in download("--format", "jsonl").splitlines()] == [1, 2]


@pytest.mark.parametrize(
    "cut",
    [
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhello",
        answer("200 OK", gzip.compress(b"hello")[:-1], Content_Encoding="gzip"),
    ],
    ids=["chunks", "length", "gzip"],
)
def test_an_interrupted_download_leaves_no_file(cli: Cli, tmp_path: Path, cut: bytes) -> None:
    """An older file is unchanged, and no partial file can pass for the whole."""
    path = tmp_path / "log.txt"
    path.write_text("old")
    with ScriptedService(cut) as service:
        done = cli("download", WORKFLOW, "cut", str(path), URL=service.url)

    assert (done.returncode, done.stderr) == (69, "chronoverse: the download was cut off before its end\n")
    assert path.read_text() == "old"
    assert [each.name for each in tmp_path.iterdir() if each.name.startswith(".log")] == []


def test_a_download_that_is_impossible(cli: Cli, settings: dict[str, str], new_job: NewJob, tmp_path: Path) -> None:
    """To a missing directory, and of a missing job."""
    new_job("somewhere", "one")
    path = tmp_path / "nowhere" / "log.txt"
    done = cli("download", WORKFLOW, "somewhere", str(path), **settings)

    assert (done.returncode, done.stderr) == (73, f"chronoverse: {path}: No such file or directory\n")
    assert cli("download", WORKFLOW, "nobody", str(tmp_path / "log.txt"), **settings).returncode == 66
    assert not (tmp_path / "log.txt").exists()


@pytest.mark.parametrize(
    ("options", "expected", "said"),
    [
        (("--lines", "2-4", "--search", "^[abd]", "--regex"), "a [redacted] c [redacted] ab", "2 lines redacted\n"),
        pytest.param(
            ("--lines", "3-", "--search", "B"), "a b c d [redacted]", "1 line redacted\n", marks=pytest.mark.long
        ),
        pytest.param(("--lines", "5"), "a b c d [redacted]", "1 line redacted\n", marks=pytest.mark.long),
        pytest.param(("--search", "nothing"), "a b c d ab", "0 lines redacted\n", marks=pytest.mark.long),
    ],
    ids=str,
)
def test_redacting(
    cli: Cli,
    settings: dict[str, str],
    new_job: NewJob,
    request: pytest.FixtureRequest,
    options: tuple[str, ...],
    expected: str,
    said: str,
) -> None:
    """Lines are selected by number, by text, or both."""
    job = f"redacted_{request.node.callspec.indices['options']}"
    new_job(job, "a", "b", "c", "d", "ab")
    done = cli("redact", WORKFLOW, job, *options, "--yes", "--reason", "a password", **settings)

    assert (done.returncode, done.stdout, done.stderr) == (0, said, "")
    assert printed(cli, job, settings) == expected.split()


def test_redacting_continues_until_it_is_done(cli: Cli) -> None:
    """A long log takes several requests. Retries and pending lines are reported; the command has to be repeated."""
    parts = [{"redacted": 2, "next": 1_000, "pending": True}, {"redacted": 1, "next": None, "pending": False}]
    busy = problem("503 Service Unavailable", "The job is being archived; try again.")
    with ScriptedService(busy, *(answer("200 OK", orjson.dumps(part)) for part in parts)) as service:
        done = cli("redact", WORKFLOW, "long", "--search", "x", "--yes", URL=service.url)

    assert (done.returncode, done.stdout) == (75, "3 lines redacted\n")
    assert done.stderr.startswith("chronoverse: The job is being archived; trying again in ")
    assert "repeat the command later" in done.stderr
    assert [request.path for request in service.requests] == [f"/workflows/{WORKFLOW}/jobs/long/logs/redact"] * 3


def test_deleting_all_jobs_stops_at_an_error(cli: Cli) -> None:
    """Other than that of a job that must stay, or is gone. The jobs of a page are deleted at once, in any order."""
    jobs = [{"id": name, "created_at": None} for name in ("one", "two", "six")]
    listing, last = (answer("200 OK", orjson.dumps({"jobs": jobs, "cursor": cursor})) for cursor in ("next", None))
    held = answer("409 Conflict", b'{"title":"Conflict","detail":"a live runner","reason":"HELD"}')
    answers = (problem("404 Not Found", "?"), held, problem("403 Forbidden", "not yours"))
    with ScriptedService(listing, last, listing, *answers, answer("204 No Content", b"")) as service:
        done = cli("delete", WORKFLOW, "--all", "--yes", URL=service.url)
    assert (done.returncode, done.stdout, done.stderr.splitlines()[-1]) == (77, "", "chronoverse: not yours")
    deleted = [request.path.rpartition("/")[2] for request in service.requests[3:]]
    assert sorted(deleted) == ["one", "six", "two"]


def test_the_newest_line_of_a_running_job_is_redacted_later(
    cli: Cli, settings: dict[str, str], new_job: NewJob
) -> None:
    """The exit code indicates that a repetition may succeed."""
    new_job("running", "a", running=True)
    done = cli("redact", WORKFLOW, "running", "--lines", "1", "--yes", **settings)

    assert (done.returncode, printed(cli, "running", settings)) == (75, ["a"])


def test_deleting(cli: Cli, service: Service, settings: dict[str, str], new_job: NewJob) -> None:
    """A job whose runner is alive is not deleted. A token that can only read changes nothing."""
    new_job("gone", "a")
    new_job("held", "a", running=True)
    reading = {"URL": service.url, "TOKEN": service.token(WORKFLOW, scopes=[READ])}
    assert cli("delete", WORKFLOW, "gone", "--yes", **reading).returncode == 77
    assert cli("redact", WORKFLOW, "gone", "--lines", "1", "--yes", **reading).returncode == 77
    assert printed(cli, "gone", settings) == ["a"]
    done = cli("delete", WORKFLOW, "gone", "--yes", **settings)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{WORKFLOW}/gone deleted\n", "")
    assert cli("logs", WORKFLOW, "gone", **settings).returncode == 66
    assert cli("delete", WORKFLOW, "gone", "--yes", **settings).returncode == 66
    assert cli("delete", WORKFLOW, "held", "--yes", **settings).returncode == 75
    assert printed(cli, "held", settings) == ["a"]


def test_deleting_all_jobs(
    cli: Cli, service: Service, backend: RedisServer, tmp_path: Path, terminal: tuple[int, int]
) -> None:
    """Those that exist when it starts. Their number and the ones that must stay are reported; it can be repeated."""
    workflow, names = "wf_all", [f"job-{number}" for number in range(12)]
    settings = {"URL": service.url, "TOKEN": service.token(workflow, scopes=[READ, ADMIN])}
    with contextlib.closing(Store(backend.url)) as store:
        for name in names:
            store.register(JobRef(workflow, name))
        attempt = store.open(JobRef(workflow, "job-5"), "a" * 32)
        store.open(JobRef("wf_other", "job"), "a" * 32)
        process = subprocess.Popen(
            [*COMMAND, "delete", workflow, "--all"],
            env=environ(tmp_path, **settings),
            stdin=terminal[1],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        assert process.stderr
        question = f"Delete all 12 jobs of {workflow}, with their logs? This cannot be undone. [y/N]: ".encode()
        assert process.stderr.read(len(question)) == question
        store.register(JobRef(workflow, "after"))
        os.write(terminal[0], b"y\n")
        out, err = process.communicate(timeout=PATIENCE_SECONDS)
        assert (process.returncode, out) == (75, f"11 jobs of {workflow} deleted\n".encode())
        assert re.fullmatch(f"chronoverse: {workflow}/job-5 not deleted: .*\n", err.decode())
        store.finish(attempt, Status.COMPLETED, 0, 0, 1)
        done = cli("delete", workflow, "--all", "--yes", **settings)
        assert (done.returncode, done.stdout, done.stderr) == (0, f"2 jobs of {workflow} deleted\n", "")
        assert cli("delete", workflow, "--all", "--yes", **settings).returncode == 66
        assert store.get_job(JobRef("wf_other", "job"))


@pytest.mark.parametrize(
    ("reply", "exits", "left"), [(b"n\n", 1, ["a"]), (b"\n", 1, ["a"]), (b"y\n", 0, ["[redacted]"])]
)
def test_a_terminal_is_prompted_first(
    cli: Cli,
    settings: dict[str, str],
    new_job: NewJob,
    tmp_path: Path,
    terminal: tuple[int, int],
    reply: bytes,
    exits: int,
    left: list[str],
) -> None:
    """The prompt says what will be done. Without an answer, nothing is."""
    job = f"asked_{exits}_{len(reply)}"
    new_job(job, "a")
    os.write(terminal[0], reply)
    done = subprocess.run(
        [*COMMAND, "redact", WORKFLOW, job, "--lines", "1"],
        env=environ(tmp_path, **settings),
        stdin=terminal[1],
        capture_output=True,
        timeout=PATIENCE_SECONDS,
        check=False,
    )

    assert done.returncode == exits
    assert f"Redact line 1 of {WORKFLOW}/{job}? This cannot be undone." in done.stderr.decode()
    assert printed(cli, job, settings) == left


def test_a_job_without_a_runner_can_be_ended(cli: Cli, service: Service, backend: RedisServer, new_job: NewJob) -> None:
    """With an exit code or a status. A job that ended differently, or that a runner holds, is unchanged."""
    writer = {"URL": service.url, "TOKEN": service.token(WORKFLOW, scopes=[READ, WRITE])}
    with contextlib.closing(Store(backend.url)) as store:
        for name in ("by_code", "by_status"):
            store.register(JobRef(WORKFLOW, name))
    done = cli("end", WORKFLOW, "by_code", "--exit-code", "3", **writer)
    assert (done.returncode, done.stdout) == (0, f"{WORKFLOW}/by_code FAILED\n")
    assert cli("end", WORKFLOW, "by_code", "--status", "failed", **writer).returncode == 0
    assert cli("end", WORKFLOW, "by_status", "--status", "canceled", **writer).returncode == 0

    other = cli("end", WORKFLOW, "by_code", "--exit-code", "0", **writer)
    assert (other.returncode, "already ended: FAILED, exit code 3" in other.stderr) == (os.EX_CANTCREAT, True)
    new_job("being_run", "one", running=True)
    held = cli("end", WORKFLOW, "being_run", "--exit-code", "0", **writer)
    assert (held.returncode, "a live runner holds this job" in held.stderr) == (os.EX_TEMPFAIL, True)
    missing = cli("end", WORKFLOW, "by_cod", "--exit-code", "0", **writer)
    assert (missing.returncode, "by_code" in missing.stderr) == (os.EX_NOINPUT, True)
