"""Searches: ``python -m bench.search [lines] [--rounds 3]``, compared with the equivalent shell command.

Searches one job, and 200 of a workflow, in the scan server's code, and with ``zstd -dc CHUNKS | rg``: alternately, each
on one core, from files and from a server with a latency of 15 ms like that of S3. Prints medians, ratios and MB/s.
"""

import argparse
import multiprocessing
import os
import random
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from itertools import count, islice
from typing import Any, Final

from bench.peers.store import LEASE_SECONDS, start_store
from bench.processes import Failed, folder
from bench.slow_objects import serve_slowly
from chronoverse.archive.archiver import Archiver
from chronoverse.archive.object_store import FileObjectStore, ObjectStore
from chronoverse.archive.reader import ArchiveReader
from chronoverse.archive.retention import RetentionPolicy
from chronoverse.archive.s3_store import S3ObjectStore
from chronoverse.history.scans.app import ScanApp
from chronoverse.history.scans.scan import LineScan, WorkflowScan
from chronoverse.history.scans.server import MALLOC
from chronoverse.joblog.model import JobRef, LineRun, Status, iso_timestamp
from chronoverse.store import Store

#: The long job, and the workflow with many jobs.
JOB: Final = JobRef("wf_1", "job_1")
MANY: Final = "wf_2"
JOBS: Final = 200
#: Texts of one line per workflow, and of every hundredth line.
RARE: Final = "undefined reference"
COMMON: Final = "checkpoint"
#: The searches: name, query, and whether it is an expression.
QUERIES: Final = (
    ("a rare text", RARE, False),
    ("an expression", r"ok \(took 49\d\d ms\)", True),
    ("a text in every 100th line", COMMON, False),
)
#: Names of the parts of the built program.
PARTS: Final = ("core", "net", "http", "json", "auth", "store", "cache", "codec", "index", "query", "parse", "event")
#: Lines of an append, and lines between two runs of the archiver.
APPEND_LINES: Final = 1_000
ARCHIVE_LINES: Final = 250_000


def build_output(seed: int = 7) -> Iterator[str]:
    """Endless output of a compiler, linker, test runner and downloader, with about 90 characters per line."""
    chance = random.Random(seed)
    flags = "-DNDEBUG -O2 -g -Wall -Wextra -std=c++20 -fPIC"
    for step in count(1):
        part, file = chance.choice(PARTS), f"{chance.choice(PARTS)}_{chance.choice(PARTS)}"
        kind = chance.random()
        if kind < 0.7:
            yield f"[{step % 4000}/4000] Building CXX object src/{part}/CMakeFiles/{part}.dir/{file}.cpp.o"
            yield f"/usr/bin/c++ -I/build/include -I/build/{part} {flags} -o {file}.cpp.o -c /build/{part}/{file}.cpp"
            for _ in range(chance.choice((0, 0, 0, 1, 3))):
                at = f"{chance.randrange(1, 900)}:{chance.randrange(1, 80)}"
                yield f"/build/{part}/{file}.cpp:{at}: warning: unused variable '{file}' [-Wunused-variable]"
        elif kind < 0.85:
            for case in range(chance.randrange(1, 9)):
                yield f"test {part}::{file}::case_{case} ... ok (took {chance.randrange(5000)} ms)"
        elif kind < 0.95:
            yield f"Downloaded {file} v{chance.randrange(9)}.{chance.randrange(30)}.{chance.randrange(9)} (registry)"
        else:
            yield f"\x1b[32m   Finished\x1b[0m {part} sha256:{chance.getrandbits(128):032x}"


def fill(store: Store, objects: ObjectStore, jobs: Sequence[JobRef], lines: int) -> int:
    """Writes and archives ``jobs`` with ``lines`` lines in total. Returns the bytes of their text."""
    archiver = Archiver(store, objects, RetentionPolicy(16 * 2**20, 0, 86_400), stop=threading.Event())
    output, each, size, written = build_output(), lines // len(jobs), 0, 0
    for job in jobs:
        attempt = store.open(job, "bench")
        for first in range(1, each + 1, APPEND_LINES):
            texts = [*islice(output, min(APPEND_LINES, each + 1 - first))]
            texts[::100] = [f"{COMMON} {number}" for number in range(len(texts[::100]))]
            if written <= lines // 2 < written + len(texts):
                texts[1] = f"ld: main.o: {RARE} to `start'"
            stamp = iso_timestamp(1772532000 + first / 7000)
            store.append_runs(attempt, first, [LineRun(stamp, "stdout", False, [text.encode() for text in texts])])
            written, size = written + len(texts), size + sum(map(len, texts)) + len(texts)
            if written % ARCHIVE_LINES == 0:
                archiver.run_once()
        store.finish(attempt, Status.COMPLETED, 0, 0, each + 1)
    archiver.run_once()
    if not all(store.catalog.archive_state(job).complete for job in jobs):
        raise Failed("a log was not archived")
    return size


def chunks(store: Store, job: JobRef) -> Iterator[str]:
    number = 1
    while chunk := store.chunks.chunk(job, number):
        yield chunk.name
        number = chunk.last + 1


def seconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


class Searched:
    """The archived ``jobs`` in ``objects``. ``fetch`` downloads them to ``files``. ``size`` is that of their text."""

    def __init__(
        self, store: Store, objects: ObjectStore, jobs: Sequence[JobRef], size: int, files: str, fetch: str = ":"
    ) -> None:
        self._store = store
        self._objects = objects
        self._jobs = jobs
        self._size = size
        self._theirs = f"{fetch} && zstd -dcq {files} | rg"

    def app(self) -> ScanApp:
        """A scanning process, with empty caches."""
        return ScanApp(self._store, ArchiveReader(self._objects, self._store.chunks.chunk), 65_536)

    def pages(self, app: ScanApp, query: str, regex: bool, limit: int, per_job: int = 100) -> Iterator[int]:
        """The matches on each page of up to ``limit`` lines, or of 100 jobs."""
        job, position, start, has_more = self._jobs[0], 0, None, True
        asked: dict[str, Any] = {"workflow_id": job.workflow_id, "q": query, "regex": regex, "patience": 60.0}
        while has_more:
            asked["asked_at"] = time.monotonic()
            if len(self._jobs) == 1:
                page = app.read(LineScan(job_id=job.job_id, position=position, limit=limit, **asked))
                yield page.match_count
                position, has_more = page.position, page.has_more
            else:
                jobs, start = app.read_workflow(
                    WorkflowScan(job_id="", start=start, per_job=per_job, limit=min(limit, 100), **asked)
                )
                yield sum(each.count(b'"highlights":[[') for each in jobs)
                has_more = start is not None

    def compare(self, name: str, query: str, regex: bool, rounds: int) -> None:
        """Prints a row."""
        found, first, ours, theirs = 0, list[float](), list[float](), list[float]()
        command = f"{self._theirs} -i {'-e' if regex else '-F -e'} '{query}' | wc -l"

        def search(app: ScanApp) -> None:
            nonlocal found
            found = sum(self.pages(app, query, regex, 1_000))

        def search_files() -> None:
            lines = int(subprocess.check_output(command, shell=True))
            if lines != found:
                raise Failed(f"{query} is in {lines} lines, and {found} were found")

        for _ in range(rounds):
            pages = self.pages(self.app(), query, regex, 20, 5)
            first.append(1000 * seconds(partial(next, pages)))
            ours.append(seconds(partial(search, self.app())))
            theirs.append(seconds(search_files))
        own, other = statistics.median(ours), statistics.median(theirs)
        speeds = f"{self._size / own / 1e6:10.0f} {self._size / other / 1e6:10.0f}"
        row = f"{found:8,} {own:8.2f} {other:8.2f} {own / other:6.2f} {speeds} {statistics.median(first):10.1f}"
        print(f"{name:34} {row}", flush=True)


def main() -> None:
    """Measures and prints everything, with the scan server's settings of glibc, which reads them when it starts."""
    if not os.environ.keys() >= MALLOC.keys():
        os.execve(sys.executable, [sys.executable, "-m", "bench.search", *sys.argv[1:]], {**os.environ, **MALLOC})
    parser = argparse.ArgumentParser(prog="python -m bench.search", description=__doc__)
    parser.add_argument("lines", nargs="?", type=int, default=2_000_000)
    parser.add_argument("--rounds", type=int, default=3)
    flags = parser.parse_args()
    many = [JobRef(MANY, f"job_{number}") for number in range(JOBS)]
    with ExitStack() as stack:
        directory = stack.enter_context(folder())
        store = Store(start_store(directory, stack)[0], lease_seconds=LEASE_SECONDS)
        objects, bucket = FileObjectStore(directory / "archive"), directory / "archive"
        sizes = [fill(store, objects, jobs, flags.lines // part) for jobs, part in (([JOB], 1), (many, 2))]
        files = [[name for job in jobs for name in chunks(store, job)] for jobs in ([JOB], many)]
        ports: Any = multiprocessing.Queue()
        server = multiprocessing.Process(target=serve_slowly, args=(str(bucket), ports), daemon=True)
        server.start()
        stack.callback(server.terminate)
        url = f"http://127.0.0.1:{ports.get()}"
        os.environ |= {"AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "x", "AWS_DEFAULT_REGION": "us-east-1"}
        os.environ["AWS_ENDPOINT_URL_S3"] = url
        # A process's first request imports boto3.
        s3 = S3ObjectStore("b")
        s3.get(files[0][0])
        (directory / "fetched").mkdir()
        wanted = (f'url = "{url}/b/{name}"\noutput = "{n}.zst"\n' for n, name in enumerate(files[1]))
        (directory / "wanted").write_text("".join(wanted))
        fetch = f"cd {directory}/fetched && curl -sZ --parallel-max 12 -K ../wanted"
        paths = [" ".join(str(bucket / name) for name in names) for names in files]
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
        print(f"{flags.lines:,} lines, {sizes[0] / 1e6:.0f} MB of text, and {JOBS} jobs with {sizes[1] / 1e6:.0f} MB")
        columns = f"{'lines':>8} {'ours s':>8} {'theirs s':>8} {'ratio':>6} {'our MB/s':>10} {'their MB/s':>10}"
        print(f"{'':34} {columns} {'first ms':>10}")
        for where, searched in (
            ("one job", Searched(store, objects, [JOB], sizes[0], paths[0])),
            ("200 jobs", Searched(store, objects, many, sizes[1], paths[1])),
            ("200 jobs, S3", Searched(store, s3, many, sizes[1], "*.zst", fetch)),
        ):
            for name, query, regex in QUERIES:
                searched.compare(f"{where}: {name}", query, regex, flags.rounds)
        store.close()


if __name__ == "__main__":
    main()
