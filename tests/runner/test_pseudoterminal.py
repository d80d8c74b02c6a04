"""Commands on a pseudo-terminal: what they see, what is typed, and how they end."""

import contextlib
import io
import os
import subprocess
import sys
import time
from collections import Counter

import pytest

from chronoverse.joblog.line_splitter import LineBatch
from chronoverse.runner.capture.pipes import Capture
from chronoverse.runner.command import SignalForwarder, Tee, run_command

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
tees["stdout"](f"published {published} {list(map(int, signals.received))}\\n".encode())
sys.exit(code)
"""
#: Runs argv[3:] on a terminal of 33 rows and 101 columns. When "ready" is printed, types argv[1], after the terminal
#: is resized or closed, if argv[2] asks for it.
TERMINAL = """
import os, pty, sys, termios, time
pid, master = pty.fork()
if pid == 0:
    termios.tcsetwinsize(0, (33, 101))
    os.execv(sys.executable, [sys.executable, *sys.argv[3:]])
seen = b""
while b"ready\\r\\n" not in seen:
    seen += os.read(master, 1000)
if sys.argv[2] == "resize":
    termios.tcsetwinsize(master, (44, 55))
elif sys.argv[2] == "close":
    os.close(master)
try:
    os.write(master, sys.argv[1].encode().decode("unicode_escape").encode())
    while data := os.read(master, 1000):
        seen += data
except OSError:
    pass
sys.stdout.buffer.write(seen)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
"""

#: Reads what is typed into a full terminal, in small pieces. Prints how many bytes are missing.
PASTE = """
import contextlib, os, select, threading, tty
from chronoverse.runner.capture.terminals import _forward_stdin
command, terminal = os.openpty()
tty.setraw(terminal)
os.set_blocking(command, False)
left = 200_000
with contextlib.suppress(BlockingIOError):
    while True:
        left += os.write(command, bytes(1_000))
stop, _ = os.pipe()
threading.Thread(target=_forward_stdin, args=(command, stop, threading.Event()), daemon=True).start()
while left and select.select([terminal], [], [], 5)[0]:
    left -= len(os.read(terminal, 1_000))
print(left)
"""


def execute(*argv: str, pty: bool = True) -> tuple[int, list[tuple[str, str]], bytes]:
    """Runs ``argv`` on a pseudo-terminal: its exit code, what was published, and what was shown."""
    batches: list[LineBatch] = []
    out, err = io.BytesIO(), io.BytesIO()
    capture = Capture({"stdout": Tee(out), "stderr": Tee(err)}, batches.append)
    code = run_command(argv, capture, Tee(err).say, SignalForwarder(), pty=pty)
    assert not err.getvalue() or code in (126, 127)
    published = [(batch.stream, message) for batch in batches for message in map(bytes.decode, batch.messages())]
    return code, published, out.getvalue()


def on_terminal(code: str, keys: str = "", change: str = "") -> tuple[int, bytes]:
    """Runs Python code on a pseudo-terminal, with a runner on a terminal: its exit code and everything shown."""
    job = [sys.executable, "-uc", code]
    command = [sys.executable, "-c", TERMINAL, keys, change, "-c", DRIVER, *job]
    done = subprocess.run(command, stdout=subprocess.PIPE, timeout=30, check=False)
    return done.returncode, done.stdout


def test_the_command_has_a_terminal_and_one_stream() -> None:
    """Both outputs are one ordered stream, read to its end. If the runner has no terminal, lines end as in a file."""
    script = "test -t 1 && test -t 2 && echo one; echo two >&2; tty >/dev/tty 2>&1; seq 20000; exit 3"
    code, lines, shown = execute("sh", "-c", script + " </dev/tty")
    assert code == 3
    assert lines[:2] == [("stdout", "one"), ("stdout", "two")]
    assert lines[-20_000:] == [("stdout", str(number)) for number in range(1, 20_001)]
    assert shown.startswith(b"one\ntwo\n")
    for script, code in (("kill -TERM $$", 143), ("kill -KILL $$", 137)):
        assert execute("sh", "-c", script)[0] == code


@pytest.mark.long
def test_a_grandchild_does_not_delay_the_end() -> None:
    """It keeps the terminal open and ignores SIGHUP."""
    started = time.monotonic()
    assert execute("sh", "-c", "trap '' HUP; sleep 30 & exit 0")[0] == 0
    assert time.monotonic() - started < 20


def open_descriptors() -> Counter[str]:
    """Counts this process's descriptors by target, without its number: ``pipe:[4711]`` is counted as ``pipe:``."""
    time.sleep(0.05)  # gevent closes descriptors only in the next iteration of its event loop
    targets: Counter[str] = Counter()
    for name in os.listdir("/dev/fd"):
        with contextlib.suppress(OSError):  # The listing's own descriptor is closed again.
            target = os.readlink(f"/dev/fd/{name}")
            # gevent opens event loops when a thread first needs one.
            if target not in ("anon_inode:[eventpoll]", "anon_inode:[eventfd]"):
                targets[target if target.startswith("anon_inode:") else target.partition("[")[0]] += 1
    return targets


@pytest.mark.parametrize("pty", [True, False])
def test_no_descriptor_is_left_open(pty: bool) -> None:
    """Also if the command cannot be started."""
    execute("true", pty=pty)
    before = open_descriptors()
    for _ in range(5):
        execute("true", pty=pty)
        code, lines, _ = execute("no-such-command-here", pty=pty)
        assert (code, lines) == (127, [("stderr", "chronoverse: no-such-command-here: command not found")])
    assert not open_descriptors() - before


def test_what_is_typed_reaches_the_command_and_is_echoed_once() -> None:
    """The command's terminal echoes it, since ours is raw. Ours is restored: its lines end as before."""
    code, seen = on_terminal("print('ready'); print('you said', input())", "blue\\r")
    assert code == 0
    assert seen.split(b"published")[0] == b"ready\r\nblue\r\nyou said blue\r\n"
    assert seen.endswith(b"published ['ready', 'blue', 'you said blue'] []\r\n")


def test_the_commands_terminal_has_our_window_size() -> None:
    """At the start and after a change."""
    code = """
import os, signal, sys, time
size = os.get_terminal_size
signal.signal(signal.SIGWINCH, lambda *_: sys.exit(print('now', *size())))
print('was', *size()); print('ready'); time.sleep(10)
"""
    assert b"was 101 33" in on_terminal(code, change="resize")[1]
    assert b"now 55 44" in on_terminal(code, change="resize")[1]


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
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 143
    assert time.monotonic() - began < 10


@pytest.mark.parametrize(
    ("code", "keys", "exits", "shown"),
    [
        # If the command dies of Ctrl-C, the job is CANCELED. Other keys may have been typed before.
        ("print('ready'); time.sleep(60)", "x\\x03", 130, " [2]\r\n"),
        ("signal.signal(2, lambda *_: exit(5)); print('ready'); time.sleep(60)", "\\x03", 5, " []\r\n"),
        # Nobody could continue a stopped command, so it reads Ctrl-Z as a byte.
        ("print('ready'); print(ascii(input()))", "\\x1a\\r", 0, r"'\x1a'"),
        ("print('ready'); time.sleep(0.5); print('x' * 50_000); print('done')", "y" * 3_000 + "\\r", 0, "'done'"),
        # A SIGHUP. The settings of a closed terminal cannot be restored.
        ("print('ready'); time.sleep(60)", "close", 129, "ready\r\n"),
    ],
    ids=["dies of Ctrl-C", "catches Ctrl-C", "Ctrl-Z", "much that nobody reads", "closed"],
)
def test_what_is_typed_goes_to_the_command(code: str, keys: str, exits: int, shown: str) -> None:
    change = "close" if keys == "close" else ""
    found, seen = on_terminal(f"import signal, time; {code}", keys, change)
    assert (found, shown in seen.decode()) == (exits, True)


def test_all_that_is_pasted_reaches_a_slow_command() -> None:
    pasted = subprocess.run([sys.executable, "-c", PASTE], input=bytes(200_000), capture_output=True, timeout=60)
    assert (pasted.stdout, pasted.returncode) == (b"0\n", 0)
