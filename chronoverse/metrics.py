"""Every metric's name, labels and unit in one place. No logic but the exposition.

Under several workers prometheus_client keeps the values in files (``PROMETHEUS_MULTIPROC_DIR``, set before this is
imported), so that whichever worker answers ``/metrics`` tells of all of them.
"""

from prometheus_client import CollectorRegistry, Counter, Gauge, generate_latest, multiprocess, values

STREAMS_OPEN = Gauge("chronoverse_streams_open", "Event streams being served.", multiprocess_mode="livesum")
STREAMS_ENDED = Counter("chronoverse_streams_ended", "Event streams ended, by why.", ["reason"])
REQUESTS_REFUSED = Counter("chronoverse_requests_refused", "Requests refused, by status.", ["status"])
JOBS_WATCHED = Gauge("chronoverse_jobs_watched", "Jobs read live, summed over workers.", multiprocess_mode="livesum")


def exposition() -> bytes:
    """All metrics of all workers in Prometheus's text format."""
    if not values.ValueClass._multiprocess:
        return generate_latest()
    registry = CollectorRegistry()
    multiprocess.MultiProcessCollector(registry)
    return generate_latest(registry)
