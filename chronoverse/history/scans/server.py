"""The scan server: a gunicorn with low-priority processes, each of which handles one scan at a time."""

import contextlib
import gc
import os
import resource
import signal
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from functools import partial
from pathlib import Path
from typing import Any, Final

from gunicorn.app.base import BaseApplication

from chronoverse.embedded.supervised_process import SupervisedProcess, on_owner_end
from chronoverse.history.scans.app import ScanApp
from chronoverse.history.scans.endpoint import ScanEndpoint
from chronoverse.settings import Settings, child_environ

#: Added to a scanning process's nice value, and again to a scan's thread after 0.05 s of CPU time.
NICENESS: Final = 5
#: Address space of one process in bytes. A page takes far less, but a foreign runner can write lines of any length.
_MEMORY_BYTES: Final = 2**30
#: Settings of glibc. Its defaults reserve 64 MiB of address space per thread (see :data:`_MEMORY_BYTES`), and return
#: the memory of most frames to the system, which doubles the CPU time of a search.
MALLOC: Final = {
    "MALLOC_ARENA_MAX": "2",
    "MALLOC_MMAP_THRESHOLD_": str(4 * 2**20),
    "MALLOC_TRIM_THRESHOLD_": str(16 * 2**20),
}
#: Seconds after which a process is killed if it is still busy with one scan. A page takes one second.
HANG_SECONDS: Final = 15


def scan_server_process(
    endpoint: ScanEndpoint, settings: Settings, store_url: str, on_death: Callable[[int, float], None]
) -> SupervisedProcess:
    """The scan server at ``endpoint``. It gets the store's URL, so it never starts an embedded server."""
    changes = {
        "CHRONOVERSE_REDIS_URL": store_url,
        "CHRONOVERSE_ARCHIVE_URL": settings.archive_location or "none",
        "PYTHONPATH": str(Path(__file__).parents[2]),
        **MALLOC,
    }
    environ = child_environ(changes)
    # These are set for the service's gunicorn; the scan server's gunicorn and prometheus_client must not read them.
    for name in ("GUNICORN_PID", "GUNICORN_FD", "NOTIFY_SOCKET", "PROMETHEUS_MULTIPROC_DIR"):
        environ.pop(name, None)
    argv = [sys.executable, "-m", "chronoverse", "scans"]
    return SupervisedProcess(argv, environ, on_death, file=endpoint.listener.fileno(), report=endpoint.report)


class ScanServer(BaseApplication):
    """Serves the application of ``make_app`` in each process, on the socket inherited as fd 3, until stdin ends."""

    def __init__(self, make_app: Callable[[], ScanApp], *, workers: int, logger_class: str, log_level: str) -> None:
        self._settings: dict[str, Any] = {
            "bind": "fd://3",
            "umask": 0o077,
            "workers": min(max(workers, 2), 8),
            "timeout": HANG_SECONDS,
            "graceful_timeout": 3,
            "worker_tmp_dir": "/dev/shm" if Path("/dev/shm").is_dir() else None,
            "control_socket_disable": True,
            "logger_class": logger_class,
            "loglevel": log_level,
            "when_ready": _prepare_master,
            "post_worker_init": _lower_priority,
        }
        self._make_app = make_app
        super().__init__()

    # Part of gunicorn's interface.
    def load_config(self) -> None:
        for name, value in self._settings.items():
            self.cfg.set(name, value)

    def load(self) -> Callable[..., list[bytes]]:
        return partial(_answer_at_falling_priority, self._make_app())


def _answer_at_falling_priority(app: ScanApp, *request: Any) -> list[bytes]:
    """Runs ``app`` in a thread whose priority falls, so that short searches do not wait for long ones."""
    thread_ids: list[int] = []
    with ThreadPoolExecutor(1, initializer=lambda: thread_ids.append(threading.get_native_id())) as pool:
        began = time.process_time()
        scan = pool.submit(app, *request)
        while not wait([scan], timeout=0.02).done:
            if time.process_time() - began > 0.05:
                # A thread cannot raise its priority again, so each scan has its own thread.
                with contextlib.suppress(OSError):
                    os.setpriority(os.PRIO_PROCESS, thread_ids[0], os.getpriority(os.PRIO_PROCESS, 0) + NICENESS)
                break
        return scan.result()


def _prepare_master(server: Any) -> None:
    # gunicorn inherits its socket, as it would from systemd. Otherwise it would try to unlink the socket at exit.
    server.systemd = True
    on_owner_end(partial(os.kill, os.getpid(), signal.SIGTERM))
    # Keeps existing objects in memory shared with forks: the garbage collector would write to it.
    gc.freeze()


def _lower_priority(worker: Any) -> None:
    """Called in each process after it has started at normal priority. Also limits its memory."""
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_AS, (_MEMORY_BYTES, _MEMORY_BYTES))
    try:
        os.nice(NICENESS)
    except OSError as error:
        worker.log.warning("the priority of searches cannot be lowered: %s", error)
