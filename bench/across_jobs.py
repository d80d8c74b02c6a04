"""Many jobs: ``python -m bench.across_jobs [--lines 2000000] [--jobs 2000] [--workflows 200] [--seconds 12]``.

Fills a store with so many lines in so many jobs of so many workflows. The first workflow has a fifth of the jobs. All
jobs are archived, and each workflow has one more that runs. One line of the first workflow's oldest job has a text that
is nowhere else. Archiving takes some 20 ms of a processor for each job and for each thousand lines: two minutes with
these numbers, and ten with 20 million lines in 5,000 jobs. Prints

- the times of ``GET /workflows``, page by page;
- how long it takes to find that text, when the search starts 1, 10, 100 and all jobs before it, with how many requests,
  and the longest of them;
- the delays of live lines while nobody searches, and while a client searches the first workflow again and again.
"""

import argparse
import http.client
import multiprocessing
import statistics
import sys
import threading
import time
from itertools import count, islice
from typing import Any, Final
from urllib.parse import urlencode

import orjson

from bench.live_during_search import ANSWER_SECONDS, APPEND_LINES, HOT_BYTES, PATIENCE_SECONDS, RATE, WARM
from bench.load import Load
from bench.measure import live
from bench.peers.ours import Ours
from bench.processes import Failed
from bench.produce import Plan
from bench.search import build_output
from chronoverse.archive.archiver import Archiver
from chronoverse.archive.object_store import FileObjectStore
from chronoverse.archive.retention import RetentionPolicy
from chronoverse.joblog.model import JobRef, LineRun, Status, iso_timestamp
from chronoverse.store import Store

#: The text that is in one line, and one that is nowhere.
NEEDLE: Final = "a needle in the haystack"
NOWHERE: Final = "undefined reference"
#: The part of all jobs that the first workflow has.
LARGE_SHARE: Final = 1 / 5
#: How often the list of workflows is asked for.
LISTINGS: Final = 300
#: Jobs that are written before the archiver runs.
ARCHIVED_AT_ONCE: Final = 50


class ManyJobs(Ours):
    """The service with an archive, and many jobs."""

    def settings(self) -> dict[str, str]:
        return {"CHRONOVERSE_ARCHIVE_URL": (self.folder / "archive").as_uri()}

    def fill(self, jobs: int, workflows: int, lines: int) -> int:
        """Writes and archives them, about ``lines`` in all. Returns the number of jobs of the first workflow."""
        # A second for each job: jobs are listed by the time of their creation.
        began = time.time() - 2 * jobs
        store = Store(self.url, clock=lambda: began + number)
        policy = RetentionPolicy(HOT_BYTES, 0, 86_400)
        archiver = Archiver(store, FileObjectStore(self.folder / "archive"), policy, stop=threading.Event())
        output, large = build_output(), round(jobs * LARGE_SHARE)
        number = 0
        for number in range(jobs):
            workflow = 0 if number < large else 1 + number % (workflows - 1)
            texts = list(islice(output, lines // jobs))
            if number == 0:
                texts[len(texts) // 2] = NEEDLE
            _write_job(store, JobRef(f"wf_{workflow}", f"job_{number}"), texts, began + number)
            if number % ARCHIVED_AT_ONCE == 0:
                archiver.run_once()
                print(f"{number:,} of {jobs:,} jobs are written", file=sys.stderr, flush=True)
        archiver.run_once()
        for workflow in range(workflows):
            store.open(JobRef(f"wf_{workflow}", "running"), "bench")
        store.close()
        return large


def _write_job(store: Store, job: JobRef, texts: list[str], began: float) -> None:
    attempt = store.open(job, "bench")
    for start in range(0, len(texts), APPEND_LINES):
        messages = [text.encode() for text in texts[start : start + APPEND_LINES]]
        store.append_runs(attempt, start + 1, [LineRun(iso_timestamp(began), "stdout", False, messages)])
    store.finish(attempt, Status.COMPLETED, 0, 0, len(texts) + 1)


class Reader:
    """A client with one connection."""

    def __init__(self, port: int, token: str) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=ANSWER_SECONDS)
        self._headers = {"Authorization": f"Bearer {token}"}
        #: Seconds that each answer took.
        self.seconds: list[float] = []

    def get(self, path: str) -> tuple[dict[str, Any], str | None]:
        """The answer's JSON, and the path of the next page."""
        began = time.monotonic()
        self._connection.request("GET", path, headers=self._headers)
        answer = self._connection.getresponse()
        body = answer.read()
        self.seconds.append(time.monotonic() - began)
        if answer.status != 200:
            raise Failed(f"{path} was answered with {answer.status}: {body!r}")
        link = answer.headers.get("Link")
        return orjson.loads(body), link[1 : link.index(">")] if link else None


def search_path(q: str, **query: Any) -> str:
    """The first page of a search of the first workflow."""
    return f"/workflows/wf_0/logs/search?{urlencode({'q': q, **query})}"


def list_workflows(reader: Reader) -> None:
    """Prints how long a page of workflows takes."""
    path: str | None = None
    for _ in range(LISTINGS):
        _, path = reader.get(path or "/workflows?limit=100")
    cuts = statistics.quantiles(reader.seconds, n=100)
    print(f"GET /workflows, 100 on a page: p50 {1000 * cuts[49]:.1f} ms, p99 {1000 * cuts[98]:.1f} ms", flush=True)


def find(peer: Ours, jobs: int, since: str) -> None:
    """Prints how long it takes to find the needle, among ``jobs`` jobs that began at ``since`` or before."""
    reader, found = Reader(peer.port, peer.token("finder")), list[dict[str, Any]]()
    path: str | None = search_path(NEEDLE, until=since)
    began = time.monotonic()
    while path and not found:
        page, path = reader.get(path)
        found = page["jobs"]
    seconds = time.monotonic() - began
    if [job["id"] for job in found] != ["job_0"]:
        raise Failed(f"the search among {jobs} jobs found {found}")
    requests = f"{len(reader.seconds)} requests, the longest {max(reader.seconds):.2f} s"
    print(f"found in the last of {jobs:5} jobs after {seconds:6.2f} s, {requests}", flush=True)


def search_without_end(port: int, token: str, stop: Any) -> None:
    """The process of a client that searches again and again."""
    reader, path = Reader(port, token), ""
    while not stop.is_set():
        _, following = reader.get(path or search_path(NOWHERE))
        path = following or ""


def delays(peer: Ours, job: int, seconds: float) -> tuple[float, float]:
    """The median and the 99th percentile of the delays of live lines, in ms."""
    last = WARM + round(RATE * seconds)
    load = Load([peer.target(job)], peer.grammar, 1, last, seconds + PATIENCE_SECONDS, warm=WARM, first_job=job)
    found: dict[str, Any] = live(peer, load, Plan(last, rate=RATE, batch=50, first_job=job))
    if found["complete"] != 1 or found["wrong"]:
        raise Failed(f"the viewer has not seen every line: {found['stories']}")
    return found["p50_ms"], found["p99_ms"]


def compare_delays(peer: Ours, seconds: float, rounds: int) -> None:
    """Prints the delays of live lines without a search and with one, in turns."""
    context, numbers = multiprocessing.get_context("spawn"), count()
    quiet, beside = [], []
    for _ in range(rounds):
        quiet.append(delays(peer, next(numbers), seconds))
        stop = context.Event()
        args = (peer.port, peer.token("searcher"), stop)
        searcher = context.Process(target=search_without_end, args=args, daemon=True)
        searcher.start()
        try:
            beside.append(delays(peer, next(numbers), seconds))
        finally:
            stop.set()
            searcher.join(ANSWER_SECONDS)
            searcher.kill()
    for name, seen in (("quiet", quiet), ("beside a search", beside)):
        p50, p99 = (statistics.median(column) for column in zip(*seen, strict=True))
        print(f"live lines, {name:16} p50 {p50:6.2f} ms, p99 {p99:6.2f} ms", flush=True)
    ratio = statistics.median([each[1] for each in beside]) / statistics.median([each[1] for each in quiet])
    print(f"p99 beside a search: {ratio:.2f} times quiet", flush=True)


def main() -> None:
    """Measures and prints everything."""
    parser = argparse.ArgumentParser(prog="python -m bench.across_jobs", description=__doc__)
    parser.add_argument("--lines", type=int, default=2_000_000)
    parser.add_argument("--jobs", type=int, default=2_000)
    parser.add_argument("--workflows", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=12.0)
    parser.add_argument("--rounds", type=int, default=3)
    flags = parser.parse_args()
    with ManyJobs() as peer:
        began = time.monotonic()
        large = peer.fill(flags.jobs, flags.workflows, flags.lines)
        took = time.monotonic() - began
        print(
            f"{flags.lines:,} lines, {flags.jobs:,} jobs, {flags.workflows} workflows, written in {took:.0f} s",
            flush=True,
        )
        reader = Reader(peer.port, peer.token("reader"))
        list_workflows(reader)
        for jobs in sorted({1, 10, 100, large}):
            if jobs <= large:
                job, _ = reader.get(f"/workflows/wf_0/jobs/job_{jobs - 1}")
                find(peer, jobs, job["started_at"])
        compare_delays(peer, flags.seconds, flags.rounds)


if __name__ == "__main__":
    main()
