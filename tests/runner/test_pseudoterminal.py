"""Commands on a pseudo-terminal: what they see, what is typed, and how they end."""

import io
import subprocess
import sys
import time
from pathlib import Path

import pytest

from chronoverse.joblog.line_splitter import LineBatch
from chronoverse.runner.capture.pipes import Capture
from chronoverse.runner.command import SignalForwarder, Tee, run_command
from tests.runner.descriptors import open_descriptors

ROOT = Path(__file__).parents[2]
#: Runs its arguments on a pseudo-terminal, prints what would be published, and exits with their exit code.
DRIVER = """
import sys
from chronoverse.runner.capture.pipes import Capture
from chronoverse.runner.command import SignalForwarder, Tee, open_standard, run_command
batches = []
signals = SignalForwarder()
with signals:
    tees = {"stdout": Tee(open_standard(1)), "stderr": Tee(open_standard(2))}
    code = run_command(sys.argv[1:], Capture(tees, batches.append), tees["stderr"].say, signals, pty=True)
published = [message for batch in batches for message in map(bytes.decode, batch.messages())]
print("published", published, list(map(int, signals.received)), flush=True)
sys.exit(code)
"""
#: Runs argv[3:] on a terminal of 33 rows and 101 columns. When "ready" is printed, types argv[1], after resizing
#: the terminal if argv[2] is not empty.
TERMINAL = """
import os, pty, sys, termios, time
pid, master = pty.fork()
if pid == 0:
    termios.tcsetwinsize(0, (33, 101))
    os.execv(sys.executable, [sys.executable, *sys.argv[3:]])
seen = b""
while b"ready\\r\\n" not in seen:
    seen += os.read(master, 1000)
if sys.argv[2]:
    termios.tcsetwinsize(master, (44, 55))
os.write(master, sys.argv[1].encode().decode("unicode_escape").encode())
try:
    while data := os.read(master, 1000):
        seen += data
except OSError:
    pass
sys.stdout.buffer.write(seen)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
"""


def execute(*argv: str) -> tuple[int, list[tuple[str, str]], bytes]:
    """Runs ``argv`` on a pseudo-terminal: its exit code, what was published, and what was shown."""
    batches: list[LineBatch] = []
    out, err = io.BytesIO(), io.BytesIO()
    capture = Capture({"stdout": Tee(out), "stderr": Tee(err)}, batches.append)
    code = run_command(argv, capture, Tee(err).say, SignalForwarder(), pty=True)
    assert not err.getvalue() or code in (126, 127)
    return (
        code,
        [(batch.stream, message) for batch in batches for message in map(bytes.decode, batch.messages())],
        out.getvalue(),
    )


def on_terminal(code: str, keys: str = "", resize: str = "") -> tuple[int, bytes]:
    """Runs Python code on a pseudo-terminal, with a runner on a terminal: its exit code and everything shown."""
    job = [sys.executable, "-uc", code]
    command = [sys.executable, "-c", TERMINAL, keys, resize, "-c", DRIVER, *job]
    done = subprocess.run(command, stdout=subprocess.PIPE, cwd=ROOT, timeout=30, check=False)
    return done.returncode, done.stdout


def test_the_command_has_a_terminal_and_one_stream() -> None:
    """Both outputs are one ordered stream. If the runner has no terminal, lines end as in a file."""
    script = "test -t 1 && test -t 2 && echo one; echo two >&2; tty >/dev/tty 2>&1; exit 3"
    code, lines, shown = execute("sh", "-c", script + " </dev/tty")
    assert code == 3
    assert lines[:2] == [("stdout", "one"), ("stdout", "two")]
    assert "not a tty" not in lines[2][1] or len(lines) == 3
    assert shown.startswith(b"one\ntwo\n")


def test_all_output_of_a_short_command_is_read() -> None:
    """The last bytes are read before the terminal's end is noticed."""
    _, lines, _ = execute(sys.executable, "-c", "for i in range(20_000): print(i)")
    assert [line for _, line in lines] == [str(number) for number in range(20_000)]


@pytest.mark.parametrize(("script", "expected"), [("exit 7", 7), ("kill -TERM $$", 143), ("kill -KILL $$", 137)])
def test_the_exit_code_is_the_commands_own(script: str, expected: int) -> None:
    """128 + n for signal n."""
    assert execute("sh", "-c", script)[0] == expected


def test_a_command_that_cannot_be_started_is_reported(tmp_path: Path) -> None:
    """With exit code 127 or 126, and a line with the reason."""
    (tmp_path / "data").write_text("no program")
    code, lines, _ = execute("no-such-command-here")
    assert (code, lines) == (127, [("stderr", "chronoverse: no-such-command-here: command not found")])
    assert execute(str(tmp_path / "data"))[0] == 126


@pytest.mark.long
def test_a_grandchild_does_not_delay_the_end() -> None:
    """It keeps the terminal open and ignores SIGHUP."""
    started = time.monotonic()
    code, _, _ = execute("sh", "-c", "trap '' HUP; sleep 30 & exit 0")
    assert code == 0
    assert time.monotonic() - started < 20


def test_no_descriptor_is_left_open() -> None:
    """The capture closes all of its descriptors."""
    before = open_descriptors()
    for _ in range(5):
        execute("true")
        execute("no-such-command-here")
    assert not open_descriptors() - before


def test_the_command_reads_our_stdin_if_that_is_a_pipe() -> None:
    """Unchanged, to its end."""
    command = [sys.executable, "-c", DRIVER, "cat"]
    done = subprocess.run(command, input=b"a\nb\n", stdout=subprocess.PIPE, cwd=ROOT, check=True)
    assert done.stdout == b"a\nb\npublished ['a', 'b'] []\n"


def test_what_is_typed_reaches_the_command_and_is_echoed_once() -> None:
    """The command's terminal echoes it, since ours is raw."""
    code, seen = on_terminal("print('ready'); print('you said', input())", "blue\\r")
    assert code == 0
    assert seen.split(b"published")[0] == b"ready\r\nblue\r\nyou said blue\r\n"
    assert b"published ['ready', 'blue', 'you said blue'] []\r\n" in seen


def test_the_commands_terminal_has_our_window_size() -> None:
    """At the start and after a change."""
    code = """
import os, signal, sys, time
size = os.get_terminal_size
signal.signal(signal.SIGWINCH, lambda *_: sys.exit(print('now', *size())))
print('was', *size()); print('ready'); time.sleep(10)
"""
    assert b"was 101 33" in on_terminal(code, resize="yes")[1]
    assert b"now 55 44" in on_terminal(code, resize="yes")[1]


def test_a_signal_is_forwarded_at_any_time() -> None:
    """Another thread can receive it, or it can arrive just before the wait for output without interrupting it."""
    code = """
import signal, sys, threading
from chronoverse.runner.capture.pipes import Capture
from chronoverse.runner.command import SignalForwarder, Tee, open_standard, run_command
class Attached(SignalForwarder):
    def attach(self, group):
        super().attach(group)
        threading.Timer(0.5, lambda: signal.pthread_kill(threading.get_ident(), signal.SIGTERM)).start()
signals = Attached()
with signals:
    tees = {"stdout": Tee(open_standard(1)), "stderr": Tee(open_standard(2))}
    sys.exit(run_command(["sleep", "20"], Capture(tees, lambda batch: None), tees["stderr"].say, signals))
"""
    began = time.monotonic()
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 143
    assert time.monotonic() - began < 10


def test_control_c_goes_to_the_command() -> None:
    """The command dies of it, and the job is CANCELED. Other keys may have been typed before."""
    code, seen = on_terminal("import time; print('ready'); time.sleep(60)", "x\\x03")
    assert code == 130
    assert b" [2]\r\n" in seen


def test_a_command_can_catch_control_c() -> None:
    """It is then a key like any other."""
    catching = "import signal, time\nsignal.signal(2, lambda *_: exit(5))\nprint('ready')\ntime.sleep(60)"
    code, seen = on_terminal(catching, "\\x03")
    assert code == 5
    assert b" []\r\n" in seen


def test_control_z_does_not_stop_the_command() -> None:
    """Nobody could continue it. The command reads the key as a byte."""
    code, seen = on_terminal("print('ready'); print(ascii(input()))", "\\x1a\\r")
    assert code == 0
    assert b"'\\x1a'" in seen


def test_our_terminal_is_restored() -> None:
    """Its lines end as before."""
    code = "import sys, tty; tty.setraw(0); sys.stdout.write('ready\\r\\n'); sys.exit(9)"
    exit_code, seen = on_terminal(code)
    assert exit_code == 9
    assert seen.endswith(b"[]\r\n")


def test_output_is_read_while_the_command_does_not_read() -> None:
    """Even though much was typed that nobody reads."""
    code = "import time; print('ready'); time.sleep(0.5); print('x' * 50_000); print('done')"
    exit_code, seen = on_terminal(code, "y" * 3_000 + "\\r")
    assert exit_code == 0
    assert b"'done'" in seen
