"""An import of many jobs: ``python -m bench.importing [--jobs 10000] [--lines 20] [--archive URL]``.

Writes and archives so many jobs of so many lines, empties the store, and imports them, twice. One in a hundred has not
ended. Prints the seconds of both imports, and the memory of the process before and at most. The archive is a new
directory, or what ``--archive`` names, such as a bucket (``s3://BUCKET/PREFIX``), which must be empty.
"""

import argparse
import resource
import tempfile
import threading
import time
from pathlib import Path
from typing import Final

import redis

from chronoverse.archive.archiver import Archiver
from chronoverse.archive.chunk_writer import write_chunk
from chronoverse.archive.importing import import_jobs
from chronoverse.archive.job_objects import JobObjects, archive_lock
from chronoverse.archive.object_store import ObjectStore
from chronoverse.archive.retention import RetentionPolicy
from chronoverse.archive.schemes import open_object_store
from chronoverse.embedded import server as embedded
from chronoverse.joblog.model import JobRef, Line, Status, iso_timestamp
from chronoverse.store import Store

#: One in this many jobs has not ended.
RUNNING_SHARE: Final = 100
#: Jobs that are written before the archiver runs.
ARCHIVED_AT_ONCE: Final = 500


def fill(store: Store, objects: ObjectStore, jobs: int, lines: int) -> None:
    """Writes and archives the jobs, a hundred of each workflow."""
    archiver = Archiver(store, objects, RetentionPolicy(2**24, 0, 86_400), stop=threading.Event())
    now = iso_timestamp(time.time())
    output = [Line(number, now, f"step {number} of the build", "stdout") for number in range(1, lines + 1)]
    for number in range(jobs):
        job = JobRef(f"wf_{number // 100}", f"job_{number}")
        attempt = store.open(job, "bench")
        store.append(attempt, output)
        if number % RUNNING_SHARE:
            store.finish(attempt, Status.COMPLETED, 0, 0, lines + 1)
        else:
            with archive_lock(store, job) as token:
                write_chunk(JobObjects(store, objects, job, token), store.catalog.archive_state(job), lines, trim=True)
        if number % ARCHIVED_AT_ONCE == 0:
            archiver.run_once()
    archiver.run_once()


def timed(store: Store, objects: ObjectStore) -> tuple[float, int]:
    """The seconds of an import, and how many jobs it has made."""
    began = time.perf_counter()
    made = sum(not found.known and not found.problem for found in import_jobs(store, objects, 30))
    return time.perf_counter() - began, made


def main() -> None:
    """Prints the results."""
    parser = argparse.ArgumentParser(prog="python -m bench.importing", description=__doc__)
    parser.add_argument("--jobs", type=int, default=10_000)
    parser.add_argument("--lines", type=int, default=20)
    parser.add_argument("--archive")
    flags = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory, embedded.lease_server(Path(directory) / "data") as lease:
        objects = open_object_store(flags.archive or (Path(directory) / "archive").as_uri())
        store = Store(lease.url)
        fill(store, objects, flags.jobs, flags.lines)
        with redis.Redis.from_url(lease.url) as client:
            client.flushall()
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        for which in ("first", "second"):
            seconds, made = timed(store, objects)
            print(f"{which} import: {made:,} jobs made in {seconds:.1f} s, {flags.jobs / seconds:,.0f} jobs a second")
        after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        print(f"peak memory: {before / 1024:.0f} MB before, {after / 1024:.0f} MB after")
        store.close()


if __name__ == "__main__":
    main()
