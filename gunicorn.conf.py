"""gunicorn's settings: gevent workers, tuned for streams that stay open.

gunicorn runs this file in its master, and in it the hooks ``on_starting`` to ``on_exit``. gevent's patches come first,
before anything else is imported.
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
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import gevent

# redis-py imports OpenTelemetry's SDK where it is installed, for metrics that the service does not ask for. That is a
# tenth of the CPU time of a start. None makes the import fail, which redis-py allows for.
_modules: dict[str, Any] = sys.modules
_modules.setdefault("opentelemetry.sdk.metrics", None)

from chronoverse import __version__
from chronoverse.auth.jwks import keep_fresh
from chronoverse.cli.common import print_message
from chronoverse.cli.serve import banner, command_name, service_settings
from chronoverse.embedded import listeners, owned_directory
from chronoverse.embedded import server as embedded
from chronoverse.embedded.supervised_process import SupervisedProcess
from chronoverse.errors import EmbeddedError, SettingsError
from chronoverse.history.scans.endpoint import ScanEndpoint
from chronoverse.history.scans.server import scan_server_process
from chronoverse.settings import child_environ, reached_at, unknown_names
from chronoverse.store import Store
from chronoverse.store.server_checks import watch_servers

# Traces may need it.
if _modules["opentelemetry.sdk.metrics"] is None:
    del _modules["opentelemetry.sdk.metrics"]

try:
    _settings = service_settings(child_environ({}))
except SettingsError as error:
    # gunicorn would print a traceback, or listen first and then find that no worker starts.
    print_message(str(error))
    sys.exit(os.EX_CONFIG)

#: Connections above CHRONOVERSE_MAX_STREAMS. Streams over that limit are refused, so /healthz can always be answered.
SPARE_CONNECTIONS = 200
#: Seconds between two checks whether the worker must shut down. gunicorn has no hook for it.
POLL_SECONDS = 0.2
#: Objects that are made before Python searches for garbage. A request makes hundreds, nearly all of which reference
#: counting frees.
GC_THRESHOLD = 20_000

wsgi_app = "chronoverse.web.app:create_app()"
bind = _settings.bind
worker_class = "chronoverse.web.worker.Worker"
workers = _settings.web_concurrency
worker_connections = _settings.max_streams + SPARE_CONNECTIONS
# Seconds. 0 would also remove the limit on how slowly a request's head may come. nginx's keepalive must be shorter.
keepalive = 5
# Only a worker whose event loop hangs is killed. It is no limit for streams.
timeout = 60
# A draining worker has exited long before.
graceful_timeout = _settings.drain_seconds + 20
# A request's head: bytes of its first line, number of headers, and bytes of each header. A token may have 8,192 bytes.
# The limit for the whole head is chronoverse.web.guards.connection.HEAD_BYTES.
limit_request_line = 8190
limit_request_fields = 100
limit_request_field_size = 8190
# A restart after some number of requests would cut streams off.
max_requests = 0
control_socket_disable = True
worker_tmp_dir = "/dev/shm" if Path("/dev/shm").is_dir() else None
loglevel = _settings.log_level
logger_class = f"chronoverse.web.http.logging.{_settings.log_format.capitalize()}Logger"

#: A memory block of at least so many bytes has a mapping of its own, which is returned to the system when it is freed.
#: The bytes that a viewer is sent in one write are a little less.
OWN_MAPPING_BYTES = 256 * 2**10
#: Free bytes at the heap's end that are not returned to the system.
HEAP_RESERVE_BYTES = 4 * 2**20


def _return_freed_memory() -> None:
    """Has glibc return freed memory to the system.

    By default glibc raises these two thresholds to 32 MiB and more after a large block was freed. Eight clients that
    searched long lines then left a worker with 150 MB of unused memory. With fixed thresholds it was 18 MB. Workers
    inherit them. The parameters are M_MMAP_THRESHOLD and M_TRIM_THRESHOLD, see
    https://man7.org/linux/man-pages/man3/mallopt.3.html. Other C libraries have no such function.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(-3, OWN_MAPPING_BYTES)
        mallopt(-1, HEAP_RESERVE_BYTES)


_return_freed_memory()

#: How the name of a metrics directory begins that was made here. It is removed at the end, or by the next service when
#: this one is killed. After a reload this file runs again, and finds the directory in the environment.
METRICS_PREFIX = "chronoverse-metrics-"
if not os.environ.get("PROMETHEUS_MULTIPROC_DIR"):
    os.environ["PROMETHEUS_MULTIPROC_DIR"] = str(owned_directory.make(METRICS_PREFIX))
_metrics_directory = Path(os.environ["PROMETHEUS_MULTIPROC_DIR"])
#: Open as long as this service runs, so that no other one removes the directory.
_metrics_owner = (
    owned_directory.keep(_metrics_directory) if _metrics_directory.name.startswith(METRICS_PREFIX) else None
)

# Imported here, because it reads that variable when it is imported.
from chronoverse import metrics


def on_starting(server: Any) -> None:
    """Deletes the metrics of the last run, and takes a lease on the embedded server for as long as the master lives.

    Variables that look like settings and are none are named in the log. The service does not start when it is asked to
    speak TLS itself.
    """
    if server.cfg.is_ssl:
        print_message("the service does not speak TLS itself: put nginx in front of it, as deploy/nginx.conf does")
        sys.exit(os.EX_CONFIG)
    for sentence in unknown_names():
        server.log.warning("%s", sentence)
    for stale in _metrics_directory.glob("*.db"):
        stale.unlink()
    if _settings.redis_url is None:
        server.chronoverse_lease = embedded.ServerLease(_settings.data_dir)
    # The workers, its forks, share what it has imported.
    import chronoverse.web.app  # noqa: F401


def when_ready(server: Any) -> None:
    """Records the addresses for local clients, prints the banner, and starts the processes beside the workers.

    These are the scan server, and with an embedded server an archiver, and a notifier where watches are allowed.
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
        # Links in messages begin with the URL.
        url = _settings.url or (reached_at(address) if address.startswith("http") else "")
        environ = child_environ({"PYTHONPATH": str(Path(embedded.__file__).parents[2]), "CHRONOVERSE_URL": url})
        process = SupervisedProcess(argv, environ, partial(_other_died, server.log, command))
        server.chronoverse_others.append(process)
        process.start()


def _start_scan_server(server: Any) -> None:
    died = partial(server.log.warning, "the scan server (pid:%d) has ended or stood still, and starts again in %g s")
    url = _settings.redis_url or server.chronoverse_lease.url
    server.chronoverse_scans = scan_server_process(server.chronoverse_scans_endpoint, _settings, url, died)
    server.chronoverse_scans.start()


def on_reload(server: Any) -> None:
    """Starts the scan server again too, with the program and the environment of now. New scans wait meanwhile."""
    server.chronoverse_scans.stop()
    _start_scan_server(server)


def _other_died(log: Any, command: str, pid: int, again: float) -> None:
    name = metrics.SUPERVISED[command]
    log.warning("the %s (pid:%d) has ended or hung; restarting in %g s", name, pid, again)
    metrics.drop_process(name)


def pre_fork(server: Any, worker: Any) -> None:
    """Gives the worker the name of one that has exited. It goes on with that one's counters, and with new gauges."""
    taken = {each.chronoverse_name for each in server.WORKERS.values()}
    worker.chronoverse_name = next(name for name in map("worker{}".format, itertools.count()) if name not in taken)
    metrics.drop_process(worker.chronoverse_name)


def post_fork(server: Any, worker: Any) -> None:
    """Names the process for the metrics, before anything is counted."""
    metrics.name_process(worker.chronoverse_name)
    worker.chronoverse_scans_endpoint = server.chronoverse_scans_endpoint


def post_worker_init(worker: Any) -> None:
    """Starts the worker's threads: one drains its streams when it must shut down, one watches the store.

    The first worker also keeps the issuer's keys fresh.
    """
    # What exists now stays. Without this, garbage collection took 8 % of the time to accept many viewers at once.
    gc.freeze()
    gc.set_threshold(GC_THRESHOLD)
    deps = worker.wsgi.extensions["chronoverse"]
    deps.proxies.trust(worker.cfg.forwarded_allow_ips)
    deps.scans.connect_to(worker.chronoverse_scans_endpoint)

    def watch_worker() -> None:
        """Checks the embedded server until the worker must shut down, and then drains the streams."""
        while worker.alive:
            gevent.sleep(POLL_SECONDS)
            if deps.server_lease:
                _restart_dead_server(deps.server_lease, worker.log)
        worker.log.info("going: %d streams end within %d s", len(deps.admission), deps.settings.drain_seconds)
        deps.admission.drain(deps.settings.drain_seconds)

    threading.Thread(target=watch_worker, name="worker-watchdog", daemon=True).start()
    # Each worker sets the metrics, because any of them may be the last one. Only one warns. There is always a worker0.
    warn = worker.log.warning if worker.chronoverse_name == "worker0" else None
    checks = (partial(_first_check, deps.store), partial(_server_infos, deps.store), warn)
    threading.Thread(target=watch_servers, args=checks, name="store-watch", daemon=True).start()
    if worker.chronoverse_name == "worker0" and (deps.verifier.published() or deps.verifier.trust):
        threading.Thread(target=keep_fresh, args=(deps.verifier.published,), name="issuer-keys", daemon=True).start()


def _set_bounds(store: Store) -> None:
    """Writes the quotas of the settings into the store, for the runners there."""

    def list_workflows() -> list[str]:
        return [workflow_id for _, workflow_id in store.workflows.page(None, 10_000)]

    store.catalog.set_common_bounds(_settings.max_job_bytes, _settings.max_workflow_bytes_per_day, list_workflows)


def _first_check(store: Store) -> list[str]:
    """Sets the quotas. Returns the store's warnings."""
    _set_bounds(store)
    return store.warnings()


def _server_infos(store: Store) -> list[dict[str, str]]:
    """What the servers say of themselves. Also reads the bytes of the 500 workflows with the newest jobs."""
    if store.catalog.common_bounds() is None:
        # The store was emptied. Otherwise they are those of the service that has started last.
        _set_bounds(store)
    workflow_ids = [workflow_id for _, workflow_id in store.workflows.page(None, 500)]
    metrics.WORKFLOW_BYTES.sizes = store.catalog.bytes_today(workflow_ids, int(time.time() // 86_400))
    return store.server_infos()


def _restart_dead_server(lease: embedded.ServerLease, log: Any) -> None:
    """Starts the embedded server and its supervisor again if both are dead. The supervisor restarts only the server."""
    try:
        lease.ensure()
    except EmbeddedError as error:
        log.error("%s", error)


def child_exit(server: Any, worker: Any) -> None:
    """Removes the gauges of the dead worker."""
    metrics.drop_process(worker.chronoverse_name)


def on_exit(server: Any) -> None:
    """Stops the other processes, and removes the files that were made here."""
    if scans := getattr(server, "chronoverse_scans", None):
        scans.stop()
    for process in getattr(server, "chronoverse_others", ()):
        process.stop()
    if not server.reexec_pid:  # After SIGUSR2 a new master has these sockets and files.
        for path in filter(None, getattr(server, "chronoverse_listeners", ())):
            path.unlink(missing_ok=True)
    if _metrics_owner is not None:
        shutil.rmtree(_metrics_directory, ignore_errors=True)
