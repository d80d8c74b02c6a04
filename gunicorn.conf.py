"""gunicorn's settings: gevent workers, tuned for streams that stay open.

gunicorn executes this file in its master, and calls the hooks ``on_starting`` to ``on_exit``. gevent's patches must
come before all other imports.
"""

from gevent import monkey

monkey.patch_all()

import ctypes
import gc
import itertools
import os
import shutil
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import gevent

from chronoverse.embedded import owned_directory

#: Prefix of a metrics directory made here. If this service is killed, the next one removes the directory.
#: After a reload, this file runs again, and finds the directory in the environment.
METRICS_PREFIX = "chronoverse-metrics-"
if not os.environ.get("PROMETHEUS_MULTIPROC_DIR"):
    os.environ["PROMETHEUS_MULTIPROC_DIR"] = str(owned_directory.make(METRICS_PREFIX))
_metrics_directory = Path(os.environ["PROMETHEUS_MULTIPROC_DIR"])
if not os.access(_metrics_directory, os.W_OK | os.X_OK) or not _metrics_directory.is_dir():
    print(f"chronoverse: PROMETHEUS_MULTIPROC_DIR must be a writable directory: {_metrics_directory}", file=sys.stderr)
    sys.exit(os.EX_CONFIG)
#: Kept open while this service runs, so that no other service removes the directory.
_metrics_owner = (
    owned_directory.keep(_metrics_directory) if _metrics_directory.name.startswith(METRICS_PREFIX) else None
)

# prometheus_client reads that variable when it is imported, and most of our modules import it.
from chronoverse import __version__, metrics
from chronoverse.auth.jwks import keep_fresh
from chronoverse.cli.common import print_message
from chronoverse.cli.serve import banner, command_name, service_settings
from chronoverse.embedded import listeners
from chronoverse.embedded import server as embedded
from chronoverse.embedded.supervised_process import SupervisedProcess
from chronoverse.errors import EmbeddedError, SettingsError
from chronoverse.history.scans.endpoint import ScanEndpoint
from chronoverse.history.scans.server import scan_server_process
from chronoverse.settings import child_environ, reached_at, unknown_names
from chronoverse.store import Store
from chronoverse.store.server_checks import watch_servers

try:
    _settings = service_settings(child_environ({}))
except SettingsError as error:
    # Otherwise gunicorn would print a traceback, or listen although no worker can start.
    print_message(str(error))
    sys.exit(os.EX_CONFIG)

#: Connections beyond CHRONOVERSE_MAX_STREAMS. Further streams are refused, so /healthz can always be answered.
SPARE_CONNECTIONS = 200
#: Seconds between two checks of whether the worker must shut down. gunicorn has no hook for that.
POLL_SECONDS = 0.2
#: Allocated objects before a garbage collection. A request allocates hundreds, and reference counting frees nearly all.
GC_THRESHOLD = 20_000

wsgi_app = "chronoverse.web.app:create_app()"
bind = _settings.bind
worker_class = "chronoverse.web.worker.Worker"
workers = _settings.web_concurrency
worker_connections = _settings.max_streams + SPARE_CONNECTIONS
# Seconds. 0 would also allow request headers to arrive arbitrarily slowly. nginx's keepalive must be shorter.
keepalive = 5
# Kills a worker only if its event loop hangs. Not a limit for streams.
timeout = 60
# A draining worker exits earlier.
graceful_timeout = _settings.drain_seconds + 20
# Bytes of the request line, number of headers, and bytes per header. A token may have 8,192 bytes.
# chronoverse.web.guards.connection limits the request line and headers together.
limit_request_line = 8190
limit_request_fields = 100
limit_request_field_size = 8190
# Restarting a worker after some number of requests would end its streams.
max_requests = 0
control_socket_disable = True
worker_tmp_dir = "/dev/shm" if Path("/dev/shm").is_dir() else None
loglevel = _settings.log_level
logger_class = f"chronoverse.web.http.logging.{_settings.log_format.capitalize()}Logger"

#: A memory block of at least this size gets its own mapping, which is returned to the system when it is freed. The
#: writes to a viewer are slightly smaller.
OWN_MAPPING_BYTES = 256 * 2**10
#: Free bytes at the end of the heap that are not returned to the system.
HEAP_RESERVE_BYTES = 4 * 2**20


def _return_freed_memory() -> None:
    """Makes glibc return freed memory to the system.

    By default, freeing a large block makes glibc raise M_MMAP_THRESHOLD and M_TRIM_THRESHOLD to 32 MiB and more. A
    worker then kept 150 MB of unused memory after eight clients had searched long lines; with fixed thresholds, 18 MB.
    Workers inherit the thresholds. Other C libraries do not have mallopt:
    https://man7.org/linux/man-pages/man3/mallopt.3.html.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(-3, OWN_MAPPING_BYTES)
        mallopt(-1, HEAP_RESERVE_BYTES)


_return_freed_memory()


def on_starting(server: Any) -> None:
    """Deletes the metrics of the last run. Takes a lease on the embedded server until the master ends.

    Logs unknown CHRONOVERSE variables. Exits if gunicorn is configured to use TLS.
    """
    # gunicorn has no hook that can refuse a reload.
    server.handle_hup = partial(_reload, server.log, server.handle_hup)
    if server.cfg.is_ssl:
        print_message("the service does not speak TLS itself: put nginx in front of it, as deploy/nginx.conf does")
        sys.exit(os.EX_CONFIG)
    for sentence in unknown_names():
        server.log.warning("%s", sentence)
    for stale in _metrics_directory.glob("*.db"):
        stale.unlink()
    if _settings.redis_url is None:
        server.chronoverse_lease = embedded.ServerLease(_settings.data_dir)
    # Imported in the master, so that workers share the memory.
    import chronoverse.web.app  # noqa: F401


def when_ready(server: Any) -> None:
    """Records the addresses for local clients, prints the banner, and starts the other processes.

    These are the scan server and, with an embedded server, an archiver and a notifier, if they are configured.
    """
    address = str(server.LISTENERS[0])
    if _settings.has_local_secret:
        server.chronoverse_listeners = [listeners.record(_settings.data_dir, each.sock) for each in server.LISTENERS]
    if _settings.log_format == "json":
        server.log.info("chronoverse %s serves at %s", __version__, address)
    else:
        print(banner(_settings, address, command_name()), flush=True)
    server.chronoverse_scans_endpoint = ScanEndpoint()
    _start_scan_server(server)
    server.chronoverse_others = []
    wanted = {
        "archive": _settings.archive_location,
        "notify": _settings.webhook_hosts and find_spec("chronoverse.cli.notify"),
    }
    for command in [name for name, is_wanted in wanted.items() if is_wanted and _settings.is_embedded]:
        argv = [sys.executable, "-m", "chronoverse", command, "--while-stdin"]
        # The base of links in messages.
        url = _settings.url or (reached_at(address) if address.startswith("http") else "")
        environ = child_environ({"PYTHONPATH": str(Path(embedded.__file__).parents[2]), "CHRONOVERSE_URL": url})
        process = SupervisedProcess(argv, environ, partial(_other_died, server.log, command))
        server.chronoverse_others.append(process)
        process.start()


def _start_scan_server(server: Any) -> None:
    died = partial(server.log.warning, "the scan server (pid:%d) has ended or hung; restarting in %g s")
    url = _settings.redis_url or server.chronoverse_lease.url
    server.chronoverse_scans = scan_server_process(server.chronoverse_scans_endpoint, _settings, url, died)
    server.chronoverse_scans.start()


def _reload(log: Any, reload: Callable[[], object]) -> None:
    """Reloads, unless that would end the service because a file that a setting names has become invalid."""
    try:
        service_settings(child_environ({}))
    except SettingsError as error:
        log.error("not reloaded: %s", error)
    else:
        reload()


def on_reload(server: Any) -> None:
    """Restarts the scan server with the current program and environment. New scans wait meanwhile."""
    server.chronoverse_scans.stop()
    _start_scan_server(server)


def _other_died(log: Any, command: str, pid: int, again: float) -> None:
    name = metrics.SUPERVISED[command]
    log.warning("the %s (pid:%d) has ended or hung; restarting in %g s", name, pid, again)
    metrics.drop_process(name)


def pre_fork(server: Any, worker: Any) -> None:
    """Gives the worker the name of an exited one. The new worker continues the old one's counters, with new gauges."""
    taken = {each.chronoverse_name for each in server.WORKERS.values()}
    worker.chronoverse_name = next(name for name in map("worker{}".format, itertools.count()) if name not in taken)
    metrics.drop_process(worker.chronoverse_name)


def post_fork(server: Any, worker: Any) -> None:
    """Passes the settings on. Names the process for the metrics, before it counts anything."""
    import chronoverse.web.app

    chronoverse.web.app.inherited = _settings
    metrics.name_process(worker.chronoverse_name)
    worker.chronoverse_scans_endpoint = server.chronoverse_scans_endpoint


def post_worker_init(worker: Any) -> None:
    """Starts the worker's threads: to drain its streams on shutdown, check the store, and refresh issuers' keys."""
    # These objects are permanent. Without this, garbage collection took 8 % of the time to accept many viewers at once.
    gc.freeze()
    gc.set_threshold(GC_THRESHOLD)
    deps = worker.wsgi.extensions["chronoverse"]
    deps.proxies.trust(worker.cfg.forwarded_allow_ips)
    deps.scans.connect_to(worker.chronoverse_scans_endpoint)

    def watch_worker() -> None:
        """Checks the embedded server until the worker must shut down, then drains the streams."""
        while worker.alive:
            gevent.sleep(POLL_SECONDS)
            if deps.server_lease:
                _restart_dead_server(deps.server_lease, worker.log)
        worker.log.info("shutting down: %d streams end within %d s", len(deps.admission), deps.settings.drain_seconds)
        deps.admission.drain(deps.settings.drain_seconds)

    threading.Thread(target=watch_worker, name="worker-watchdog", daemon=True).start()
    # Each worker sets the metrics, since it may be the last one alive. Only worker0, which always exists, warns.
    warn = worker.log.warning if worker.chronoverse_name == "worker0" else None
    checks = (partial(_first_check, deps.store), partial(_server_infos, deps.store), warn)
    threading.Thread(target=watch_servers, args=checks, name="store-watch", daemon=True).start()
    if deps.verifier.published() or deps.verifier.trust:
        threading.Thread(target=keep_fresh, args=(deps.verifier.published,), name="issuer-keys", daemon=True).start()


def _set_bounds(store: Store) -> None:
    """Writes the quotas of the settings into the store, where runners find them."""

    def list_workflows() -> list[str]:
        return [workflow_id for _, workflow_id in store.workflows.page(None, 10_000)]

    store.catalog.set_common_bounds(_settings.max_job_bytes, _settings.max_workflow_bytes_per_day, list_workflows)


def _first_check(store: Store) -> list[str]:
    """Sets the quotas. Returns the store's warnings."""
    _set_bounds(store)
    return store.warnings()


def _server_infos(store: Store) -> list[dict[str, str]]:
    """Returns the servers' INFO. Also reads the bytes of the 500 workflows with the newest jobs."""
    if store.catalog.common_bounds() is None:
        # The store was emptied. Otherwise it has the quotas of the service that started last.
        _set_bounds(store)
    workflow_ids = [workflow_id for _, workflow_id in store.workflows.page(None, 500)]
    metrics.WORKFLOW_BYTES.sizes = store.catalog.bytes_today(workflow_ids, int(time.time() // 86_400))
    return store.server_infos()


def _restart_dead_server(lease: embedded.ServerLease, log: Any) -> None:
    """Restarts the embedded server and its supervisor if both are dead. The supervisor only restarts the server."""
    try:
        lease.ensure()
    except EmbeddedError as error:
        log.error("%s", error)


def child_exit(server: Any, worker: Any) -> None:
    """Removes the gauges of the dead worker."""
    metrics.drop_process(worker.chronoverse_name)


def on_exit(server: Any) -> None:
    """Stops the other processes, and removes the files created here."""
    if scans := getattr(server, "chronoverse_scans", None):
        scans.stop()
    for process in getattr(server, "chronoverse_others", ()):
        process.stop()
    if not server.reexec_pid:  # After SIGUSR2, a new master uses these sockets and files.
        for path in filter(None, getattr(server, "chronoverse_listeners", ())):
            path.unlink(missing_ok=True)
    if _metrics_owner is not None:
        shutil.rmtree(_metrics_directory, ignore_errors=True)
    # The interpreter would scan all objects as it exits, which takes 0.2 s.
    gc.freeze()
