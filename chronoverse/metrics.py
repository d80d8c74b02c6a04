"""All Prometheus metrics: names, labels and units.

With several workers, prometheus_client keeps the values in files in ``PROMETHEUS_MULTIPROC_DIR``, so that ``/metrics``
of any worker covers all workers. The variable must be set before this module is imported. ``docs/operations.md``
describes each metric and when to act on it.
"""

import glob
import os
from collections.abc import Iterable, Mapping
from functools import partial
from typing import Final

from prometheus_client import (
    REGISTRY,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    Metric,
    generate_latest,
    multiprocess,
    values,
)
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

#: The process names of the programs that the service starts, by command.
SUPERVISED: Final = {"archive": "archiver", "notify": "notifier"}

#: Set by :func:`name_process`. Module state, as prometheus_client's metrics are.
_process_name = ""


def name_process(name: str) -> None:
    """Reuses the metric files of the previous process with this ``name``, which must have ended.

    The counters continue from their old values. Without names, every process would leave its files behind forever.
    """
    global _process_name
    _process_name = name


def drop_process(name: str) -> None:
    """Removes the gauges of a process that has ended. Keeps the process's counters."""
    multiprocess.mark_process_dead(name)


# prometheus_client has no public attribute for whether it uses files, hence ``_multiprocess``. The class must be
# replaced before the first metric is created, because a metric keeps the class with which it was created.
if values.ValueClass._multiprocess:
    values.ValueClass = values.MultiProcessValue(lambda: _process_name or os.getpid())

#: Gauges that report the sum, the maximum or the newest value of all processes.
_summed = partial(Gauge, multiprocess_mode="livesum")
_largest = partial(Gauge, multiprocess_mode="livemax")
_newest = partial(Gauge, multiprocess_mode="livemostrecent")

WORKERS = _summed("chronoverse_workers", "Live workers, draining ones included.")
WORKERS_DRAINING = _summed("chronoverse_workers_draining", "Draining workers.")

STREAMS_OPEN = _summed("chronoverse_streams_open", "Open event streams.")
STREAMS_LIMIT = _summed("chronoverse_streams_limit", "Maximum of open event streams, over all workers.")
STREAMS_STARTED = Counter("chronoverse_streams_started", "Event streams started.")
STREAMS_ENDED = Counter("chronoverse_streams_ended", "Event streams ended, by reason.", ["reason"])
STREAMS_REFUSED = Counter("chronoverse_streams_refused", "Event streams refused, by reason.", ["reason"])
REQUESTS_REFUSED = Counter("chronoverse_requests_refused", "Requests refused, by status.", ["status"])
CONNECTIONS_CUT = Counter("chronoverse_connections_cut", "Connections cut, by reason.", ["reason"])

LINES_DELIVERED = Counter("chronoverse_lines_delivered", "Lines handed to viewers, before their stream filters.")
CHANGES_DELIVERED = Counter("chronoverse_changes_delivered", "Changes of jobs handed to viewers, before their filters.")
BYTES_DELIVERED = Counter("chronoverse_bytes_delivered", "Bytes of the frames of delivered lines and changes.")
DELIVERY_DELAY = Histogram(
    "chronoverse_delivery_delay_seconds",
    "Time from a line's timestamp to its write to all waiting viewers, once per batch.",
    # Timestamps have milliseconds, so smaller bounds than 5 ms would not be exact.
    buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30),
)
REPLAY_READS = Counter("chronoverse_replay_reads", "Reads of the store for replays.")
REPLAY_RESTS = Counter("chronoverse_replay_rest_seconds", "Pauses of throttled replays.")
VIEWERS_BEHIND = _summed("chronoverse_viewers_behind", "Viewers of live jobs that replay.")
JOBS_WATCHED = _summed("chronoverse_jobs_watched", "Jobs, and workflows' changes, read live, summed over workers.")
TAIL_SILENCE = _largest(
    "chronoverse_tail_silence_seconds", "Time since the store last answered live reading; the longest."
)

PUBLISH_ANSWERS = Counter("chronoverse_publish_answers", "Answers to runners over HTTP.", ["operation", "answer"])
LINES_APPENDED = Counter("chronoverse_lines_appended", "Lines appended over HTTP.")
STORE_ERRORS = Counter("chronoverse_store_errors", "Failed calls of the store.", ["during", "kind"])

STORE_AWAY = _largest("chronoverse_store_away", "1 while the store did not answer the last check.")
STORE_MAY_EVICT = _largest("chronoverse_store_may_evict", "1 while the store's maxmemory-policy is not noeviction.")
STORE_EVICTED = _largest("chronoverse_store_evicted_keys", "Keys evicted since the store started.")
STORE_DENIED = _largest("chronoverse_store_denied", "ACL denials of any user since the store started.")

KEYS_AGE = _newest(
    "chronoverse_issuer_keys_age_seconds",
    "Age of the oldest issuer's public keys: +Inf without keys, 0 without an issuer.",
)
WORKFLOWS_MAP_INVALID = _newest(
    "chronoverse_workflows_map_invalid", "1 while CHRONOVERSE_JWT_WORKFLOWS_MAP or CHRONOVERSE_TRUST_FILE is invalid."
)
SCANS_UP = _newest("chronoverse_scans_up", "1 while the scan server runs.")

ARCHIVE_CONFIGURED = _largest("chronoverse_archive_configured", "1 if this service has an archive.")
ARCHIVER_LAST_STEP = _largest(
    "chronoverse_archiver_last_step_timestamp_seconds", "Unix time at which an archiver last began a step."
)
STORE_WENT_BACK = _largest("chronoverse_archive_store_went_back", "1 if the store lost data.")
BUCKET_LOST = _largest("chronoverse_archive_bucket_lost", "1 if the archive was emptied, or belongs to another store.")
ARCHIVE_DAMAGED = Counter("chronoverse_archive_damaged_reads", "Reads whose archived object is missing or damaged.")
CHUNKS_ARCHIVED = Counter("chronoverse_archive_chunks", "Chunks archived.")
LINES_ARCHIVED = Counter("chronoverse_archive_lines", "Lines archived.")
BYTES_ARCHIVED = Counter(
    "chronoverse_archive_bytes", "Bytes archived, by form: text as JSON Lines, packed as compressed.", ["form"]
)
JOBS_ARCHIVED = Counter("chronoverse_archive_jobs", "Jobs archived as a whole, or deleted.", ["done"])
ARCHIVE_ERRORS = Counter("chronoverse_archive_errors", "Failed steps of archivers.", ["kind"])
ARCHIVE_LAG = _largest(
    "chronoverse_archive_lag_seconds",
    "Age of the oldest job that waits to be archived, or of the oldest due lines of a running job.",
)
ARCHIVE_WAITING = _largest(
    "chronoverse_archive_waiting_jobs", "Jobs that wait to be archived, including running jobs with due lines."
)
HOT_BYTES_LARGEST = _largest("chronoverse_archive_largest_log_bytes", "Largest log of a running job in the store.")

WEBHOOKS_CONFIGURED = _largest("chronoverse_webhooks_configured", "1 if CHRONOVERSE_WEBHOOK_HOSTS is set.")
NOTIFY_LAST_STEP = _largest(
    "chronoverse_notify_last_step_timestamp_seconds", "Unix time at which `chronoverse notify` last read the changes."
)
NOTIFY_DELIVERIES = Counter("chronoverse_notify_deliveries", "Deliveries for watches, by outcome.", ["outcome"])
NOTIFY_LATE = Counter(
    "chronoverse_notify_late", "Messages about ends whose changes were gone before a notifier read them."
)
NOTIFY_WAITING = _newest("chronoverse_notify_waiting", "Messages that wait for delivery.")
NOTIFY_FAILING = _newest("chronoverse_notify_failing_watches", "Watches without a successful delivery for a day.")
NOTIFY_LAG = _largest("chronoverse_notify_lag_seconds", "Age of the oldest waiting message, except of failing watches.")


class _WorkflowBytes(Collector):
    """The 20 largest of ``sizes``. Not a Gauge, whose files would keep workflows that are no longer among these."""

    sizes: Mapping[str, int] = {}

    def collect(self) -> Iterable[Metric]:
        text = "Bytes of messages stored today (UTC) by the 20 largest workflows with a quota."
        family = GaugeMetricFamily("chronoverse_workflow_bytes_today", text, labels=["workflow"])
        for workflow_id in sorted(self.sizes, key=self.sizes.__getitem__, reverse=True)[:20]:
            family.add_metric([workflow_id], self.sizes[workflow_id])
        yield family


#: Each worker reads the sizes from the store, so any worker can report them.
WORKFLOW_BYTES: Final = _WorkflowBytes()
REGISTRY.register(WORKFLOW_BYTES)


def exposition() -> bytes:
    """All metrics of all workers, in Prometheus's text format."""
    if not values.ValueClass._multiprocess:
        return generate_latest()
    registry = CollectorRegistry()
    registry.register(_FileCollector())
    registry.register(WORKFLOW_BYTES)
    return generate_latest(registry)


class _PrefixCollector(Collector):
    """Collects the process's own metrics (CPU, memory), and metrics whose names begin with a prefix."""

    def __init__(self, prefix: str) -> None:
        self._names = (prefix, "python_", "process_")

    def collect(self) -> Iterable[Metric]:
        return (each for each in REGISTRY.collect() if each.name.startswith(self._names))


def registry_of(prefix: str, *others: Collector) -> CollectorRegistry:
    """The metrics of a separate process such as an archiver: metrics that begin with ``prefix``, and ``others``."""
    registry = CollectorRegistry()
    for each in (_PrefixCollector(prefix), *others):
        registry.register(each)
    return registry


class _FileCollector(Collector):
    """Collects the values from all processes' files."""

    def collect(self) -> Iterable[Metric]:
        collector = multiprocess.MultiProcessCollector(None)
        # Omits the files of starting workers, which are empty. The collector has no public attribute for its directory.
        files = [path for path in glob.glob(f"{glob.escape(collector._path)}/*.db") if _size(path)]
        found: Iterable[Metric] = collector.merge(files)
        return found


def _size(path: str) -> int:
    try:
        return os.stat(path).st_size
    except FileNotFoundError:
        return 0
