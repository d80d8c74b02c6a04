"""A command whose log is rejected still runs, and its lines can be delivered later."""

import contextlib
import os
import pty
import re
import secrets
import shlex
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any, Final, NamedTuple

import pytest

from chronoverse.auth.token_file import read_token_file
from chronoverse.auth.tokens import READ
from chronoverse.errors import ChronoverseError, Forbidden, Unauthorized
from chronoverse.joblog.line_splitter import LineBatch
from chronoverse.joblog.model import JobRef, Status
from chronoverse.runner.http_log_writer import HttpLogWriter
from chronoverse.runner.publisher import LogWriter
from chronoverse.runner.run import run
from chronoverse.runner.spool.spool import Spool
from chronoverse.runner.spool.spool_file import SpoolFile, SpoolRoom, orphaned_spools
from chronoverse.store import Store
from tests.support.commands import after_link, call_main, chronoverse_argv
from tests.support.jobs import RunningJob, key, read_lines, read_log
from tests.support.ports import free_port
from tests.support.scripted import ScriptedService, problem
from tests.support.servers import RedisServer, running
from tests.support.service import ROOT, Service, serving
from tests.support.waiting import wait_until

#: Time limit of prompt events on a busy machine, in seconds.
SOON: Final = 20.0
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
    end = read_log(server, job)[1]
    assert end is not None
    assert (end["status"], end["exit_code"], end["lines"]) == ("FAILED", "3", "3")


# Possible answers of a service


@pytest.mark.parametrize(
    ("workflows", "token", "reason", "code"),
    [
        ((), {"ttl": -60}, "expired", 77),
        pytest.param((), {"secret": b"another key, of 32 bytes or more"}, "token", 77, marks=pytest.mark.long),
        pytest.param((), {"scopes": [READ]}, "logs:write", 77, marks=pytest.mark.long),
        pytest.param(("another",), {}, "the token is not for the workflow", 66, marks=pytest.mark.long),
    ],
    ids=["expired", "signed with another key", "without the scope", "for another workflow"],
)
def test_a_rejected_token_does_not_stop_the_command(
    service: Service,
    server: RedisServer,
    tmp_path: Path,
    job: JobRef,
    workflows: tuple[str, ...],
    token: dict[str, Any],
    reason: str,
    code: int,
) -> None:
    """401, 403 and 404. With a valid token, the printed command delivers everything."""
    shown = service.token(*workflows, **token)
    done = chronoverse(*run_arguments(job, "--server", service.url), *COMMAND, data_dir=tmp_path, TOKEN=shown)
    assert_ran(done, "nothing is published: ")
    assert reason in done.stderr
    assert read_log(server, job) == ([], None)

    refused = chronoverse(*printed_command(done.stderr), data_dir=tmp_path, TOKEN=shown)
    assert refused.returncode == code
    assert printed_command(refused.stderr.rpartition("chronoverse: ")[0]) == printed_command(done.stderr)
    delivered = chronoverse(*printed_command(done.stderr), data_dir=tmp_path, TOKEN=service.token())
    assert delivered.returncode == 0, delivered.stderr
    assert_published_once(server, job)
    assert not orphaned_spools(tmp_path / "spool")


@contextlib.contextmanager
def scripted(status: str, times: int = 1) -> Iterator[str]:
    """The URL of a service that answers ``status`` that many times, then refuses connections."""
    answers = [] if status == "refused" else [problem(status, "we are busy")] * times
    service = ScriptedService(*answers)
    url = service.url
    with service:
        yield url


@pytest.mark.parametrize(
    "status",
    [pytest.param("500 Internal Server Error", marks=pytest.mark.long), "503 Service Unavailable", "refused"],
)
def test_an_unavailable_service_does_not_stop_the_command(
    service: Service, server: RedisServer, tmp_path: Path, job: JobRef, status: str
) -> None:
    """The scripted service is gone after its answer; the lines are delivered to the real one."""
    with scripted(status) as away:
        arguments = run_arguments(job, "--server", away)
        done = chronoverse(*arguments, *COMMAND, data_dir=tmp_path, TOKEN=service.token())
    assert_ran(done, "lines wait here, the job continues")
    assert ("does not answer" if status == "refused" else "we are busy") in done.stderr

    command = [service.url if word == away else word for word in printed_command(done.stderr)]
    assert command[:3] == ["deliver", "--server", service.url]
    assert chronoverse(*command, data_dir=tmp_path, TOKEN=service.token()).returncode == 0
    assert_published_once(server, job)


@pytest.mark.long
def test_an_unreachable_service_delays_the_end_for_five_seconds(tmp_path: Path, job: JobRef) -> None:
    """Not for the minute of ``--deliver-timeout``, and not silently."""
    url = f"http://127.0.0.1:{free_port()}"
    arguments = ["run", "--server", url, "--workflow", job.workflow_id, "--job", job.job_id, "--", *COMMAND]
    started = time.monotonic()
    done = chronoverse(*arguments, data_dir=tmp_path)
    seconds = time.monotonic() - started

    assert_ran(done, "lines wait here, the job continues")
    assert 4 < seconds < 30
    (file,) = orphaned_spools(tmp_path / "spool")
    waiting = r"chronoverse: delivering 3 lines, for up to [45] s; Ctrl-C keeps them in (.*)\n"
    assert re.findall(waiting, done.stderr) == [str(file)]


@pytest.mark.long
def test_on_a_terminal_the_end_counts_down_and_ctrl_c_ends_it(tmp_path: Path, job: JobRef) -> None:
    """The messages that follow replace the countdown. The lines are in the file that it named."""
    url = f"http://127.0.0.1:{free_port()}"
    arguments = ["run", "--server", url, "--workflow", job.workflow_id, "--job", job.job_id, "--", "echo", "one"]
    pid, terminal = pty.fork()
    if pid == 0:
        os.execve(sys.executable, chronoverse_argv(*arguments), environ(tmp_path, PYTHONPATH=str(ROOT)))
    shown = b""
    with contextlib.suppress(OSError):  # at the end
        while data := os.read(terminal, 1_000):
            shown += data
            if b"for up to 3 s" in data:
                os.write(terminal, b"\x03")
    os.close(terminal)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

    assert code == 0
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


@pytest.mark.long
def test_a_rejected_command_without_output_can_be_delivered(
    service: Service, server: RedisServer, tmp_path: Path, job: JobRef
) -> None:
    """The file only contains its outcome."""
    arguments = run_arguments(job, "--server", service.url)
    done = chronoverse(*arguments, "false", data_dir=tmp_path, TOKEN=service.token(ttl=-60))
    assert done.returncode == 1
    assert chronoverse(*printed_command(done.stderr), data_dir=tmp_path, TOKEN=service.token()).returncode == 0
    lines, end = read_log(server, job)
    assert lines == []
    assert end is not None
    assert (end["status"], end["exit_code"]) == ("FAILED", "1")


@pytest.mark.long
def test_a_command_without_output_whose_job_has_ended_is_reported_as_such(
    server: RedisServer, store: Store, tmp_path: Path, job: JobRef
) -> None:
    """No lines can be missing."""
    end_job(store, job)
    assert chronoverse(*run_arguments(job), "true", data_dir=tmp_path, REDIS_URL=server.url).returncode == 0
    (path,) = orphaned_spools(tmp_path / "spool")
    done = chronoverse("deliver", str(path), data_dir=tmp_path, REDIS_URL=server.url)
    assert done.returncode == 76
    assert f"{job} has ended without the run of {path}, which printed nothing" in done.stderr


# Ids that are taken, with the store and through the service


class Site(NamedTuple):
    """How the runner publishes: its options and settings."""

    options: list[str]
    settings: dict[str, str]


@pytest.fixture(params=["store", "service"])
def site(request: pytest.FixtureRequest, service: Service, server: RedisServer) -> Site:
    if request.param == "store":
        return Site([], {"REDIS_URL": server.url})
    return Site(["--server", service.url], {"TOKEN": service.token()})


#: How an id comes to be taken, the message, and the exit code with ``--require-log``.
TAKEN: Final = {
    "ended": ("already ended", 73),
    "deleted": ("was deleted", 73),
    "held": ("another live runner", 75),
    "another's": ("entry ids", 65),
}


def take(how: str, server: RedisServer, store: Store, job: JobRef) -> None:
    if how == "ended":
        end_job(store, job)
    elif how == "deleted":
        delete_job(server, job)
    elif how == "held":
        store.open(job, secrets.token_hex(16))
    else:
        server.ask("XADD", key("log", job), "5-1", "message", "?")


@pytest.mark.parametrize("how", TAKEN)
def test_an_id_that_is_taken_does_not_stop_the_command(
    server: RedisServer, store: Store, tmp_path: Path, job: JobRef, site: Site, how: str
) -> None:
    """Nothing is published under it. The printed command publishes everything under another id."""
    take(how, server, store, job)
    before = server.ask("XRANGE", key("log", job), "-", "+")
    done = chronoverse(*run_arguments(job, *site.options), *COMMAND, data_dir=tmp_path, **site.settings)
    assert_ran(done, "nothing is published: ")
    assert TAKEN[how][0] in done.stderr
    assert server.ask("XRANGE", key("log", job), "-", "+") == before

    command = printed_command(done.stderr)
    assert "--retry" in command
    if how == "another's":
        return
    (path,) = orphaned_spools(tmp_path / "spool")
    same_id = chronoverse("deliver", *site.options, str(path), data_dir=tmp_path, **site.settings)
    assert same_id.returncode == {"ended": 76, "deleted": 73, "held": 75}[how]
    reason = {"ended": "has ended without", "deleted": "was deleted", "held": "another live runner"}[how]
    assert reason in same_id.stderr
    assert printed_command(same_id.stderr.rpartition("chronoverse: ")[0]) == command
    assert chronoverse(*command, data_dir=tmp_path, **site.settings).returncode == 0
    assert_published_once(server, JobRef(job.workflow_id, f"{job.job_id}.2"))
    assert server.ask("XRANGE", key("log", job), "-", "+") == before


@pytest.mark.parametrize("how", TAKEN)
def test_with_require_log_an_id_that_is_taken_stops_the_command(
    server: RedisServer, store: Store, tmp_path: Path, job: JobRef, site: Site, how: str
) -> None:
    """The exit code says why."""
    take(how, server, store, job)
    arguments = run_arguments(job, "--require-log", *site.options)
    done = chronoverse(*arguments, "touch", str(tmp_path / "ran"), data_dir=tmp_path, **site.settings)
    assert done.returncode == TAKEN[how][1]
    assert TAKEN[how][0] in done.stderr
    assert not (tmp_path / "ran").exists()
    assert not orphaned_spools(tmp_path / "spool")


@pytest.mark.long
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


# --require-log


def refuses_to_run(writer: LogWriter, tmp_path: Path, job: JobRef) -> str:
    """The message with which the runner refuses to start a command without a log."""
    ran, out, err = tmp_path / "ran", BytesIO(), BytesIO()
    limits: dict[str, Any] = {"room": SpoolRoom(tmp_path / "spool"), "open_seconds": 0.5}
    with pytest.raises(ChronoverseError) as raised:
        run(["touch", str(ran)], writer, job, out=out, err=err, **limits, require_log=True)
    assert not ran.exists()
    assert err.getvalue() == b"chronoverse: command not started: --require-log is set and the log cannot be published\n"
    return f"{type(raised.value).__name__}: {raised.value}"


@pytest.mark.parametrize("status", ["500 Internal Server Error", "503 Service Unavailable", "refused"])
def test_with_require_log_an_unavailable_service_stops_the_command(tmp_path: Path, job: JobRef, status: str) -> None:
    """After a few seconds in which the service can come back."""
    with scripted(status, times=50) as away, contextlib.closing(HttpLogWriter(away, "t")) as writer:
        message = refuses_to_run(writer, tmp_path, job)
    assert message.startswith("StoreUnavailable: ")
    assert ("does not answer" if status == "refused" else "we are busy") in message


@pytest.mark.long
def test_with_require_log_a_silent_service_stops_the_command(tmp_path: Path, job: JobRef) -> None:
    """It accepts the connection and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        with contextlib.closing(HttpLogWriter(url, "t", read_seconds=2)) as writer:
            assert "no answer within 0.5 s" in refuses_to_run(writer, tmp_path, job)


@pytest.mark.long
@pytest.mark.parametrize(
    ("token", "error"),
    [({"ttl": -60}, Unauthorized), ({"scopes": [READ]}, Forbidden)],
    ids=["expired", "without the scope"],
)
def test_with_require_log_a_rejected_token_stops_the_command(
    service: Service, tmp_path: Path, job: JobRef, token: dict[str, Any], error: type[ChronoverseError]
) -> None:
    """With the exit code of an invalid token."""
    with contextlib.closing(HttpLogWriter(service.url, service.token(**token))) as writer:
        assert refuses_to_run(writer, tmp_path, job).startswith(f"{error.__name__}: ")
    arguments = run_arguments(job, "--require-log", "--server", service.url)
    assert chronoverse(*arguments, "true", data_dir=tmp_path, TOKEN=service.token(**token)).returncode == 77


@pytest.mark.long
def test_with_require_log_the_exit_code_of_an_outage_is_69(server: RedisServer, tmp_path: Path, job: JobRef) -> None:
    """The same for a service and a store, unavailable or rejecting. All of these runs wait concurrently."""
    running: dict[str, subprocess.Popen[str]] = {}
    for away in ("http://127.0.0.1:9", "store", "forbidden", "wrong password"):
        options = ["--server", away] if away.startswith("http") else []
        settings = {"TOKEN": "t"} if options else {"REDIS_URL": restricted(server, away)}
        arguments = run_arguments(job, "--require-log", *options)
        running[away] = subprocess.Popen(
            chronoverse_argv(*arguments, "touch", str(tmp_path / "ran")),
            env={**environ(tmp_path, **settings), "PYTHONPATH": str(ROOT)},
            stderr=subprocess.PIPE,
            text=True,
        )
    for away, process in running.items():
        stderr = process.communicate(timeout=60)[1]
        assert process.returncode == 69, away
        assert len(after_link(stderr).splitlines()) == 2, stderr
    assert not (tmp_path / "ran").exists()


# A store that rejects


def restricted(server: RedisServer, how: str) -> str:
    """The URL of a store that rejects the runner or is unavailable."""
    server.ask("ACL", "SETUSER", "reader", "reset", "on", ">secret", "~*", "+@read", "+@connection")
    password = "secret" if how == "forbidden" else "wrong"
    return "unix:///nowhere/redis.sock" if how == "store" else f"unix://reader:{password}@{server.socket}"


@pytest.mark.parametrize(("how", "reason"), [("forbidden", "ACL denies"), ("wrong password", "user or password")])
def test_a_rejecting_store_does_not_stop_the_command(
    server: RedisServer, tmp_path: Path, job: JobRef, how: str, reason: str
) -> None:
    """An ACL forbids what the runner needs, or the password is wrong. Once corrected, everything is delivered."""
    done = chronoverse(*run_arguments(job), *COMMAND, data_dir=tmp_path, REDIS_URL=restricted(server, how))
    assert_ran(done, reason)
    assert read_log(server, job) == ([], None)
    assert chronoverse(*printed_command(done.stderr), data_dir=tmp_path, REDIS_URL=server.url).returncode == 0
    assert_published_once(server, job)


# A retry


def test_a_retry_gets_the_first_free_id(
    server: RedisServer, store: Store, tmp_path: Path, job: JobRef, site: Site
) -> None:
    """JOB has ended, JOB.2 was deleted, a live runner holds JOB.3, JOB.4 has a killed runner's lines. JOB.5 is free."""
    second, third, fourth, fifth = (JobRef(job.workflow_id, f"{job.job_id}.{number}") for number in range(2, 6))
    end_job(store, job)
    delete_job(server, second)
    store.open(third, secrets.token_hex(16))
    server.ask("XADD", key("log", fourth), "1-0", "message", "theirs", "stream", "stdout")
    arguments = run_arguments(job, "--retry", *site.options)
    done = chronoverse(*arguments, *COMMAND, data_dir=tmp_path, **site.settings)
    assert_ran(done, f"already ended: this run is published as job {fifth.job_id}")
    assert_published_once(server, fifth)
    assert read_lines(server, job) == []
    assert server.ask("EXISTS", key("log", second), key("job", second)) == 0
    assert not orphaned_spools(tmp_path / "spool")


def test_a_first_run_with_retry_gets_the_id_itself(
    server: RedisServer, tmp_path: Path, job: JobRef, site: Site
) -> None:
    """So a pipeline can always pass the option."""
    arguments = run_arguments(job, "--retry", "--require-log", *site.options)
    done = chronoverse(*arguments, *COMMAND, data_dir=tmp_path, **site.settings)
    assert (done.returncode, after_link(done.stderr)) == (3, "two\n")
    assert_published_once(server, job)


@pytest.mark.long
def test_a_retry_whose_store_stays_unavailable_gets_its_id_later(
    server: RedisServer, store: Store, tmp_path: Path, job: JobRef
) -> None:
    """The printed command looks for a free id, too."""
    end_job(store, job)
    away = {"REDIS_URL": "unix:///nowhere/redis.sock"}
    done = chronoverse(*run_arguments(job, "--retry"), *COMMAND, data_dir=tmp_path, **away)
    assert_ran(done, "lines wait here")
    again = chronoverse(*printed_command(done.stderr), "--deliver-timeout", "1s", data_dir=tmp_path, **away)
    assert again.returncode == 69
    assert printed_command(again.stderr) == printed_command(done.stderr)
    assert chronoverse(*printed_command(done.stderr), data_dir=tmp_path, REDIS_URL=server.url).returncode == 0
    assert_published_once(server, JobRef(job.workflow_id, f"{job.job_id}.2"))


@pytest.mark.long
def test_concurrent_retries_get_different_ids(server: RedisServer, store: Store, tmp_path: Path, job: JobRef) -> None:
    """The store gives an id to only one of them."""
    end_job(store, job)
    ids = [JobRef(job.workflow_id, f"{job.job_id}.{number}") for number in range(2, 10)]
    codes: list[int] = []
    gate = threading.Barrier(len(ids))

    def retry(number: int) -> None:
        with contextlib.closing(Store(server.url)) as own:
            gate.wait()
            argv = [sys.executable, "-c", f"print({number})"]
            codes.append(run(argv, own, job, out=BytesIO(), err=BytesIO(), retry=True))

    threads = [threading.Thread(target=retry, args=(number,)) for number in range(len(ids))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(SOON)
    assert codes == [0] * len(ids)
    assert sorted(line for each in ids for line in read_lines(server, each)) == [str(n) for n in range(len(ids))]
    assert [len(read_lines(server, each)) for each in ids] == [1] * len(ids)


def test_a_retry_whose_id_would_be_too_long_is_reported(
    server: RedisServer, store: Store, tmp_path: Path, site: Site
) -> None:
    """The command runs, and nothing is published."""
    job = JobRef("wf_refused", secrets.token_hex(63) + "x")
    end_job(store, job)
    arguments = run_arguments(job, "--retry", *site.options)
    done = chronoverse(*arguments, *COMMAND, data_dir=tmp_path, **site.settings)
    assert_ran(done, f"{job.job_id}.2 exceeds the 128 characters of an id")
    (path,) = orphaned_spools(tmp_path / "spool")
    as_other = chronoverse(
        "deliver", *site.options, "--as", f"{job.job_id[:9]}", str(path), data_dir=tmp_path, **site.settings
    )
    assert as_other.returncode == 0
    assert_published_once(server, JobRef(job.workflow_id, job.job_id[:9]))


def test_a_retry_keeps_its_job(server: RedisServer, store: Store, tmp_path: Path, job: JobRef) -> None:
    """When it is declared LOST, its remaining lines do not go to yet another id."""
    end_job(store, job)
    second, third = (JobRef(job.workflow_id, f"{job.job_id}.{number}") for number in (2, 3))
    out, err = BytesIO(), BytesIO()
    gate = tmp_path / "gate"
    script = f"echo one; while [ ! -e {gate} ]; do sleep 0.02; done; echo two"
    limits: dict[str, Any] = {"room": SpoolRoom(tmp_path / "spool"), "deliver_seconds": SOON}

    def execute() -> None:
        run(["sh", "-c", script], store, job, out=out, err=err, **limits, retry=True)

    thread = threading.Thread(target=execute)
    thread.start()
    wait_until(lambda: read_lines(server, second) == ["one"], SOON, "the first line")
    server.ask("XADD", key("log", second), "2-0", "event", "end", "status", "LOST", "lines", "1", "dropped", "0")
    server.ask("DEL", key("lease", second))
    gate.touch()
    thread.join(SOON)
    assert b"publishing stopped: the job has already ended" in err.getvalue()
    assert server.ask("EXISTS", key("log", third)) == 0
    assert printed_command(err.getvalue().decode())[:2] == ["deliver", "--retry"]


# A token in a file


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        pytest.param(None, "cannot be read: No such file", marks=pytest.mark.long),
        pytest.param(b"", "has no bearer token", marks=pytest.mark.long),
        (b"not a token\xff\n", "has no bearer token"),
    ],
    ids=["missing", "empty", "unreadable"],
)
def test_an_unusable_token_file_does_not_stop_the_command(
    service: Service, server: RedisServer, tmp_path: Path, job: JobRef, content: bytes | None, reason: str
) -> None:
    """Readers report it, with the exit code of an invalid token. Both use the file once it is fixed."""
    file = tmp_path / "token"
    if content is not None:
        file.write_bytes(content)
    arguments = run_arguments(job, "--server", service.url)
    done = chronoverse(*arguments, *COMMAND, data_dir=tmp_path, TOKEN_FILE=str(file))
    assert_ran(done, reason)
    read = ("logs", "-f", job.workflow_id, job.job_id)
    refused = chronoverse(*read, data_dir=tmp_path, TOKEN_FILE=str(file), URL=service.url)
    assert (refused.returncode, refused.stdout) == (77, "")
    assert reason in refused.stderr

    file.write_text(service.token() + "\n")
    delivered = chronoverse(*printed_command(done.stderr), data_dir=tmp_path, TOKEN_FILE=str(file))
    assert delivered.returncode == 0
    shown = chronoverse(*read, data_dir=tmp_path, TOKEN_FILE=str(file), URL=service.url)
    assert (shown.returncode, sorted(shown.stdout.splitlines())) == (3, LINES)


@pytest.mark.long
def test_a_token_file_is_reread(service: Service, server: RedisServer, tmp_path: Path, job: JobRef) -> None:
    """The token expires while the job runs. Its lines wait until the file has a new one."""
    file = tmp_path / "token"
    file.write_text(service.token(ttl=3600) + "\n")
    code = "print('before', flush=True); wait(); print('after', flush=True); wait()"
    with (
        contextlib.closing(HttpLogWriter(service.url, lambda: read_token_file(file))) as writer,
        RunningJob(code, writer, tmp_path, job, deliver_seconds=SOON) as running_job,  # type: ignore[arg-type]
    ):
        wait_until(lambda: read_lines(server, job) == ["before"], SOON, "the first line")
        file.write_text(service.token(ttl=-60))
        running_job.release()
        wait_until(lambda: "lines wait here" in running_job.stderr_text, SOON, "the runner reports the refusal")
        file.write_text(service.token())
        running_job.release()
        assert running_job.result() == 0
    assert read_lines(server, job) == ["before", "after"]
    assert "expired" in running_job.stderr_text
    assert running_job.stderr_text.endswith("the store is back\n")


@pytest.mark.long
def test_a_token_that_expires_during_the_run_does_not_change_the_exit_code(
    service: Service, server: RedisServer, tmp_path: Path, job: JobRef
) -> None:
    """The remaining lines wait in the file. With a new token, they follow the published ones."""
    room = SpoolRoom(tmp_path / "spool", job.job_id)
    code = "print('before', flush=True); wait(); print('after', flush=True); sys.exit(3)"
    with (
        contextlib.closing(HttpLogWriter(service.url, service.token(ttl=4))) as writer,
        RunningJob(code, writer, tmp_path, job, room=room, lease_seconds=3) as running_job,  # type: ignore[arg-type]
    ):
        wait_until(lambda: read_lines(server, job) == ["before"], SOON, "the first line")
        wait_until(lambda: "publishing stopped: the token has expired" in running_job.stderr_text, SOON, "it stops")
        running_job.release()
        assert running_job.result() == 3
    deliver = ["deliver", "--server", service.url, printed_command(running_job.stderr_text)[-1]]
    assert chronoverse(*deliver, data_dir=tmp_path, TOKEN=service.token()).returncode == 0
    lines, end = read_log(server, job)
    assert [line["message"] for line in lines] == ["before", "after"]
    assert end is not None
    assert (end["status"], end["exit_code"]) == ("FAILED", "3")


@pytest.mark.long
def test_with_require_log_later_events_do_not_change_the_exit_code(
    server: RedisServer, store: Store, tmp_path: Path, job: JobRef
) -> None:
    """The log was open when the command started, and is closed while it runs."""
    gate, err, codes = tmp_path / "gate", BytesIO(), list[int]()
    script = f"echo one; while [ ! -e {gate} ]; do sleep 0.02; done; echo two; exit 3"
    limits: dict[str, Any] = {"room": SpoolRoom(tmp_path / "spool"), "open_seconds": SOON, "deliver_seconds": SOON}

    def execute() -> None:
        argv = ["sh", "-c", script]
        codes.append(run(argv, store, job, out=BytesIO(), err=err, **limits, require_log=True))

    thread = threading.Thread(target=execute)
    thread.start()
    wait_until(lambda: read_lines(server, job) == ["one"], SOON, "the first line")
    server.ask("XADD", key("log", job), "2-0", "event", "end", "status", "LOST", "lines", "1", "dropped", "0")
    gate.touch()
    thread.join(SOON)
    assert codes == [3]
    assert b"publishing stopped: the job has already ended" in err.getvalue()
