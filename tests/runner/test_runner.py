"""The runner with real commands and a real server: the stream contains what the commands printed."""

import contextlib
import errno
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from chronoverse.runner.command import GRACE_SECONDS, SignalForwarder, Tee, open_standard
from chronoverse.runner.run import run
from chronoverse.store import Store
from tests.runner.test_pseudoterminal import TERMINAL
from tests.support.commands import call_main
from tests.support.jobs import JOB, RunningJob, outcome, read_end, read_lines, read_log
from tests.support.parameters import long_after
from tests.support.servers import RedisServer
from tests.support.service import is_alive
from tests.support.waiting import wait_until

#: Time limit of prompt events on a busy machine, in seconds.
SOON = 10.0


def execute(store: Store, *argv: str) -> tuple[int, bytes, bytes]:
    """Executes ``argv`` as the job: its exit code, stdout and stderr."""
    out, err = BytesIO(), BytesIO()
    code = run(argv, store, JOB, out=out, err=err)
    return code, out.getvalue(), err.getvalue()


def test_the_command_does_not_wait_for_the_store(store: Store, server: RedisServer, tmp_path: Path) -> None:
    """The store's client is imported and connected while the command is already running."""
    started = tmp_path / "started"

    def connect() -> Store:
        wait_until(started.exists, SOON, "the command has started")
        return store

    assert run(["touch", str(started)], connect, JOB, open_seconds=3 * SOON) == 0
    assert outcome(server) == ("COMPLETED", "0")


def test_both_streams_are_shown_and_published(server: RedisServer, store: Store) -> None:
    """Shown unchanged, published line by line, and followed by the job's end."""
    code, out, err = execute(store, "sh", "-c", "echo one; sleep 0.1; echo two >&2; sleep 0.1; echo three")
    assert (code, out, err) == (0, b"one\nthree\n", b"two\n")
    found = [(line["message"], line["stream"]) for line in read_log(server)[0]]
    assert found == [("one", "stdout"), ("two", "stderr"), ("three", "stdout")]
    end = read_end(server)
    assert [end[name] for name in ("status", "exit_code", "lines", "dropped")] == ["COMPLETED", "0", "3", "0"]


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
    assert outcome(server) == (status, str(code))


@pytest.mark.parametrize("options", long_after(1, [[], ["--pty"]]))
def test_the_command_does_not_get_the_runners_settings(server: RedisServer, tmp_path: Path, options: list[str]) -> None:
    """An earlier version's ``run -- env`` published the token, the store's URL and the key that signs tokens."""
    ours = {"TOKEN": "the-token", "JWT_SECRET": "x" * 32, "REDIS_URL": server.url, "DATA_DIR": str(tmp_path)}
    environ = {**{f"CHRONOVERSE_{name}": value for name, value in ours.items()}, "THEIRS": "kept"}
    command = ("run", "--workflow", "wf_1", "--job", "job_1", *options, "--", "env")
    done = call_main(*command, environ={**os.environ, **environ})
    assert done.returncode == 0
    for shown in (done.stdout.splitlines(), read_lines(server)):
        assert "THEIRS=kept" in shown
        assert not [line for line in shown if "CHRONOVERSE_" in line]


def test_a_command_that_cannot_be_started_has_a_shells_exit_code(
    server: RedisServer, store: Store, tmp_path: Path
) -> None:
    """127 or 126. The log says why it has no other lines."""
    code, _, err = execute(store, "no-such-command-here")
    assert (code, err) == (127, b"chronoverse: no-such-command-here: command not found\n")
    assert read_lines(server) == ["chronoverse: no-such-command-here: command not found"]
    code, _, err = execute(store, "")
    assert (code, b"chronoverse: : command not found\n" in err) == (127, True)
    (tmp_path / "data").write_text("no program")
    code, _, err = execute(store, str(tmp_path / "data"))
    assert (code, f"chronoverse: {tmp_path}/data: Permission denied" in err.decode()) == (126, True)


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
    execute(store, "seq", "20000")
    calls = next(line for line in server.ask("INFO", "commandstats").split() if line.startswith(b"cmdstat_evalsha:"))
    assert int(calls.split(b"calls=")[1].split(b",")[0]) < 60
    assert len(read_lines(server)) == 20_000


def test_the_command_reads_our_stdin(server: RedisServer) -> None:
    """By inheritance."""
    done = subprocess.run(driver(server, "cat"), input=b"a\nb\n", stdout=subprocess.PIPE, check=True)
    assert done.stdout == b"a\nb\n"
    assert read_lines(server) == ["a", "b"]


def test_output_is_shown_at_the_readers_pace_until_it_leaves() -> None:
    """As with ``| head``, nothing fails then. Another process can have made our terminal non-blocking."""
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    received, tee = bytearray(), Tee(open_standard(writing))

    def read() -> None:
        while len(received) < 300_000:
            received.extend(os.read(reading, 65_536))
        os.close(reading)

    reader = threading.Thread(target=read)
    reader.start()
    tee(b"x" * 300_000)
    reader.join(SOON)
    assert received == b"x" * 300_000
    for _ in range(2):
        tee.say("nobody reads this")
    os.close(writing)


def test_a_stream_that_takes_a_part_gets_the_rest() -> None:
    """As a buffer before a non-blocking terminal does."""

    class Hesitant(BytesIO):
        def write(self, data: Any) -> int:
            raise BlockingIOError(errno.EAGAIN, "later", super().write(data[:2]))

    Tee(out := Hesitant())(b"abcdef")
    assert out.getvalue() == b"abcdef"


def test_messages_replace_the_status_of_a_terminal() -> None:
    """Elsewhere, the status is shown once, as a message. Control characters are removed."""
    shown = []
    for is_terminal in (True, False):
        out = BytesIO()
        tee = Tee(out, is_terminal)
        for text in ("1 s\x1b[2J", "2 s"):
            tee.show_status(text)
        tee.say("done")
        tee.clear_status()
        shown.append(out.getvalue())
    line = b"\r\x1b[K"
    assert shown[0] == line + b"chronoverse: 1 s" + line + b"chronoverse: 2 s" + line + b"chronoverse: done\n"
    assert shown[1] == b"chronoverse: 1 s\nchronoverse: done\n"


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


TERM, KILL = signal.SIGTERM, signal.SIGKILL


@pytest.mark.parametrize(
    ("seconds", "forwarded"),
    [
        ([0, 0.1, 0.2], [TERM, TERM, KILL]),
        ([0, GRACE_SECONDS - 0.1], [TERM, TERM]),
        ([0, GRACE_SECONDS], [TERM, KILL]),
        ([-2, -1, 0], [TERM, KILL]),
        ([-1, 0.1], [TERM, TERM]),
    ],
    ids=["third", "double", "late", "before the start", "before and after"],
)
def test_a_third_or_late_signal_kills(
    seconds: list[float], forwarded: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Others are forwarded. The command starts at 0, ends after these signals, and its id may then be another's."""
    sent, now, signals = list[tuple[int, int]](), [100.0], SignalForwarder()
    monkeypatch.setattr("chronoverse.runner.command.time", SimpleNamespace(monotonic=lambda: now[0]))
    monkeypatch.setattr(os, "killpg", lambda *call: sent.append(call))
    for at in (each for each in seconds if each < 0):
        now[0] = 100 + at
        signals.send(TERM)
    now[0] = 100
    signals.attach(7)
    for at in (each for each in seconds if each >= 0):
        now[0] = 100 + at
        signals.send(TERM)
    signals.detach()
    signals.send(TERM)
    assert sent == [(7, each) for number in forwarded for each in (number, signal.SIGCONT)]
    assert len(signals.received) == len(seconds) + 1


@contextlib.contextmanager
def runner(server: RedisServer, code: str) -> Iterator["subprocess.Popen[bytes]"]:
    """Runs Python code as a job in its own runner."""
    command = driver(server, sys.executable, "-uc", f"import signal; signal.signal(2, signal.SIG_DFL)\n{code}")
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        try:
            yield process
        finally:
            process.kill()


@pytest.mark.parametrize("number", long_after(1, [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT]))
def test_signals_reach_the_whole_process_group(server: RedisServer, number: signal.Signals) -> None:
    """The command dies of it as without the runner, even stopped. A grandchild gets it too and keeps no pipe open."""
    code = "import os, subprocess as s; child = s.Popen(['sleep', '60']); print(child.pid); os.kill(os.getpid(), 19)"
    with runner(server, code) as process:
        grandchild = int(process.stdout.readline())  # type: ignore[union-attr]
        process.send_signal(number)
        assert process.wait(SOON) == 128 + number
    assert outcome(server) == ("CANCELED", str(128 + number))
    wait_until(lambda: not is_alive(grandchild), SOON, "the grandchild has ended")


def test_a_command_can_handle_signals(server: RedisServer) -> None:
    """Its last lines are in the log. A user who sends three does not want to wait for it, however soon they come."""
    code = "import time\nsignal.signal(signal.SIGTERM, lambda *_: print('tidying up'))\nprint('up'); time.sleep(60)"
    with runner(server, code) as process:
        assert process.stdout is not None
        for _ in range(3):
            # Two signals at once could coalesce. On a slow machine, the second one is late, and kills.
            process.stdout.readline()
            process.send_signal(signal.SIGTERM)
        assert process.wait(SOON) == 137
    assert {*read_lines(server)} == {"up", "tidying up"}
    assert outcome(server)[0] == "CANCELED"


@pytest.mark.parametrize("number", long_after(1, [signal.SIGUSR1, signal.SIGUSR2]))
def test_a_signal_that_ends_nothing_reaches_the_command_alone(server: RedisServer, number: signal.Signals) -> None:
    """A scheduler announces the end of a job's time with one. The command's child would die of it."""
    code = f"""import subprocess; child = subprocess.Popen(["sleep", "60"])
signal.signal({number:d}, lambda *_: (print("saved"), child.terminate())); print("up"); print(child.wait())"""
    with runner(server, code) as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.send_signal(number)
        assert process.wait(SOON) == 0
    assert read_lines(server) == ["up", "saved", f"{-signal.SIGTERM}"]


def test_ignored_signals_stay_ignored(server: RedisServer) -> None:
    """As under nohup, the command does not receive them either."""
    code = "import os, signal, time; print('up'); os.kill(os.getppid(), signal.SIGHUP); time.sleep(0.3); print('still')"
    hush = ["sh", "-c", 'trap "" HUP; exec "$@"', "sh", *driver(server, sys.executable, "-uc", code)]
    assert subprocess.run(hush, stdout=subprocess.PIPE, check=False).returncode == 0
    assert read_lines(server) == ["up", "still"]


def on_terminal(server: RedisServer, keys: str, code: str) -> tuple[int, bytes]:
    """Runs Python code as a job on its own terminal, and types ``keys`` once the terminal is the command's."""
    ready = "import os, time\nwhile os.tcgetpgrp(0) != os.getpgrp(): time.sleep(0.01)\nprint('ready')\n"
    command = [sys.executable, "-c", TERMINAL, keys, "", *driver(server, sys.executable, "-uc", ready + code)[1:]]
    done = subprocess.run(command, stdout=subprocess.PIPE, timeout=60, check=False)
    return done.returncode, done.stdout


@pytest.mark.parametrize(
    ("keys", "code", "exits", "last"),
    [
        # Although the command is in its own process group: the runner lends it the terminal.
        ("blue\\n", "print('you said', input())", 0, "you said blue"),
        ("\\x03", "time.sleep(60)", 130, "KeyboardInterrupt"),
        # Without a shell, nobody could continue the runner, so the command keeps running.
        ("\\x1a", "time.sleep(0.5); print('done')", 0, "done"),
    ],
    ids=["text", "Ctrl-C", "Ctrl-Z"],
)
def test_what_is_typed_on_our_terminal(server: RedisServer, keys: str, code: str, exits: int, last: str) -> None:
    """It goes directly to the command. Ctrl-C cancels the job."""
    assert on_terminal(server, keys, code)[0] == exits
    assert (read_lines(server)[-1], outcome(server)) == (last, ("CANCELED" if exits else "COMPLETED", str(exits)))


EARLY = """
import os, subprocess, sys
from chronoverse.runner.capture.terminals import foreground_process_group
child = subprocess.Popen([sys.executable, "-c", "raise SystemExit(7 * (input() == 'blue'))"], process_group=0)
os.waitid(os.P_PID, child.pid, os.WSTOPPED)
with foreground_process_group(child.pid):
    print("ready", flush=True)
    # Text that is still in the terminal when its session ends is lost.
    sys.exit(child.wait(10))
"""


def test_a_command_that_read_before_it_had_our_terminal_continues() -> None:
    """The system had stopped it for that."""
    command = [sys.executable, "-c", TERMINAL, "blue\\n", "", "-c", EARLY]
    assert subprocess.run(command, stdout=subprocess.PIPE, timeout=60, check=False).returncode == 7
