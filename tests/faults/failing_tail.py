"""The shipped gunicorn settings, for a worker in which a test can make the tail's threads fail.

The test creates the file ``fail-tail-reader`` or ``fail-tail-housekeeper`` in the directory that the environment
variable ``FAILURE_DIRECTORY`` names. The thread removes the file, and its step raises an unexpected error.
"""

import os
import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

_ROOT = Path(__file__).resolve().parents[2]
globals().update(runpy.run_path(str(_ROOT / "gunicorn.conf.py")))

_shipped_init: Callable[[Any], None] = globals()["post_worker_init"]


def _fail_on_request(step: Callable[[], Any], request: Path) -> Callable[[], Any]:
    def wrapped() -> Any:
        if request.exists():
            request.unlink()
            raise RuntimeError("the test asked for it")
        return step()

    return wrapped


def post_worker_init(worker: Any) -> None:
    """Runs the shipped hook. Then prepares both threads of the tail to fail when a test asks for it."""
    _shipped_init(worker)
    tail, directory = worker.wsgi.extensions["chronoverse"].tail, Path(os.environ["FAILURE_DIRECTORY"])
    tail.read_once = _fail_on_request(tail.read_once, directory / "fail-tail-reader")
    tail.housekeep_once = _fail_on_request(tail.housekeep_once, directory / "fail-tail-housekeeper")
