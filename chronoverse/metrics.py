"""Every metric's name, labels and unit in one place. No logic but the exposition, and whose files are whose.

Under several workers prometheus_client keeps the values in files (``PROMETHEUS_MULTIPROC_DIR``, set before this is
imported), so that whichever worker answers ``/metrics`` tells of all of them. ``docs/operations.md`` says what to do
about each.
"""

import glob
import os
from collections.abc import Iterable
from typing import Final

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    Metric,
    generate_latest,
    multiprocess,
    values,
)
from prometheus_client.registry import Collector

#: What an archiver that runs beside the service is called.
SUPERVISED: Final = "archiver"

#: What this process is called in its files' names.
_name = ""


def name_process(name: str) -> None:
    """Has this process count on in the files of the last one of that ``name``, which must be gone.

    So a process that follows another takes its counters over: files are as many as processes at a time, sums never go
    back, and no scrape finds a value twice or not at all. Unnamed, each process would leave files of its own for ever.
    """
    global _name
    _name = name


def drop_process(name: str) -> None:
    """Takes the gauges of a process that is gone out of the sums; its counters stay."""
    multiprocess.mark_process_dead(name)


if values.ValueClass._multiprocess:
    # Before the first metric is made, which keeps the class that it finds.
    values.ValueClass = values.MultiProcessValue(lambda: _name or os.getpid())

#: Bounds of the delay's buckets, in seconds. Timestamps have milliseconds, so nothing below 5 ms could be told apart.
DELAY_BUCKETS: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)

WORKERS = Gauge("chronoverse_workers", "Workers that are up, those going down included.", multiprocess_mode="livesum")
WORKERS_DRAINING = Gauge(
    "chronoverse_workers_draining", "Workers that were told to go and still end streams.", multiprocess_mode="livesum"
)

STREAMS_OPEN = Gauge("chronoverse_streams_open", "Event streams being served.", multiprocess_mode="livesum")
STREAMS_LIMIT = Gauge(
    "chronoverse_streams_limit", "Event streams that all workers together may serve.", multiprocess_mode="livesum"
)
STREAMS_STARTED = Counter("chronoverse_streams_started", "Event streams begun.")
STREAMS_ENDED = Counter("chronoverse_streams_ended", "Event streams ended, by why.", ["reason"])
STREAMS_REFUSED = Counter(
    "chronoverse_streams_refused",
    "Event streams refused: worker full, draining, token's or address's share.",
    ["reason"],
)
REQUESTS_REFUSED = Counter("chronoverse_requests_refused", "Requests refused, by status.", ["status"])
CONNECTIONS_CUT = Counter(
    "chronoverse_connections_cut",
    "Connections that were cut: the client took too little, another one needed the room, or the token expired.",
    ["reason"],
)

LINES_DELIVERED = Counter(
    "chronoverse_lines_delivered", "Lines handed to viewers, those that their stream filter drops included."
)
BYTES_DELIVERED = Counter("chronoverse_bytes_delivered", "Bytes of the frames of delivered lines.")
DELIVERY_DELAY = Histogram(
    "chronoverse_delivery_delay_seconds",
    "From a line's timestamp until it was written to all viewers who waited, once per batch of a job's lines.",
    buckets=DELAY_BUCKETS,
)
REPLAY_READS = Counter("chronoverse_replay_reads", "Reads of the store made for one viewer alone.")
REPLAY_RESTS = Counter(
    "chronoverse_replay_rest_seconds", "For which replays rested to leave room for others, summed over all replays."
)
VIEWERS_BEHIND = Gauge(
    "chronoverse_viewers_behind", "Viewers of live jobs who read for themselves now.", multiprocess_mode="livesum"
)
JOBS_WATCHED = Gauge("chronoverse_jobs_watched", "Jobs read live, summed over workers.", multiprocess_mode="livesum")
TAIL_SILENCE = Gauge(
    "chronoverse_tail_silence_seconds",
    "Since the store last answered the live reading of watched jobs, in the worker that waits longest.",
    multiprocess_mode="livemax",
)

PUBLISH_ANSWERS = Counter(
    "chronoverse_publish_answers", "The store's answers to runners over HTTP.", ["operation", "answer"]
)
LINES_APPENDED = Counter("chronoverse_lines_appended", "Lines that runners have appended over HTTP.")
STORE_ERRORS = Counter("chronoverse_store_errors", "Calls of the store that failed.", ["during", "kind"])

STORE_EVICTED = Gauge(
    "chronoverse_store_evicted_keys",
    "Keys that the store has thrown away to make room since it started, which may have been logs.",
    multiprocess_mode="livemax",
)

CHUNKS_SEALED = Counter("chronoverse_archive_chunks", "Chunks that archivers have sealed.")
LINES_SEALED = Counter("chronoverse_archive_lines", "Numbers of lines in sealed chunks.")
BYTES_SEALED = Counter("chronoverse_archive_bytes", "Bytes of sealed chunks, as JSON Lines and as packed.", ["form"])
JOBS_ARCHIVED = Counter("chronoverse_archive_jobs", "Jobs that archivers have finished, by what they did.", ["done"])
ARCHIVE_ERRORS = Counter("chronoverse_archive_errors", "Steps of archivers that failed.", ["kind"])
ARCHIVE_LAG = Gauge(
    "chronoverse_archive_lag_seconds",
    "Since the end of the job that has waited longest to be archived whole.",
    multiprocess_mode="livemax",
)
ARCHIVE_WAITING = Gauge(
    "chronoverse_archive_waiting_jobs", "Ended jobs that an archiver knows to be archived.", multiprocess_mode="livemax"
)
HOT_BYTES_LARGEST = Gauge(
    "chronoverse_archive_largest_log_bytes",
    "What the largest log of a running job takes in the store.",
    multiprocess_mode="livemax",
)


def exposition() -> bytes:
    """All metrics of all workers in Prometheus's text format."""
    if not values.ValueClass._multiprocess:
        return generate_latest()
    registry = CollectorRegistry()
    registry.register(_Files())
    return generate_latest(registry)


class _Files(Collector):
    def collect(self) -> Iterable[Metric]:
        collector = multiprocess.MultiProcessCollector(None)
        # A worker that starts makes its files empty, and only then writes what a reader cannot do without.
        files = [path for path in glob.glob(f"{glob.escape(collector._path)}/*.db") if _size(path)]
        found: Iterable[Metric] = collector.merge(files)
        return found


def _size(path: str) -> int:
    try:
        return os.stat(path).st_size
    except FileNotFoundError:
        return 0
