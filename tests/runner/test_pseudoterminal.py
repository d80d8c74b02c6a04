"""Commands on a pseudo-terminal: what they see, what is typed, and how they end."""

import io
import subprocess
import sys
import time
from pathlib import Path

import pytest

from chronoverse.runner.capture.line_splitter import LineBatch
from chronoverse.runner.command import Command
from chronoverse.runner.signal_forwarder import SignalForwarder
from chronoverse.runner.tee import Tee
from tests.support.descriptors import open_descriptors

ROOT = Path(__file__).parents[2]
#: Runs its arguments on a pseudo-terminal, says what would have been published, and exits as they did.
DRIVER = """
import sys
from chronoverse.runner.command import Command
from chronoverse.runner.tee import Tee, open_standard
from chronoverse.runner.signal_forwarder import SignalForwarder
batches = []
signals = SignalForwarder()
with signals:
    tees = {"stdout": Tee(open_standard(1)), "stderr": Tee(open_standard(2))}
    code = Command(sys.argv[1:], tees, batches.append, signals, pty=True).run()
published = [message for batch in batches for message in batch.messages()]
print("published", published, list(map(int, signals.received)), flush=True)
sys.exit(code)
"""
#: Runs argv[3:] on a terminal of 33 rows and 101 columns, types argv[1] once it says ready, resizes it if argv[2].
TERMINAL = """
import os, pty, sys, termios, time
pid, master = pty.fork()
if pid == 0:
    termios.tcsetwinsize(0, (33, 101))
    os.execv(sys.executable, [sys.executable, *sys.argv[3:]])
seen = b""
while b"ready" not in seen:
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
    code = Command(argv, {"stdout": Tee(out), "stderr": Tee(err)}, batches.append, SignalForwarder(), pty=True).run()
    assert not err.getvalue() or code in (126, 127)
    return code, [(batch.stream, message) for batch in batches for message in batch.messages()], out.getvalue()


def on_terminal(code: str, keys: str = "", resize: str = "") -> tuple[int, bytes]:
    """Runs Python code with a pseudo-terminal by somebody who sits at one: our exit code, and what is seen."""
    job = [sys.executable, "-uc", code]
    command = [sys.executable, "-c", TERMINAL, keys, resize, "-c", DRIVER, *job]
    done = subprocess.run(command, stdout=subprocess.PIPE, cwd=ROOT, timeout=30, check=False)
    return done.returncode, done.stdout


def test_the_command_has_a_terminal_and_one_stream() -> None:
    """Both its outputs are one, in order; without a terminal of ours, its lines end as in a file."""
    script = "test -t 1 && test -t 2 && echo one; echo two >&2; tty >/dev/tty 2>&1; exit 3"
    code, lines, shown = execute("sh", "-c", script + " </dev/tty")
    assert code == 3
    assert lines[:2] == [("stdout", "one"), ("stdout", "two")]
    assert "not a tty" not in lines[2][1] or len(lines) == 3
    assert shown.startswith(b"one\ntwo\n")


def test_all_output_is_there_when_it_ends_at_once() -> None:
    """The last bytes are read before the terminal's end is."""
    _, lines, _ = execute(sys.executable, "-c", "for i in range(20_000): print(i)")
    assert [line for _, line in lines] == [str(number) for number in range(20_000)]


@pytest.mark.parametrize(("script", "expected"), [("exit 7", 7), ("kill -TERM $$", 143), ("kill -KILL $$", 137)])
def test_the_exit_code_is_the_commands_own(script: str, expected: int) -> None:
    """128 + n for signal n."""
    assert execute("sh", "-c", script)[0] == expected


def test_what_cannot_be_run_is_told_as_ever(tmp_path: Path) -> None:
    """127 and 126, and a line that says so."""
    (tmp_path / "data").write_text("no program")
    code, lines, _ = execute("no-such-command-here")
    assert (code, lines) == (127, [("stderr", "chronoverse: no-such-command-here: command not found")])
    assert execute(str(tmp_path / "data"))[0] == 126


def test_a_grandchild_does_not_hold_us() -> None:
    """Though it holds the terminal open and is deaf to its end."""
    started = time.monotonic()
    code, _, _ = execute("sh", "-c", "trap '' HUP; sleep 4 & exit 0")
    assert code == 0
    assert time.monotonic() - started < 3.5


def test_no_descriptor_is_left_open() -> None:
    """Neither the pseudo-terminal's nor the keyboard's."""
    before = open_descriptors()
    for _ in range(5):
        execute("true")
        execute("no-such-command-here")
    assert not open_descriptors() - before


def test_our_stdin_stays_the_commands_when_it_is_no_terminal() -> None:
    """A pipe is not typed: it is read as it is, to its end."""
    command = [sys.executable, "-c", DRIVER, "cat"]
    done = subprocess.run(command, input=b"a\nb\n", stdout=subprocess.PIPE, cwd=ROOT, check=True)
    assert done.stdout == b"a\nb\npublished ['a', 'b'] []\n"


def test_what_is_typed_reaches_the_command_and_is_echoed_once() -> None:
    """By the command's terminal, since ours is raw."""
    code, seen = on_terminal("print('ready'); print('you said', input())", "blue\\r")
    assert code == 0
    assert seen.split(b"published")[0] == b"ready\r\nblue\r\nyou said blue\r\n"
    assert b"published ['ready', 'blue', 'you said blue'] []\r\n" in seen


def test_our_window_is_the_commands() -> None:
    """At its start, and when it changes."""
    code = """
import os, signal, sys, time
size = os.get_terminal_size
signal.signal(signal.SIGWINCH, lambda *_: sys.exit(print('now', *size())))
print('was', *size()); print('ready'); time.sleep(10)
"""
    assert b"was 101 33" in on_terminal(code, resize="yes")[1]
    assert b"now 55 44" in on_terminal(code, resize="yes")[1]


def test_a_signal_is_passed_on_wherever_it_finds_us() -> None:
    """Also one that does not interrupt the wait for output: it came to another thread, or just before."""
    code = """
import signal, sys, threading, time
from chronoverse.runner.command import Command
from chronoverse.runner.tee import Tee, open_standard
from chronoverse.runner.signal_forwarder import SignalForwarder
def interrupt():
    while signals._group is None:
        time.sleep(0.01)
    time.sleep(0.5)
    signal.pthread_kill(threading.get_ident(), signal.SIGTERM)
signals = SignalForwarder()
with signals:
    threading.Thread(target=interrupt, daemon=True).start()
    tees = {"stdout": Tee(open_standard(1)), "stderr": Tee(open_standard(2))}
    sys.exit(Command(["sleep", "20"], tees, lambda block: None, signals).run())
"""
    began = time.monotonic()
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 143
    assert time.monotonic() - began < 10


def test_control_c_is_the_commands() -> None:
    """It dies of it, and counts as canceled."""
    code, seen = on_terminal("import time; print('ready'); time.sleep(60)", "\\x03")
    assert code == 130
    assert b" [2]\r\n" in seen


def test_a_command_may_catch_control_c() -> None:
    """Then it is a key like any other."""
    catching = "import signal, time\nsignal.signal(2, lambda *_: exit(5))\nprint('ready')\ntime.sleep(60)"
    code, seen = on_terminal(catching, "\\x03")
    assert code == 5
    assert b" []\r\n" in seen


def test_control_z_does_not_stop_what_nobody_could_continue() -> None:
    """It reaches the command as a byte."""
    code, seen = on_terminal("print('ready'); print(ascii(input()))", "\\x1a\\r")
    assert code == 0
    assert b"'\\x1a'" in seen


def test_our_terminal_is_as_before() -> None:
    """Its lines end as they should again: ours does after the command."""
    code = "import sys, tty; tty.setraw(0); sys.stdout.write('ready'); sys.exit(9)"
    exit_code, seen = on_terminal(code)
    assert exit_code == 9
    assert seen.endswith(b"[]\r\n")


def test_a_command_that_does_not_read_is_still_heard() -> None:
    """Much that was typed and nobody read does not keep its output from being read."""
    code = "import time; print('ready'); time.sleep(0.5); print('x' * 50_000); print('done')"
    exit_code, seen = on_terminal(code, "y" * 3_000 + "\\r")
    assert exit_code == 0
    assert b"'done'" in seen
