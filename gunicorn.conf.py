"""gunicorn's settings: gevent workers for streams that stay open. gevent must patch before anything else is imported."""

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

#: Connections in addition to MAX_STREAMS, so that /healthz answers while the worker is full of streams.
SPARE_CONNECTIONS = 200
#: Seconds between two checks whether the worker shall shut down. gunicorn has no hook for that.
POLL_SECONDS = 0.2
#: How many objects Python makes between two runs of its garbage collector. A request makes hundreds, and reference
#: counting frees nearly all of them.
GC_THRESHOLD = 20_000

wsgi_app = "chronoverse.web.app:create_app()"
bind = _settings.bind
worker_class = "chronoverse.web.worker.Worker"
workers = _settings.web_concurrency
worker_connections = _settings.max_streams + SPARE_CONNECTIONS
# 0 would also switch off the time limit for a request's head. nginx's own keepalive must be shorter.
keepalive = 5
# Only a worker whose event loop hangs is killed. It does not limit streams.
timeout = 60
# A worker that drains has ended long before.
graceful_timeout = _settings.drain_seconds + 20
# A request's head: bytes of its first line, number of headers, bytes of each. Tokens may have 8,192. The limit of the
# whole head is chronoverse.web.streaming.connection.HEAD_BYTES.
limit_request_line = 8190
limit_request_fields = 100
limit_request_field_size = 8190
# A stream counts as one request, so any other value would end streams early.
max_requests = 0
control_socket_disable = True
worker_tmp_dir = "/dev/shm" if Path("/dev/shm").is_dir() else None
loglevel = _settings.log_level
logger_class = f"chronoverse.web.http.logging.{_settings.log_format.capitalize()}Logger"

#: Bytes from which a block of memory gets a mapping of its own, which returns to the system as soon as it is freed.
#: One write to a viewer is a little smaller.
OWN_MAPPING_BYTES = 256 * 2**10
#: Unused bytes at the end of the heap that are not returned to the system.
HEAP_SPARE_BYTES = 4 * 2**20


def _give_back_freed_memory() -> None:
    """Prevents glibc from raising these two thresholds by itself, to 32 MiB and more, after a large block was freed.

    Eight clients who asked for searches of long lines left a worker with 150 MB that nothing used, and with 18 MB after
    this. Workers inherit it. See https://man7.org/linux/man-pages/man3/mallopt.3.html, of which this uses
    M_MMAP_THRESHOLD and M_TRIM_THRESHOLD. Another C library has no such function.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(-3, OWN_MAPPING_BYTES)
        mallopt(-1, HEAP_SPARE_BYTES)


_give_back_freed_memory()

#: The prefix of a metrics directory that is made here and removed at the end. After a reload this code runs again.
METRICS_PREFIX = "chronoverse-metrics-"
if not os.environ.get("PROMETHEUS_MULTIPROC_DIR"):
    os.environ["PROMETHEUS_MULTIPROC_DIR"] = tempfile.mkdtemp(prefix=METRICS_PREFIX)

# This module reads that variable when it is imported.
from chronoverse import metrics


def on_starting(server: Any) -> None:
    """Deletes the metrics of the last run, and leases the embedded server for as long as the master lives."""
    for stale in Path(os.environ["PROMETHEUS_MULTIPROC_DIR"]).glob("*.db"):
        stale.unlink()
    if _settings.redis_url is None:
        server.chronoverse_hold = embedded.lease_server(_settings.data_dir)


def when_ready(server: Any) -> None:
    """Records the listening sockets and prints the banner. With an embedded server, starts the archiver."""
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


def _archiver_died(log: Any, pid: int, delay: float) -> None:
    log.warning("the archiver (pid:%d) has ended, and starts again in %g s", pid, delay)
    metrics.drop_process(metrics.SUPERVISED)


def pre_fork(server: Any, worker: Any) -> None:
    """Gives the worker the name of one that has ended. It continues that one's counters, but not its gauges."""
    taken = {each.chronoverse_name for each in server.WORKERS.values()}
    worker.chronoverse_name = next(name for name in map("worker{}".format, itertools.count()) if name not in taken)
    metrics.drop_process(worker.chronoverse_name)


def post_fork(server: Any, worker: Any) -> None:
    """Names the process before anything is counted."""
    metrics.name_process(worker.chronoverse_name)


def post_worker_init(worker: Any) -> None:
    """Starts the threads of a worker: one drains its streams when it shuts down, which gunicorn does not do.

    Until then, that thread restarts the embedded server if necessary. The other one reports evictions of the store.
    """
    # The objects that exist now are permanent. Collecting among them took 8 % of the time to accept many viewers.
    gc.freeze()
    gc.set_threshold(GC_THRESHOLD)
    deps = worker.wsgi.extensions["chronoverse"]
    deps.proxies.trust(worker.cfg.forwarded_allow_ips)

    def drain_at_shutdown() -> None:
        while worker.alive:
            gevent.sleep(POLL_SECONDS)
            if deps.server_lease:
                _ensure(deps.server_lease, worker.log)
        worker.log.info("going: %d streams end within %d s", len(deps.admission), deps.settings.drain_seconds)
        deps.admission.drain(deps.settings.drain_seconds)

    threading.Thread(target=drain_at_shutdown, name="drain", daemon=True).start()
    # Every worker sets the metric, since any may be the last one. Only one warns; there is always one with this name.
    warn = worker.log.warning if worker.chronoverse_name == "worker0" else None
    threading.Thread(target=watch_evictions, args=(deps.store, warn), name="store-watch", daemon=True).start()


def _ensure(lease: embedded.ServerLease, log: Any) -> None:
    """Restarts the embedded server if it was killed together with its supervisor, which normally restarts it."""
    try:
        lease.ensure()
    except EmbeddedError as error:
        log.error("%s", error)


def child_exit(server: Any, worker: Any) -> None:
    """Removes the gauges of a worker that has ended from the sums."""
    metrics.drop_process(worker.chronoverse_name)


def on_exit(server: Any) -> None:
    """Stops the archiver and removes files, except in a metrics directory that the operator has named."""
    if archiver := getattr(server, "chronoverse_archiver", None):
        archiver.stop()
    if not server.reexec_pid:  # after SIGUSR2 another master has our sockets, and their files
        for path in filter(None, getattr(server, "chronoverse_listeners", ())):
            path.unlink(missing_ok=True)
    directory = Path(os.environ["PROMETHEUS_MULTIPROC_DIR"])
    if directory.name.startswith(METRICS_PREFIX):
        shutil.rmtree(directory, ignore_errors=True)
