"""The shipped gunicorn settings, for a worker in which a test can crash the tail's threads.

The test creates the file ``kill-tail-reader`` or ``kill-tail-housekeeper`` in the directory that the environment
variable ``CRASH_DIRECTORY`` names. The thread removes the file and ends with SystemExit, as by an unexpected error.
"""

import os
import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

_ROOT = Path(__file__).resolve().parents[2]
globals().update(runpy.run_path(str(_ROOT / "gunicorn.conf.py")))

_shipped_init: Callable[[Any], None] = globals()["post_worker_init"]


def _crash_on_request(step: Callable[[], Any], request: Path) -> Callable[[], Any]:
    def wrapped() -> Any:
        if request.exists():
            request.unlink()
            raise SystemExit
        return step()

    return wrapped


def post_worker_init(worker: Any) -> None:
    """Runs the shipped hook. Then prepares both threads of the tail to crash when a test asks for it."""
    _shipped_init(worker)
    tail, directory = worker.wsgi.extensions["chronoverse"].tail, Path(os.environ["CRASH_DIRECTORY"])
    tail.read_once = _crash_on_request(tail.read_once, directory / "kill-tail-reader")
    tail.housekeep_once = _crash_on_request(tail.housekeep_once, directory / "kill-tail-housekeeper")
