"""A supervised child process."""

import contextlib
import itertools
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, Final

import pytest

from chronoverse.embedded.supervised_process import SupervisedProcess
from tests.support.service import is_alive
from tests.support.waiting import wait_until

PATIENCE_SECONDS: Final = 20.0
#: Ignores SIGTERM, and writes its process id and that of its child to a file.
BEGIN: Final = """
import os, signal, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
child = os.fork() or time.sleep(600)
with open(sys.argv[1] + ".new", "w") as file:
    print(os.getpid(), child, file=file)
os.rename(sys.argv[1] + ".new", sys.argv[1])
"""
READ: Final = "while os.read(0, 1): pass"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where the program writes the process ids."""
    return tmp_path / "pids"


@contextlib.contextmanager
def supervising(path: Path, code: str, dead: list[int] | None = None, **options: Any) -> Iterator[None]:
    """Runs :data:`BEGIN` and ``code`` meanwhile. ``dead`` gets the ids of programs that have died."""
    argv = [sys.executable, "-c", BEGIN + code, str(path)]
    deaths = [] if dead is None else dead
    program = SupervisedProcess(argv, os.environ, lambda pid, _: deaths.append(pid), stop_seconds=0.1, **options)
    program.start()
    try:
        yield
    finally:
        program.stop()


def take(path: Path) -> list[int]:
    """The process ids that the program has written."""
    wait_until(path.exists, PATIENCE_SECONDS, "the program runs")
    found = [int(each) for each in path.read_text().split()]
    path.unlink()
    return found


def await_end(pids: list[int]) -> None:
    wait_until(lambda: not any(map(is_alive, pids)), PATIENCE_SECONDS, "all processes of the group are gone")


def test_the_program_does_not_keep_our_listening_sockets_open(path: Path) -> None:
    """gunicorn's listening sockets are inheritable. Once we close ours, the port must be closed."""
    with contextlib.ExitStack() as stack:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            listener.set_inheritable(True)
            stack.enter_context(supervising(path, READ))
            take(path)
            address = listener.getsockname()
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(address, PATIENCE_SECONDS)


def test_the_program_gets_the_file_as_descriptor_3(path: Path, tmp_path: Path) -> None:
    with (tmp_path / "file").open("wb") as file, supervising(path, f"os.write(3, b'x')\n{READ}", file=file.fileno()):
        wait_until((tmp_path / "file").read_bytes, PATIENCE_SECONDS, "the program has written to it")


def test_a_program_that_hangs_is_killed_with_its_group_and_restarted(path: Path) -> None:
    """It has read once, and then no more."""
    dead: list[int] = []
    reports: list[bool] = []
    hangs = "os.read(0, 1); time.sleep(600)"
    with supervising(path, hangs, dead, answer_seconds=0.2, report=reports.append):
        first = take(path)
        assert take(path) != first
        await_end(first)
    assert dead[0] == first[0]
    assert False in reports


def test_a_program_that_starts_slowly_is_not_killed(path: Path) -> None:
    """On a busy machine, imports take longer than an answer. The same after a restart."""
    dead: list[int] = []
    reports: list[bool] = []
    slow = f"time.sleep(1.5)\n{READ}"
    with supervising(path, slow, dead, answer_seconds=0.2, report=reports.append):
        for deaths in ([], take(path)[:1]):
            for pid in deaths:
                os.killpg(pid, signal.SIGKILL)
                wait_until(lambda: dead, PATIENCE_SECONDS, "its death is noticed")
                assert not reports[-1]
                reports.clear()
            wait_until(lambda: True in reports or len(dead) > 1, PATIENCE_SECONDS, "it has answered")
            assert (reports[0], dead) == (True, deaths)


@pytest.mark.parametrize(("ran", "pauses"), [(0, [1, 2]), (61, [1, 1])])
def test_a_restart_waits_longer_each_time_unless_the_program_ran_long(
    tmp_path: Path, ran: float, pauses: list[float]
) -> None:
    """``ran``: seconds by the program's clock. The first restart fails, because the interpreter is missing."""
    found: list[float] = []
    pids: list[int] = []
    link = tmp_path / "python"

    def note(pid: int, pause: float) -> None:
        found.append(pause)
        pids.append(pid)
        link.unlink(missing_ok=True)
        if len(found) > 1:
            link.symlink_to(sys.executable)

    link.symlink_to(sys.executable)
    clock = partial(next, itertools.count(step=ran))
    program = SupervisedProcess([str(link), "-S", "-c", ""], os.environ, note, clock=clock)
    program.start()
    wait_until(lambda: len(found) >= 3, PATIENCE_SECONDS, "it has ended twice")
    program.stop()
    assert found[:2] == pauses
    assert pids[2] != pids[0]


def test_stopping_a_program_that_could_not_be_started_signals_nobody() -> None:
    """Neither this process nor its group: gunicorn calls ``stop`` at its exit."""
    code = """
from chronoverse.embedded.supervised_process import SupervisedProcess
program = SupervisedProcess(["/missing"], {}, print, stop_seconds=0.1)
try:
    program.start()
except OSError:
    program.stop()
"""
    assert subprocess.run([sys.executable, "-c", code], start_new_session=True, timeout=60, check=False).returncode == 0


def test_a_program_that_does_not_stop_is_killed_with_its_group(path: Path) -> None:
    with supervising(path, READ):
        group = take(path)
    await_end(group)
