"""What a profile costs: ``python -m bench.profiles [--lines 1000000]``. Takes some five minutes.

Writes five good runs of very many lines and one that waits once for longer, and archives them. Then it measures the
profile of the last one in the code of the scan server: at first, when nothing is cached, and again; with the archive in
files, and on a server that waits 15 ms before each answer, as S3 does. Before that it measures what the timeline adds
to what the archiver does with each line, and the size of its object.
"""

import argparse
import itertools
import multiprocessing
import os
import random
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import orjson

from bench.seen import serve_slowly
from chronoverse.archive.archiver import Archiver
from chronoverse.archive.derived import derived_names
from chronoverse.archive.object_store import FileObjectStore, ObjectStore
from chronoverse.archive.reader import ArchiveReader
from chronoverse.archive.retention import RetentionPolicy
from chronoverse.archive.s3_store import S3ObjectStore
from chronoverse.history.scans.app import ScanApp
from chronoverse.history.scans.scan import ProfileScan, SummaryScan
from chronoverse.joblog.model import JobRef, Line, Status, iso_timestamp
from chronoverse.joblog.shapes import ShapeHasher
from chronoverse.joblog.timelines import TimelineBuilder
from chronoverse.store import Store
from tests.support.servers import running

WORKFLOW: Final = "ci"
GOOD_RUNS: Final = 5


def lines(count: int, seed: int, planted: int = 0) -> Iterator[Line]:
    """The lines of one run. It waits 60 s longer before the line ``planted``."""
    choice, plan = random.Random(seed), random.Random(0)
    at = 1_772_000_000.0
    for number in range(1, count + 1):
        mean = plan.expovariate(1_000) * (1_000 if plan.random() < 0.001 else 1)
        at += mean * choice.uniform(0.7, 1.3) + (60 if number == planted else 0)
        kind = plan.randrange(300)
        word = "abcdefghij"[kind % 10] * (2 + kind // 10)
        text = f"step {word}: {choice.randrange(10**6)} of {count} done in {mean:.3f} s"
        yield Line(number, iso_timestamp(at), text, "stdout")


def write(store: Store, objects: ObjectStore, run: str, written: Iterator[Line]) -> None:
    """Writes a whole job, and archives it."""
    attempt = store.open(JobRef(WORKFLOW, run), "bench")
    while batch := [*itertools.islice(written, 1_000)]:
        attempt = attempt._replace(next=store.append(attempt, batch))
    store.finish(attempt, Status.COMPLETED, 0, 0, attempt.next)
    policy = RetentionPolicy(hot_bytes=2**40, hot_seconds=0, retention_seconds=10**8)
    Archiver(store, objects, policy, stop=threading.Event()).run_once()


def cost_of_a_line(count: int) -> tuple[float, float]:
    """Microseconds of a line for its shape, and for the timeline."""
    hasher, builder, took = ShapeHasher(), TimelineBuilder(), [0.0, 0.0]
    written = lines(count, 1)
    while batch := [*itertools.islice(written, 2_500)]:
        began = time.process_time()
        hashes = hasher.hashes([line.message for line in batch])
        hashed = time.process_time()
        builder.add(hashes, [line.sequence_num for line in batch], [line.timestamp for line in batch])
        took = [took[0] + hashed - began, took[1] + time.process_time() - hashed]
    return took[0] / count * 1e6, took[1] / count * 1e6


def milliseconds(app: ScanApp, job: str, kind: str = "profile") -> float:
    """How long one answer takes."""
    asked: dict[str, Any] = {"workflow_id": WORKFLOW, "job_id": job, "asked_at": time.monotonic(), "patience": 60.0}
    began = time.monotonic()
    if kind == "summary":
        app.read_summary(SummaryScan(**asked))
    else:
        found = orjson.loads(app.read_profile(ProfileScan(**asked)))
        assert found["complete"]
        assert found["slower"][0]["seconds"] >= 60
    return 1000 * (time.monotonic() - began)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--lines", type=int, default=1_000_000)
    count = parser.parse_args().lines
    hashing, adding = cost_of_a_line(min(count, 300_000))
    print(f"a line takes {hashing:.2f} µs for its shape and {adding:.2f} µs for the timeline", flush=True)
    with tempfile.TemporaryDirectory() as directory, running(Path(directory)) as server:
        store = Store(server.url, clock=(1_772_000_000.0 + each for each in itertools.count()).__next__)
        objects = FileObjectStore(Path(directory, "archive"))
        for run in range(GOOD_RUNS):
            write(store, objects, f"good-{run}", lines(count, run + 1))
        write(store, objects, "slow", lines(count, 99, count // 2))
        job = store.get_job(JobRef(WORKFLOW, "slow"))
        assert job
        size = len(objects.get(derived_names(job.ref, job.archive_sha256 or "")[1]))
        print(f"{count:,} lines: the timeline has {size:,} bytes", flush=True)
        ports: Any = multiprocessing.Queue()
        slow_server = multiprocessing.Process(
            target=serve_slowly, args=(str(Path(directory, "archive")), ports), daemon=True
        )
        slow_server.start()
        os.environ |= {"AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "x", "AWS_DEFAULT_REGION": "us-east-1"}
        os.environ["AWS_ENDPOINT_URL_S3"] = f"http://127.0.0.1:{ports.get()}"
        remote = S3ObjectStore("b")
        # boto3 is imported by the first request of a process, and takes 0.2 s or more.
        remote.get(derived_names(job.ref, job.archive_sha256 or "")[1])
        for name, where in (("files", objects), ("15 ms for each answer", remote)):
            cold: list[float] = []
            warm: list[float] = []
            for _ in range(5):
                app = ScanApp(store, ArchiveReader(where, store.chunks.chunk), 65_536)
                cold.append(milliseconds(app, "slow"))
                warm += [milliseconds(app, "slow") for _ in range(5)]
            for when, times in (("at first", sorted(cold)), ("again", sorted(warm))):
                print(f"{name}, {when}: median {times[len(times) // 2]:.0f} ms, most {times[-1]:.0f} ms", flush=True)
        slow_server.terminate()
        store.close()


if __name__ == "__main__":
    main()
