"""gunicorn's settings, as we ship them, for a worker whose tail dies when it is told to.

Once a file ``kill-tail-reader`` or ``kill-tail-housekeeper`` is in the directory that ``MORTAL`` names, that thread
ends, as by an error that nobody foresaw; the file is then gone.
"""

import os
import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

_ROOT = Path(__file__).resolve().parents[2]
globals().update(runpy.run_path(str(_ROOT / "gunicorn.conf.py")))

_shipped_init: Callable[[Any], None] = globals()["post_worker_init"]


def _mortal(step: Callable[[], Any], order: Path) -> Callable[[], Any]:
    def wrapped() -> Any:
        if order.exists():
            order.unlink()
            raise SystemExit
        return step()

    return wrapped


def post_worker_init(worker: Any) -> None:
    """As shipped; then both threads of the tail become mortal."""
    _shipped_init(worker)
    tail, directory = worker.wsgi.extensions["chronoverse"].tail, Path(os.environ["MORTAL"])
    tail.read_once = _mortal(tail.read_once, directory / "kill-tail-reader")
    tail.housekeep_once = _mortal(tail.housekeep_once, directory / "kill-tail-housekeeper")
