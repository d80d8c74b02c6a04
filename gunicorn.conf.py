"""gunicorn's settings: gevent workers, tuned for streams that stay open. It patches before anything is imported."""

from gevent import monkey

monkey.patch_all()

import ctypes
import gc
import itertools
import os
import shutil
import sys
import tempfile
import threading
from functools import partial
from pathlib import Path
from typing import Any

import gevent

from chronoverse.cli.serve import banner, command_name
from chronoverse.embedded import listeners
from chronoverse.embedded import server as embedded
from chronoverse.embedded.supervised_process import SupervisedProcess
from chronoverse.errors import EmbeddedError
from chronoverse.settings import Settings, child_environ
from chronoverse.store.server_checks import watch_evictions

_settings = Settings.from_env()

#: Streams beyond MAX_STREAMS are refused; these stay free above it so that /healthz always answers.
SPARE_CONNECTIONS = 200
#: Seconds between looks at whether the worker was told to go: gunicorn has no hook for it.
POLL_SECONDS = 0.2
#: Objects made before Python looks for garbage: a request makes hundreds, nearly all gone by counting.
GC_THRESHOLD = 20_000

wsgi_app = "chronoverse.web.app:create_app()"
bind = _settings.bind
worker_class = "chronoverse.web.worker.Worker"
workers = _settings.web_concurrency
worker_connections = _settings.max_streams + SPARE_CONNECTIONS
# 0 would also switch off the bound on how slowly a request's head may arrive. nginx's own must be below it.
keepalive = 5
# Only a worker whose event loop hangs is killed; streams may live as long as they like.
timeout = 60
# Long after a worker that drains has gone.
graceful_timeout = _settings.drain_seconds + 20
# A request's head: bytes of its first line, number of headers, bytes of each. Tokens may have 8,192. All of it may have
# chronoverse.web.streaming.connection.HEAD_BYTES.
limit_request_line = 8190
limit_request_fields = 100
limit_request_field_size = 8190
# Counts a stream as one request, so anything above 0 would cut streams short.
max_requests = 0
control_socket_disable = True
worker_tmp_dir = "/dev/shm" if Path("/dev/shm").is_dir() else None
loglevel = _settings.log_level
logger_class = f"chronoverse.web.http.logging.{_settings.log_format.capitalize()}Logger"

#: Bytes from which a block of memory has a mapping of its own, which goes back to the system as soon as it is freed.
#: What a viewer is sent in one write is a little smaller.
OWN_MAPPING_BYTES = 256 * 2**10
#: Bytes at the heap's end that are kept for later when they are free.
KEPT_BYTES = 4 * 2**20


def _give_back_freed_memory() -> None:
    """Keeps glibc from raising these two thresholds by itself, to 32 MiB and more, once a large block was freed.

    Eight clients who asked for searches of long lines left a worker with 150 MB that nothing used, and with 18 MB after
    this. Workers inherit it. See https://man7.org/linux/man-pages/man3/mallopt.3.html, of which this uses
    M_MMAP_THRESHOLD and M_TRIM_THRESHOLD. Another C library has no such function.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(-3, OWN_MAPPING_BYTES)
        mallopt(-1, KEPT_BYTES)


_give_back_freed_memory()

#: How a directory begins that is made here for metrics, and removed at the end. A reload comes by here again.
MADE = "chronoverse-metrics-"
if not os.environ.get("PROMETHEUS_MULTIPROC_DIR"):
    os.environ["PROMETHEUS_MULTIPROC_DIR"] = tempfile.mkdtemp(prefix=MADE)

# Which looks for that directory when it is imported.
from chronoverse import metrics


def on_starting(server: Any) -> None:
    """Wipes the last run's metrics, and leases the embedded server for as long as the master lives."""
    for stale in Path(os.environ["PROMETHEUS_MULTIPROC_DIR"]).glob("*.db"):
        stale.unlink()
    if _settings.redis_url is None:
        server.chronoverse_hold = embedded.lease_server(_settings.data_dir)


def when_ready(server: Any) -> None:
    """Records where it serves, and tells a person what to type next. Starts the archiver of an embedded server."""
    address = str(server.LISTENERS[0])
    if _settings.has_local_secret:
        server.chronoverse_listeners = [listeners.record(_settings.data_dir, each.sock) for each in server.LISTENERS]
    if _settings.log_format == "json":
        server.log.info("chronoverse serves at %s", address)
    else:
        print(banner(_settings, address, command_name()), flush=True)
    if _settings.is_embedded and _settings.archive_location:
        argv = [sys.executable, "-m", "chronoverse", "archive", "--while-stdin"]
        environ = child_environ({"PYTHONPATH": str(Path(embedded.__file__).parents[2])})
        server.chronoverse_archiver = SupervisedProcess(argv, environ, partial(_archiver_died, server.log))
        server.chronoverse_archiver.start()


def _archiver_died(log: Any, pid: int, again: float) -> None:
    log.warning("the archiver (pid:%d) has ended, and starts again in %g s", pid, again)
    metrics.drop_process(metrics.SUPERVISED)


def pre_fork(server: Any, worker: Any) -> None:
    """Names the worker after one that is gone, in whose files it counts on; its gauges start afresh."""
    taken = {each.chronoverse_name for each in server.WORKERS.values()}
    worker.chronoverse_name = next(name for name in map("worker{}".format, itertools.count()) if name not in taken)
    metrics.drop_process(worker.chronoverse_name)


def post_fork(server: Any, worker: Any) -> None:
    """Before anything is counted."""
    metrics.name_process(worker.chronoverse_name)


def post_worker_init(worker: Any) -> None:
    """Ends the worker's streams when it is told to go; nothing in gunicorn would. Until then, minds its server."""
    # What there is now stays. Looking through it again and again took 8 % of the time to accept a crowd.
    gc.freeze()
    gc.set_threshold(GC_THRESHOLD)
    deps = worker.wsgi.extensions["chronoverse"]
    deps.proxies.trust(worker.cfg.forwarded_allow_ips)

    def mind() -> None:
        while worker.alive:
            gevent.sleep(POLL_SECONDS)
            if deps.server_lease:
                _ensure(deps.server_lease, worker.log)
        worker.log.info("going: %d streams end within %d s", len(deps.admission), deps.settings.drain_seconds)
        deps.admission.drain(deps.settings.drain_seconds)

    threading.Thread(target=mind, name="mind", daemon=True).start()
    # Each shows the metric, since any may be the last to live; one warns, and the first workers have one of this name.
    warn = worker.log.warning if worker.chronoverse_name == "worker0" else None
    threading.Thread(target=watch_evictions, args=(deps.store, warn), name="store-watch", daemon=True).start()


def _ensure(lease: embedded.ServerLease, log: Any) -> None:
    """Starts the embedded server again if it was killed together with its supervisor, which else restarts it."""
    try:
        lease.ensure()
    except EmbeddedError as error:
        log.error("%s", error)


def child_exit(server: Any, worker: Any) -> None:
    """Takes the dead worker's gauges out of the sums."""
    metrics.drop_process(worker.chronoverse_name)


def on_exit(server: Any) -> None:
    """Leaves nothing behind, but in a directory that the operator has named."""
    if archiver := getattr(server, "chronoverse_archiver", None):
        archiver.stop()
    if not server.reexec_pid:  # a master that has taken our place (SIGUSR2) has our sockets, and their files
        for path in filter(None, getattr(server, "chronoverse_listeners", ())):
            path.unlink(missing_ok=True)
    directory = Path(os.environ["PROMETHEUS_MULTIPROC_DIR"])
    if directory.name.startswith(MADE):
        shutil.rmtree(directory, ignore_errors=True)
