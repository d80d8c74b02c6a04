"""``logs -f WORKFLOW`` and ``jobs -w WORKFLOW``: all jobs of a workflow on one terminal."""

import contextlib
import itertools
import json
import os
import pty
import re
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final, cast

import pytest

from chronoverse.archive.retention import delete_job
from chronoverse.cli.follow import follow_jobs, print_jobs
from chronoverse.cli.listing import _watch
from chronoverse.client.follower import JobChange, Notice, RedactedLines, Reset, UpToDate
from chronoverse.errors import JobNotFound
from chronoverse.joblog.model import Attempt, Gap, JobRef, Line, Status
from chronoverse.joblog.terminal import LineRenderer, gap_notice, redaction_notice
from chronoverse.store import Store
from tests.cli.conftest import COMMAND, PATIENCE_SECONDS, Cli, environ
from tests.support.servers import RedisServer
from tests.support.service import Service
from tests.support.waiting import wait_until

TIME: Final = "2026-03-03T10:00:05.123Z"

_numbers = itertools.count(1)


@pytest.fixture
def store(backend: RedisServer) -> Iterator[Store]:
    with contextlib.closing(Store(backend.url)) as store:
        yield store


@pytest.fixture
def workflow() -> str:
    """A new workflow for each test."""
    return f"wf_follow_{next(_numbers)}"


class Job:
    """One running job."""

    def __init__(self, store: Store, workflow: str, name: str, branch: str = "main") -> None:
        self._store = store
        self._attempt: Attempt = store.open(JobRef(workflow, name), "token", labels=(("branch", branch),))
        self._next = 1

    def say(self, *messages: str) -> None:
        lines = [Line(number, TIME, message, "stdout") for number, message in enumerate(messages, self._next)]
        self._next = self._store.append(self._attempt, lines)

    def end(self, status: Status = Status.COMPLETED, code: int | None = 0) -> None:
        self._store.finish(self._attempt, status, code, 0, self._next)


@pytest.fixture
def start(service: Service, tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts a command, whose output goes to files in ``tmp_path``."""
    with contextlib.ExitStack() as stack:

        def start(*argv: str, **more: str) -> subprocess.Popen[str]:
            env = {**environ(tmp_path, URL=service.url, TOKEN=service.token()), **more}
            out, err = (stack.enter_context((tmp_path / name).open("w")) for name in ("out", "err"))
            process = subprocess.Popen([*COMMAND, *argv], env=env, stdout=out, stderr=err, text=True)
            stack.callback(process.wait, PATIENCE_SECONDS)
            stack.callback(process.kill)
            return process

        yield start


Start = Callable[..., "subprocess.Popen[str]"]


def test_all_running_and_new_jobs_are_followed(start: Start, store: Store, workflow: str, tmp_path: Path) -> None:
    """Each job's lines are in order. Starts and ends of jobs are reported on stderr. Exits once no job is running."""
    Job(store, workflow, "old").end()
    one, two = Job(store, workflow, "one"), Job(store, workflow, "two")
    one.say("a", "b")
    process = start("logs", "-f", workflow, "--until-idle")
    wait_until(lambda: "b" in (tmp_path / "out").read_text(), PATIENCE_SECONDS, "the first lines")
    three = Job(store, workflow, "three")
    for number in range(20):
        for name, job in (("one", one), ("two", two), ("three", three)):
            job.say(f"{name} {number}")
    one.end()
    two.end(Status.FAILED, 3)
    three.say("the last one")
    three.end(Status.CANCELED, None)
    assert process.wait(PATIENCE_SECONDS) == 0
    lines = [line.split(" | ", 1) for line in (tmp_path / "out").read_text().splitlines()]
    by_job = {name: [text for job, text in lines if job.strip() == name] for name in ("old", "one", "two", "three")}
    assert by_job == {
        "old": [],
        "one": ["a", "b", *(f"one {number}" for number in range(20))],
        "two": [f"two {number}" for number in range(20)],
        "three": [*(f"three {number}" for number in range(20)), "the last one"],
    }
    said = {line for line in (tmp_path / "err").read_text().splitlines() if "|" in line}
    assert {re.sub(" +", " ", line) for line in said} == {
        *(f"{name} | --- RUNNING ---" for name in ("one", "two", "three")),
        "one | --- COMPLETED, exit code 0 ---",
        "two | --- FAILED, exit code 3 ---",
        "three | --- CANCELED ---",
    }


def test_json_includes_the_job_of_each_line(cli: Cli, service: Service, store: Store, workflow: str) -> None:
    """Lines have a message, jobs a status. A job that has ended comes once, after its lines."""
    job = Job(store, workflow, "job_1")
    job.say("a")
    job.end(Status.FAILED, 3)
    settings = {"URL": service.url, "TOKEN": service.token()}
    found = cli("logs", "-f", workflow, "--status", "failed", "--until-idle", "-o", "json", **settings)
    values = [json.loads(line) for line in found.stdout.splitlines()]
    assert [each.get("message", each.get("status")) for each in values] == ["a", "FAILED"]
    assert {each["id"] for each in values} == {"job_1"}
    assert list(values[0]) == ["id", "timestamp", "message", "sequence_num", "stream"]
    assert found.returncode == 0


def test_labels_and_tails(start: Start, store: Store, workflow: str, tmp_path: Path) -> None:
    """``--tail`` skips lines of existing jobs, but none of new ones."""
    main, other = Job(store, workflow, "main"), Job(store, workflow, "other", "next")
    main.say("a", "b", "c")
    other.say("x")
    process = start("logs", "-f", workflow, "--label", "branch=main", "--tail", "1", "--until-idle")
    wait_until(lambda: "c" in (tmp_path / "out").read_text(), PATIENCE_SECONDS, "the last line")
    new = Job(store, workflow, "new")
    new.say("1", "2")
    main.end()
    wait_until(lambda: "2" in (tmp_path / "out").read_text(), PATIENCE_SECONDS, "the new job")
    new.end()
    assert process.wait(PATIENCE_SECONDS) == 0
    assert [line.split(" | ")[1] for line in (tmp_path / "out").read_text().splitlines()] == ["c", "1", "2"]


def test_colors(cli: Cli, service: Service, store: Store, workflow: str) -> None:
    """Each job has its own color, on a terminal or with ``--color always``. NO_COLOR turns that off."""
    for name in ("job_1", "job_2", "job_3"):
        job = Job(store, workflow, name)
        job.say("\x1b[2Ja")
        job.end()
    settings = {"URL": service.url, "TOKEN": service.token()}
    argv = ("logs", "-f", workflow, "--status", "completed", "--until-idle")
    colored = cli(*argv, "--color", "always", **settings).stdout
    assert len(set(re.findall("\x1b\\[([0-9]+)m(job_[0-9]) \\| \x1b\\[0ma\n", colored))) == 3
    assert sorted(cli(*argv, **settings).stdout.splitlines()) == ["job_1 | a", "job_2 | a", "job_3 | a"]


def test_a_workflow_that_the_token_cannot_see(cli: Cli, service: Service, workflow: str) -> None:
    found = cli("logs", "-f", workflow, URL=service.url, TOKEN=service.token("other"))
    assert (found.returncode, "not found, or no access" in found.stderr) == (66, True), found.stderr


def test_ctrl_c_ends_it(start: Start, store: Store, workflow: str, tmp_path: Path) -> None:
    Job(store, workflow, "job_1").say("a")
    process = start("logs", "-f", workflow)
    wait_until(lambda: "a" in (tmp_path / "out").read_text(), PATIENCE_SECONDS, "the line")
    process.send_signal(signal.SIGINT)
    assert process.wait(PATIENCE_SECONDS) == 130


def test_changes_as_lines(start: Start, store: Store, workflow: str, tmp_path: Path) -> None:
    job = Job(store, workflow, "job_1")
    start("jobs", "-w", workflow)
    wait_until(lambda: "RUNNING" in (tmp_path / "out").read_text(), PATIENCE_SECONDS, "the job")
    job.end(Status.FAILED, 3)
    delete_job(store, None, JobRef(workflow, "job_1"))
    wait_until(lambda: "DELETED" in (tmp_path / "out").read_text(), PATIENCE_SECONDS, "the deletion")
    words = [line.split()[1] for line in (tmp_path / "out").read_text().splitlines()]
    assert words == ["RUNNING", "FAILED", "DELETED"]


def test_a_list_on_a_terminal(service: Service, store: Store, workflow: str, tmp_path: Path) -> None:
    job = Job(store, workflow, "job_1")
    terminal, end = pty.openpty()
    env = environ(tmp_path, URL=service.url, TOKEN=service.token())
    with subprocess.Popen([*COMMAND, "jobs", "-w", workflow], env=env, stdout=end, stderr=end) as process:
        os.close(end)
        seen = b""
        with contextlib.suppress(OSError):
            while b"FAILED (3)" not in seen:
                seen += os.read(terminal, 65_536)
                if b"RUNNING" in seen and job:
                    job.end(Status.FAILED, 3)
                    job = None  # type: ignore[assignment]
        process.kill()
    os.close(terminal)
    assert seen.count(b"\x1b[H\x1b[2J") >= 2
    assert b"FAILED (3)" in seen


def test_an_attempt_is_followed_once_until_no_job_runs() -> None:
    """The stream repeats a job whenever it changes, and after a reset. A new attempt is followed again.

    The stream can omit a running job, so with ``--until-idle`` the service is polled once a second.
    """
    ended, attempts, late = threading.Event(), list[int](), [{"id": "late"}] * 2

    class Repeating:
        def follow_workflow(self, workflow: str, **_: Any) -> Iterator[Any]:
            yield from (JobChange("gone", "DELETED", {"attempt": 9}), JobChange("a", "RUNNING", {"attempt": 1}))
            yield UpToDate(1)
            assert ended.wait(PATIENCE_SECONDS)
            yield from (JobChange("a", "RUNNING", {"attempt": number}) for number in (1, 2))

        def follow(self, job: JobRef, **_: Any) -> Iterator[Any]:
            return iter(())

        def job(self, job: JobRef) -> dict[str, Any]:
            return {"attempt": 0}

        def pages(self, path: str, workflow: str, **query: Any) -> Iterator[dict[str, Any]]:
            assert query["status"] == Status.RUNNING
            runs = len(attempts) < 4 or (late and late.pop())
            return iter([{"jobs": [{"id": "a"}] if runs else []}])

    for job_id, event in follow_jobs(cast("Any", Repeating()), "w", Status.RUNNING, [], until_idle=True):
        if event is not None:
            attempts.append(event["attempt"])
        elif job_id:
            ended.set()
    assert (attempts, late) == ([1, 0, 2, 0], [])


def test_whatever_happens_to_a_job_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    """Lines to stdout, the rest to stderr. A notice is repeated only after another one."""
    away = ("", Notice("the service is away"))
    events: list[tuple[str, Any]] = [
        *(("a", {"status": "RUNNING"}), away, away, ("a", Gap(1, 2, "trimmed")), away, ("a", RedactedLines(3, 4))),
        *(("a", JobNotFound("the job was deleted")), ("b", {"status": "FAILED", "exit_code": 3}), ("b", None)),
    ]
    print_jobs(events, LineRenderer(colour=False), "text")
    assert capsys.readouterr().err.splitlines() == [
        "a | --- RUNNING ---",
        "chronoverse: the service is away",
        f"a | {gap_notice(Gap(1, 2, 'trimmed'))}",
        "chronoverse: the service is away",
        f"a | {redaction_notice(3, 4)}",
        "a | --- the job was deleted ---",
        "b | --- FAILED, exit code 3 ---",
    ]


def test_a_list_on_a_terminal_starts_over_after_a_reset(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Entries that no longer exist disappear, and so do a job with another status and a deleted job."""

    def job(name: str, status: str = "RUNNING") -> JobChange:
        state = {"id": name, "status": status, "exit_code": None, "started_at": TIME, "finished_at": None}
        return JobChange(name, status, {**state, "created_at": TIME, "lines": 1, "labels": {}})

    class Following:
        def follow_workflow(self, workflow: str, status: str | None, **_: Any) -> Iterator[Any]:
            assert status is None
            yield from (job("one"), job("two"), UpToDate(2), Reset(), job("two"), job("three"), UpToDate(3))
            yield from (job("three", "DELETED"), UpToDate(4), job("two", "FAILED"), UpToDate(5))

    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    _watch(cast("Any", Following()), "w", "text", 10, "RUNNING", [])
    lists = [re.findall("one|two|three", each) for each in capsys.readouterr().out.split("\x1b[H\x1b[2J")]
    assert lists == [[], ["two", "one"], ["two", "three"], ["two"], []]
