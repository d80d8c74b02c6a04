"""Stopping a test's processes."""

import contextlib
import subprocess
from typing import Any


def stop_process(process: "subprocess.Popen[Any]", seconds: float) -> None:
    """Ends a process with SIGTERM, or with SIGKILL after ``seconds``.

    Also ends it if pytest-timeout raises meanwhile because the test's time is over.
    """
    process.terminate()
    try:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(seconds)
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
