"""An import of many jobs: ``python -m bench.importing [--jobs 10000] [--lines 20] [--archive URL]``.

Writes the archive of so many jobs of so many lines, and imports them into an empty store, twice. One in a hundred has
not ended. Prints the seconds of both imports, and the memory of the process before and at most. The archive is a new
directory, or what ``--archive`` names, such as a bucket (``s3://BUCKET/PREFIX``), which must be empty.
"""

import argparse
import resource
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

from chronoverse.archive.codec import ChunkBuilder
from chronoverse.archive.importing import import_jobs
from chronoverse.archive.manifest import manifest_json, manifest_name
from chronoverse.archive.object_store import ObjectStore
from chronoverse.archive.schemes import open_object_store
from chronoverse.embedded import server as embedded
from chronoverse.joblog.chunk import combined_sha256
from chronoverse.joblog.model import Job, JobRef, Status, iso_timestamp
from chronoverse.store import Store

#: One in this many jobs has not ended.
RUNNING_SHARE: Final = 100


def fill(objects: ObjectStore, jobs: int, lines: int) -> None:
    """Writes the archive of the jobs, a hundred of each workflow, as archivers leave it."""
    now = time.time()
    stamp = iso_timestamp(now)
    fields = [b"timestamp", stamp.encode(), b"message", b"a step of the build", b"stream", b"stdout"]

    def write(number: int) -> None:
        ref = JobRef(f"wf_{number // 100}", f"job_{number}")
        builder = ChunkBuilder(ref, 1)
        builder.add([(b"%d-0" % line, fields) for line in range(1, lines + 1)])
        chunk, data = builder.finish()
        chunk = chunk.with_unique_name("0123456789abcdef")
        objects.put(chunk.name, data)
        if number % RUNNING_SHARE:
            job = Job(ref, Status.COMPLETED, 1, stamp, stamp, stamp, 0, lines, last=lines)
            objects.put(manifest_name(ref), manifest_json(job, {}, [chunk], combined_sha256([chunk]), now))

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(write, range(jobs)))


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
    with (
        tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as directory,
        embedded.ServerLease(Path(directory) / "data") as lease,
    ):
        objects = open_object_store(flags.archive or (Path(directory) / "archive").as_uri())
        store = Store(lease.url)
        fill(objects, flags.jobs, flags.lines)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        for which in ("first", "second"):
            seconds, made = timed(store, objects)
            print(f"{which} import: {made:,} jobs made in {seconds:.1f} s, {flags.jobs / seconds:,.0f} jobs a second")
        after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        print(f"peak memory: {before / 1024:.0f} MB before, {after / 1024:.0f} MB after")
        store.close()


if __name__ == "__main__":
    main()
