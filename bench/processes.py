"""Servers started for a round. The kernel ends them when the benchmark ends."""

import contextlib
import ctypes
import os
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parents[1]
#: Time limit for a server's start, and for its stop, on a busy machine, in seconds.
START_SECONDS: Final = 30.0
#: ``prctl``'s number for the signal to a process whose parent dies.
PR_SET_PDEATHSIG: Final = 1

_libc = ctypes.CDLL(None)


class Failed(Exception): ...


def _die_with_parent() -> None:
    _libc.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def free_port() -> int:
    """An unused port of 127.0.0.1."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
        return port


def wait_until(condition: Callable[[], bool], what: str) -> None:
    """Raises :class:`Failed` after :data:`START_SECONDS`."""
    deadline = time.monotonic() + START_SECONDS
    while not condition():
        if time.monotonic() > deadline:
            raise Failed(what)
        time.sleep(0.02)


def listens(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        return True
    return False


@contextlib.contextmanager
def folder() -> Iterator[Path]:
    """A directory for one server's files. Its path is short enough for a Unix socket."""
    with tempfile.TemporaryDirectory(prefix="bench-", ignore_cleanup_errors=True) as name:
        yield Path(name)


@contextlib.contextmanager
def running(
    argv: Sequence[str],
    ready: Callable[[], bool],
    log: Path,
    environ: Mapping[str, str] | None = None,
    cwd: Path = ROOT,
) -> Iterator[int]:
    """Runs a server during the ``with`` block. Yields its process id once it is ``ready``. ``log`` gets its output."""
    inherited = {name: text for name, text in os.environ.items() if not name.startswith(("CHRONOVERSE_", "PYTHON"))}
    with log.open("ab") as out:
        process = subprocess.Popen(
            argv,
            cwd=cwd,
            env={**inherited, **(environ or {})},
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
            preexec_fn=_die_with_parent,
        )

    def settled() -> bool:
        if process.poll() is not None:
            raise Failed(f"{argv[0]} ended at once: {log.read_text(errors='replace')[-2000:]}")
        return ready()

    try:
        wait_until(settled, f"{' '.join(argv)} does not answer: {log.read_text(errors='replace')[-2000:]}")
        yield process.pid
    finally:
        process.terminate()
        try:
            process.wait(START_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
