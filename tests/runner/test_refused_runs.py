"""A command whose log is rejected still runs, and its lines can be delivered later."""

import contextlib
import os
import pty
import re
import secrets
import shlex
import subprocess
import sys
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any, Final

import pytest

from chronoverse.errors import StoreUnavailable
from chronoverse.joblog.line_splitter import LineBatch
from chronoverse.joblog.model import JobRef, Status
from chronoverse.runner.http_log_writer import HttpLogWriter
from chronoverse.runner.run import run
from chronoverse.runner.spool.spool import Spool
from chronoverse.runner.spool.spool_file import SpoolFile, SpoolRoom, orphaned_spools
from chronoverse.store import Store
from tests.support.commands import call_main, chronoverse_argv
from tests.support.jobs import key, outcome, read_end, read_lines, read_log
from tests.support.ports import free_port
from tests.support.scripted import ScriptedService, problem
from tests.support.servers import RedisServer, running
from tests.support.service import Service, serving
from tests.support.waiting import wait_until

COMMAND: Final = ("sh", "-c", "echo one; echo two >&2; sleep 0.01; echo three; exit 3")
LINES: Final = ["one", "three", "two"]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with running(tmp_path_factory.mktemp("store")) as server:
        yield server


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory, server: RedisServer) -> Iterator[Service]:
    with serving(tmp_path_factory.mktemp("service"), server.url) as service:
        yield service


@pytest.fixture
def job() -> JobRef:
    """The test's own job."""
    return JobRef("wf_refused", f"job-{secrets.token_hex(6)}")


def end_job(store: Store, job: JobRef) -> None:
    """Makes the job an ended one without lines."""
    store.finish(store.open(job, secrets.token_hex(16)), Status.COMPLETED, 0, 0, 1)


def delete_job(server: RedisServer, job: JobRef) -> None:
    """Makes the job a deleted one: the tombstone is part of the public contract."""
    server.ask("SET", key("deleted", job), "1", "PX", "600000")


def chronoverse(*arguments: str, data_dir: Path, **settings: str) -> "subprocess.CompletedProcess[str]":
    """The command line, with only these settings."""
    return call_main(*arguments, environ=environ(data_dir, **settings))


def environ(data_dir: Path, **settings: str) -> dict[str, str]:
    """An environment with only these settings."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("CHRONOVERSE_")}
    named = {"DATA_DIR": str(data_dir), "DURABILITY": "acked", **settings}
    return inherited | {f"CHRONOVERSE_{name}": text for name, text in named.items()}


def run_arguments(job: JobRef, *options: str) -> list[str]:
    return ["run", *options, "--deliver-timeout", "1s", "--workflow", job.workflow_id, "--job", job.job_id, "--"]


def printed_command(stderr: str) -> list[str]:
    """The runner's last printed command, which delivers the lines later."""
    before, _, command = stderr.rstrip("\n").rpartition(": chronoverse ")
    assert before, stderr
    return shlex.split(command)


def assert_ran(done: "subprocess.CompletedProcess[str]", reason: str) -> None:
    """The command ran, its exit code and output are the runner's, and one line says why nothing is published."""
    assert (done.returncode, done.stdout) == (3, "one\nthree\n"), done.stderr
    assert "two\n" in done.stderr
    (line,) = [line for line in done.stderr.splitlines() if reason in line]
    assert line.startswith("chronoverse: ")


def assert_published_once(server: RedisServer, job: JobRef) -> None:
    """The log has each line once, and the end has the command's outcome."""
    assert sorted(read_lines(server, job)) == LINES
    assert (outcome(server, job), read_end(server, job)["lines"]) == (("FAILED", "3"), "3")


@pytest.mark.parametrize(
    ("setting", "reason"), [("TOKEN", "nothing is published: "), ("TOKEN_FILE", "has no bearer token")]
)
def test_an_unusable_token_does_not_stop_the_command(
    service: Service, server: RedisServer, tmp_path: Path, job: JobRef, setting: str, reason: str
) -> None:
    """With a valid token, the printed command delivers everything. Until then, it and readers exit with 77."""
    file = tmp_path / "token"
    file.write_bytes(b"not a token\xff\n")
    unusable = {setting: service.token(ttl=-60) if setting == "TOKEN" else str(file)}
    done = chronoverse(*run_arguments(job, "--server", service.url), *COMMAND, data_dir=tmp_path, **unusable)
    assert_ran(done, reason)
    assert read_log(server, job) == ([], None)

    command = (*printed_command(done.stderr), "--deliver-timeout", "1s")
    refused = chronoverse(*command, data_dir=tmp_path, **unusable)
    assert refused.returncode == 77
    assert printed_command(refused.stderr.rpartition("chronoverse: ")[0]) == printed_command(done.stderr)
    read = chronoverse("logs", "-f", *job, data_dir=tmp_path, URL=service.url, **unusable)
    why = "expired" if setting == "TOKEN" else reason
    assert (read.returncode, read.stdout, why in read.stderr, why in done.stderr) == (77, "", True, True)
    file.write_text(service.token() + "\n")
    delivered = chronoverse(*printed_command(done.stderr), data_dir=tmp_path, TOKEN_FILE=str(file))
    assert delivered.returncode == 0, delivered.stderr
    assert_published_once(server, job)
    assert not orphaned_spools(tmp_path / "spool")


@pytest.mark.parametrize(
    ("answers", "options"),
    [([problem("503 Service Unavailable", "we are busy; try again.")], []), ([], ["--retry"])],
    ids=["503", "refused"],
)
def test_an_unavailable_service_does_not_stop_the_command(
    service: Service, server: RedisServer, tmp_path: Path, job: JobRef, answers: list[bytes], options: list[str]
) -> None:
    """The scripted service is gone after its answer; the lines are delivered to the real one."""
    away = ScriptedService(*answers)
    url = away.url  # without answers, it listens no longer than this
    with away:
        arguments = run_arguments(job, "--server", url, *options)
        done = chronoverse(*arguments, *COMMAND, data_dir=tmp_path, TOKEN=service.token())
    assert_ran(done, "; lines wait here, the job continues")
    assert "try again" not in done.stderr
    assert ("we are busy" if answers else "is not responding") in done.stderr

    command = [service.url if word == url else word for word in printed_command(done.stderr)]
    assert command[:-1] == ["deliver", "--server", service.url, *options]
    assert chronoverse(*command, data_dir=tmp_path, TOKEN=service.token()).returncode == 0
    assert_published_once(server, job)


@pytest.mark.long
def test_on_a_terminal_the_end_counts_down_and_ctrl_c_ends_it(tmp_path: Path, job: JobRef) -> None:
    """The messages that follow replace the countdown. The lines are in the file that it named."""
    url = f"http://127.0.0.1:{free_port()}"
    arguments = ["run", "--server", url, "--workflow", job.workflow_id, "--job", job.job_id, "--", "echo", "one"]
    pid, terminal = pty.fork()
    if pid == 0:
        os.execve(sys.executable, chronoverse_argv(*arguments), environ(tmp_path))
    shown = b""
    with contextlib.suppress(OSError):  # at the end
        while data := os.read(terminal, 1_000):
            shown += data
            if b"for up to 3 s" in data:
                os.write(terminal, b"\x03")
    os.close(terminal)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    (file,) = orphaned_spools(tmp_path / "spool")
    status = f"\r\x1b[Kchronoverse: delivering 1 line, for up to 4 s; Ctrl-C keeps it in {file}"
    assert status in shown.decode()
    assert "for up to 2 s" not in shown.decode()
    assert "\r\x1b[Kchronoverse: 1 line was not delivered" in shown.decode()


def test_the_first_line_is_the_link_to_the_page(service: Service, tmp_path: Path, job: JobRef) -> None:
    """With ``--retry``, another one follows when the job gets another id."""
    arguments = ["run", "--retry", "--server", service.url, "--workflow", job.workflow_id, "--job", job.job_id]
    done = [chronoverse(*arguments, "--", "true", data_dir=tmp_path, TOKEN=service.token()) for _ in range(2)]

    page = f"{service.url}/ui/workflows/{job.workflow_id}/jobs/{job.job_id}"
    links = [re.findall(r"^chronoverse: job .* is at (.*)$", each.stderr, re.MULTILINE) for each in done]
    assert links == [[page], [page, f"{page}.2"]]
    assert all(each.stderr.startswith(f"chronoverse: job {job.job_id} of workflow wf_refused is at ") for each in done)
    assert [each.stdout for each in done] == ["", ""]


def test_the_hint_about_other_runs_names_their_store(
    service: Service, server: RedisServer, store: Store, tmp_path: Path
) -> None:
    """The store that run published to, not this run's. With ``--retry`` once its job's id was refused."""
    names = iter("abcd")

    def hint(*options: str, **settings: str) -> str:
        done = chronoverse(
            *run_arguments(JobRef("hints", next(names)), *options), "true", data_dir=tmp_path, **settings
        )
        found = re.search(r"left undelivered lines\. Upload (?:them|the oldest) with: (.*)\n", done.stderr)
        return found[1] if found else ""

    assert hint("--server", service.url, TOKEN=service.token(ttl=-60)) == ""
    (file,) = orphaned_spools(tmp_path / "spool")
    assert hint(REDIS_URL=server.url) == f"chronoverse deliver --server {service.url} {file}"
    end_job(store, JobRef("hints", "a"))
    done = chronoverse("deliver", "--server", service.url, str(file), data_dir=tmp_path, TOKEN=service.token())
    said = done.stderr.rpartition("chronoverse: ")[0]
    assert (done.returncode, printed_command(said)[-2:]) == (76, ["--retry", str(file)])
    assert hint(REDIS_URL=server.url) == f"chronoverse deliver --server {service.url} --retry {file}"

    # Contains the lines of a run that published to a store.
    state = {"workflow": "hints", "job": "old", "token": "0" * 32, "server": ""}
    other = SpoolFile.create(tmp_path / "spool", "old")
    other.write(state)
    other.close()
    os.utime(other.path, (0, 0))
    assert hint(URL=service.url, TOKEN=service.token()) == f"env -u CHRONOVERSE_URL chronoverse deliver {other.path}"


def test_a_late_notice_of_a_deletion_drops_no_lines_of_a_new_command(
    server: RedisServer, store: Store, tmp_path: Path, job: JobRef
) -> None:
    """Only those of the job's earlier runner. The store answers only after the command has started."""
    room = SpoolRoom(tmp_path / "spool", job.job_id)
    earlier = Spool(room)
    earlier.put(LineBatch("stdout", "2026-03-03T10:00:05.123Z", b"earlier", 1))
    earlier.save_state(workflow=job.workflow_id, job=job.job_id, token="a" * 32, attempt=1, base=1)
    assert earlier.preserve()
    delete_job(server, job)

    def connect() -> Store:
        wait_until(lambda: b"one" in out.getvalue(), 30, "the command has begun")
        return store

    out, err = BytesIO(), BytesIO()
    limits: dict[str, Any] = {"room": room, "open_seconds": 0.01, "deliver_seconds": 10}
    assert run(COMMAND, connect, job, out=out, err=err, **limits) == 3
    said = err.getvalue().decode()
    assert "was deleted" in said
    command = printed_command(said)
    assert chronoverse(*command, data_dir=tmp_path, REDIS_URL=server.url).returncode == 0
    assert_published_once(server, JobRef(job.workflow_id, f"{job.job_id}.2"))


#: How an id comes to be taken, the message, and the exit code with ``--require-log``.
TAKEN: Final = {
    "ended": ("already ended", 73),
    "deleted": ("was deleted", 73),
    "held": ("another live runner", 75),
    "another's": ("entry ids", 65),
    "no log": ("is not a log", 65),
}


def take(how: str, server: RedisServer, store: Store, job: JobRef) -> None:
    if how == "ended":
        end_job(store, job)
    elif how == "deleted":
        delete_job(server, job)
    elif how == "held":
        store.open(job, secrets.token_hex(16))
    elif how == "no log":
        server.ask("SET", key("log", job), "x")
    else:
        server.ask("XADD", key("log", job), "5-1", "message", "?")


@pytest.mark.parametrize("how", TAKEN)
def test_an_id_that_is_taken_does_not_stop_the_command(
    server: RedisServer, store: Store, tmp_path: Path, job: JobRef, how: str
) -> None:
    """Nothing is published under it. The printed command publishes everything under another id.

    With ``--require-log``, the command does not start, and the exit code says why.
    """
    take(how, server, store, job)
    before, where = server.ask("DUMP", key("log", job)), {"REDIS_URL": server.url}
    done = chronoverse(*run_arguments(job, "--require-log"), "touch", str(tmp_path / "ran"), data_dir=tmp_path, **where)
    assert (done.returncode, TAKEN[how][0] in done.stderr) == (TAKEN[how][1], True)
    assert not (tmp_path / "ran").exists()
    assert not orphaned_spools(tmp_path / "spool")

    done = chronoverse(*run_arguments(job), *COMMAND, data_dir=tmp_path, **where)
    assert_ran(done, "nothing is published: ")
    assert TAKEN[how][0] in done.stderr
    command = printed_command(done.stderr)
    assert "--retry" in command
    if how not in ("another's", "no log"):
        (path,) = orphaned_spools(tmp_path / "spool")
        same_id = chronoverse("deliver", str(path), data_dir=tmp_path, **where)
        assert same_id.returncode == {"ended": 76, "deleted": 73, "held": 75}[how]
        reason = {"ended": "has ended without", "deleted": "was deleted", "held": "another live runner"}[how]
        assert reason in same_id.stderr
        assert printed_command(same_id.stderr.rpartition("chronoverse: ")[0]) == command
        assert chronoverse(*command, data_dir=tmp_path, **where).returncode == 0
        assert_published_once(server, JobRef(job.workflow_id, f"{job.job_id}.2"))
    assert server.ask("DUMP", key("log", job)) == before


def test_lines_of_an_earlier_runner_are_not_mixed_with_those_of_a_rejected_one(
    server: RedisServer, store: Store, tmp_path: Path, job: JobRef
) -> None:
    """The job has ended meanwhile. The earlier runner's file is unchanged, and the new run gets its own."""
    first = chronoverse(*run_arguments(job), "echo", "first", data_dir=tmp_path, REDIS_URL="unix:///nowhere/redis.sock")
    assert first.returncode == 0
    end_job(store, job)
    done = chronoverse(*run_arguments(job), *COMMAND, data_dir=tmp_path, REDIS_URL=server.url)
    assert_ran(done, "nothing is published: ")
    assert len(orphaned_spools(tmp_path / "spool")) == 2
    for command in (printed_command(first.stderr), printed_command(done.stderr)):
        chronoverse("deliver", "--retry", command[-1], data_dir=tmp_path, REDIS_URL=server.url)
    assert read_lines(server, JobRef(job.workflow_id, f"{job.job_id}.2")) == ["first"]
    assert_published_once(server, JobRef(job.workflow_id, f"{job.job_id}.3"))


@pytest.mark.parametrize("answers", [[problem("503 Service Unavailable", "we are busy; try again.")] * 50, []])
def test_with_require_log_an_unavailable_service_stops_the_command(
    tmp_path: Path, job: JobRef, answers: list[bytes]
) -> None:
    """After a few seconds in which the service can come back."""
    ran, err = tmp_path / "ran", BytesIO()
    limits: dict[str, Any] = {"room": SpoolRoom(tmp_path / "spool"), "open_seconds": 0.5, "require_log": True}
    away = ScriptedService(*answers)
    with (
        contextlib.closing(HttpLogWriter(away.url, "t")) as writer,
        away,
        pytest.raises(StoreUnavailable, match="we are busy" if answers else "is not responding"),
    ):
        run(["touch", str(ran)], writer, job, out=BytesIO(), err=err, **limits)
    assert not ran.exists()
    assert err.getvalue() == b"chronoverse: command not started: --require-log is set and the log cannot be published\n"


@pytest.mark.parametrize("way", ["store", "service"])
def test_a_retry_gets_the_first_free_id(
    service: Service, server: RedisServer, store: Store, tmp_path: Path, job: JobRef, way: str
) -> None:
    """JOB has ended, JOB.2 was deleted, a live runner holds JOB.3, JOB.4 has a killed runner's lines. JOB.5 is free."""
    second, third, fourth, fifth = (JobRef(job.workflow_id, f"{job.job_id}.{number}") for number in range(2, 6))
    end_job(store, job)
    delete_job(server, second)
    store.open(third, secrets.token_hex(16))
    server.ask("XADD", key("log", fourth), "1-0", "message", "theirs", "stream", "stdout")
    options = ["--retry", *(["--server", service.url] if way == "service" else [])]
    settings = {"TOKEN": service.token()} if way == "service" else {"REDIS_URL": server.url}
    done = chronoverse(*run_arguments(job, *options), *COMMAND, data_dir=tmp_path, **settings)
    assert_ran(done, f"already ended: this run is published as job {fifth.job_id}")
    assert_published_once(server, fifth)
    assert read_lines(server, job) == []
    assert server.ask("EXISTS", key("log", second), key("job", second)) == 0
    assert not orphaned_spools(tmp_path / "spool")


def test_a_retry_whose_id_would_be_too_long_is_reported(server: RedisServer, store: Store, tmp_path: Path) -> None:
    """The command runs, and nothing is published."""
    job, where = JobRef("wf_refused", secrets.token_hex(63) + "x"), {"REDIS_URL": server.url}
    end_job(store, job)
    done = chronoverse(*run_arguments(job, "--retry"), *COMMAND, data_dir=tmp_path, **where)
    assert_ran(done, f"{job.job_id}.2 exceeds the 128 characters of an id")
    (path,) = orphaned_spools(tmp_path / "spool")
    as_other = chronoverse("deliver", "--as", job.job_id[:9], str(path), data_dir=tmp_path, **where)
    assert as_other.returncode == 0
    assert_published_once(server, JobRef(job.workflow_id, job.job_id[:9]))


def test_a_foreign_service_requires_a_token(service: Service, tmp_path: Path, job: JobRef) -> None:
    """Without one, nothing is published. An invalid URL is rejected."""
    done = chronoverse(*run_arguments(job, "--server", service.url), *COMMAND, data_dir=tmp_path)
    assert_ran(done, "requires a token: set CHRONOVERSE_TOKEN")
    arguments = run_arguments(job, "--server", service.url, "--require-log")
    done = chronoverse(*arguments, "echo", "shown", data_dir=tmp_path)
    assert (done.returncode, done.stdout) == (77, "")
    for url in ("ftp://x", "http://", "http://u:p@x", "x"):
        assert chronoverse(*run_arguments(job, "--server", url), "true", data_dir=tmp_path).returncode == 64
