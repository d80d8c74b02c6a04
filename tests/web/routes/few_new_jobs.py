"""The shipped gunicorn settings, with a limit per subject: log records start 20 jobs at once, then one per second."""

import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

_ROOT = Path(__file__).resolve().parents[3]
globals().update(runpy.run_path(str(_ROOT / "gunicorn.conf.py")))

_shipped_init: Callable[[Any], None] = globals()["post_worker_init"]


def post_worker_init(worker: Any) -> None:
    """Runs the shipped hook, then lowers the limits."""
    _shipped_init(worker)
    throttle = worker.wsgi.extensions["chronoverse"].new_job_throttle
    throttle.rate, throttle.burst_seconds = 1, 20
