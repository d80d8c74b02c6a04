"""The end of a process that a test has started."""

import contextlib
import subprocess
from pathlib import Path
from typing import Any


def stop_process(process: "subprocess.Popen[Any]", seconds: float) -> None:
    """Ends a process with SIGTERM, or with SIGKILL if it takes more than ``seconds``.

    It has ended in any case, also when the test's own time is over meanwhile, which pytest-timeout raises here.
    """
    process.terminate()
    try:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(seconds)
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


def processor_time(pid: int) -> int:
    """Nanoseconds that the main thread of a process has run."""
    return int(Path(f"/proc/{pid}/schedstat").read_text("ascii").split()[0])
