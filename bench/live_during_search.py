"""A live viewer during scans: ``python -m bench.live_during_search [lines] [--rounds 3] [--seconds 12] [--only TEXT]``.

There are one worker, a real store, and an archive of files with so many lines of a build's output, and 200 shorter
jobs. A viewer watches a job that prints a line every 10 ms. The delay of each line is measured from its append to the
viewer's socket: first while nobody asks for anything, then while a client searches the whole archive for a query, page
by page, again and again; asks in which of the 200 jobs a line was seen before; or where the time of a job went. Prints
for each the median and the 99th percentile of the delays, the latter also as a multiple of the quiet one, and how many
lines were searched, or answers given, in a second. All of these are medians of the rounds. ``--only`` leaves out the
queries whose names do not have the text. Last come the times of pages of the archived log, also as a multiple of the
quiet one, while the same token has scans under way.
"""

import argparse
import http.client
import multiprocessing
import random
import statistics
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from itertools import count, islice
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Final, NamedTuple
from urllib.parse import urlencode

from bench.load import Load
from bench.measure import live
from bench.peers.ours import Ours
from bench.processes import Failed
from bench.produce import Plan
from bench.search import build_output
from bench.seen import word
from chronoverse.archive.archiver import Archiver
from chronoverse.archive.object_store import FileObjectStore
from chronoverse.archive.retention import RetentionPolicy
from chronoverse.joblog.model import JobRef, Line, LineRun, Status, iso_timestamp
from chronoverse.store import Store

JOB: Final = JobRef("bench", "archived")
#: Lines a second of the live job, and how many of its first lines are not timed.
RATE: Final = 100
WARM: Final = 50
#: Seconds by which the live lines may take longer than planned.
PATIENCE_SECONDS: Final = 60.0
#: Lines of one append, and lines between two runs of the archiver: 60 MB in the store.
APPEND_LINES: Final = 1_000
ARCHIVE_LINES: Final = 250_000
#: Bytes of the log that stay in the store until its end.
HOT_BYTES: Final = 16 * 2**20
#: Seconds that a searching client waits for an answer.
ANSWER_SECONDS: Final = 30.0
#: The workflow with the jobs that are compared, how many there are, and the lines of each.
RUNS: Final = "runs"
JOBS: Final = 200
RUN_LINES: Final = 500
#: Lines of one page of matches: the most that can be asked for.
PAGE: Final = 1_000


class Query(NamedTuple):
    """What is asked for, and its name in the table. Without a path nobody asks for anything."""

    name: str
    path: str = ""


def search_for(name: str, q: str, *, regex: bool = False) -> Query:
    """A search of the archived job."""
    query = urlencode({"q": q, "regex": str(regex).lower(), "limit": PAGE})
    return Query(name, f"/workflows/{JOB.workflow_id}/jobs/{JOB.job_id}/logs/search?{query}")


QUERIES: Final = (
    Query("quiet"),
    search_for("a text that is nowhere", "undefined reference"),
    search_for("in every fifth line", "unused variable"),
    search_for("an expression", r"took 4\d{3} ms", regex=True),
    search_for("(a+)+$", "(a+)+$", regex=True),
    search_for("(?:a.{0,50}){4}z", "(?:a.{0,50}){4}z", regex=True),
    Query("history of a line", f"/workflows/{RUNS}/jobs/run-{JOBS - 1}/logs/{RUN_LINES // 2}/history"),
    Query("profile of a job", f"/workflows/{RUNS}/jobs/run-{JOBS - 1}/profile"),
)


class Measurement(NamedTuple):
    """One measurement: delays in milliseconds, and lines that were searched in a second."""

    p50_ms: float
    p99_ms: float
    searched: float


class ArchivingService(Ours):
    """The service with an archive."""

    def settings(self) -> dict[str, str]:
        return {"CHRONOVERSE_ARCHIVE_URL": (self.folder / "archive").as_uri()}

    def fill(self, lines: int) -> None:
        """Writes so many lines of :data:`JOB`, and the jobs of :data:`RUNS`, and archives all of them."""
        store, output = Store(self.url), build_output()
        attempt = store.open(JOB, "bench")
        archiver = Archiver(
            store,
            FileObjectStore(Path(self.folder / "archive")),
            RetentionPolicy(HOT_BYTES, 0, 86_400),
            stop=threading.Event(),
        )
        for first in range(1, lines + 1, APPEND_LINES):
            messages = [text.encode() for text in islice(output, min(APPEND_LINES, lines + 1 - first))]
            lines_of_time = LineRun(iso_timestamp(1772532000 + first / 7000), "stdout", False, messages)
            store.append_runs(attempt, first, [lines_of_time])
            if first % ARCHIVE_LINES == 1:
                archiver.run_once()
        store.finish(attempt, Status.COMPLETED, 0, 0, lines + 1)
        for run in range(JOBS):
            attempt = store.open(JobRef(RUNS, f"run-{run}"), "bench")
            steps = (f"step {word(number)}: done in {number} ms" for number in range(RUN_LINES))
            stamps = (iso_timestamp(1772532000 + number / 50) for number in range(RUN_LINES))
            store.append(attempt, [Line(*row, "stdout") for row in zip(count(1), stamps, steps, strict=False)])
            store.finish(attempt, Status.COMPLETED, 0, 0, RUN_LINES + 1)
        archiver.run_once()
        if not store.catalog.archive_state(JOB).complete:
            raise Failed("the log was not archived")
        store.close()


def search(port: int, token: str, path: str, pipe: Connection) -> None:
    """The process of a client that searches: reads pages until ``pipe`` has a message.

    Then it sends how many lines were searched, or answers given that are no pages, and the seconds that this took.
    """
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=ANSWER_SECONDS)
    searched = before = 0
    next_path, began = path, time.monotonic()
    while not pipe.poll(0):
        connection.request("GET", next_path, headers={"Authorization": f"Bearer {token}"})
        answer = connection.getresponse()
        answer.read()
        if answer.status != 200:
            raise Failed(f"{next_path} was answered with {answer.status}")
        number = int(answer.headers.get("Last-Event-ID", 1))
        searched, before = searched + number - before, number
        link = answer.headers.get("Link")
        if link is None:
            next_path, before = path, 0
        else:
            next_path = link[1 : link.index(">")]
    pipe.send((searched, time.monotonic() - began))


class Searcher:
    """Runs :func:`search` in another process."""

    def __init__(self, peer: Ours, query: Query) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        args = (peer.port, peer.token("searcher"), query.path, theirs)
        self._process = context.Process(target=search, args=args, daemon=True)
        self._process.start()
        theirs.close()

    def stop(self) -> float:
        """Stops it. Returns the lines that it searched in a second."""
        self._pipe.send("stop")
        if not self._pipe.poll(2 * ANSWER_SECONDS):
            raise Failed("the searching client does not end")
        try:
            lines, seconds = self._pipe.recv()
        except EOFError:
            raise Failed("the searching client died") from None
        self._process.join()
        return float(lines / seconds)

    def close(self) -> None:
        """Kills it."""
        self._process.terminate()
        self._process.join()


@contextmanager
def searching(peer: Ours, query: Query) -> Iterator[Searcher | None]:
    """Runs a client that searches during the ``with`` block, unless the query is empty."""
    if not query.path:
        yield None
        return
    searcher = Searcher(peer, query)
    try:
        yield searcher
    finally:
        searcher.close()


def measure(peer: Ours, query: Query, job: int, seconds: float) -> Measurement:
    """Measures one live job with one viewer during a search."""
    last = WARM + round(RATE * seconds)
    load = Load([peer.target(job)], peer.grammar, 1, last, seconds + PATIENCE_SECONDS, warm=WARM, first_job=job)
    with searching(peer, query) as searcher:
        found: dict[str, Any] = live(peer, load, Plan(last, rate=RATE, batch=50, first_job=job))
        searched = searcher.stop() if searcher else 0.0
    if found["complete"] != 1 or found["wrong"]:
        raise Failed(f"the viewer has not seen every line: {found['stories']}")
    return Measurement(found["p50_ms"], found["p99_ms"], searched)


def page_ms(peer: Ours, queries: Sequence[Query], lines: int, seconds: float) -> list[float]:
    """The milliseconds of each page of 100 lines from anywhere, while the same token asks for all ``queries``."""
    connection = http.client.HTTPConnection("127.0.0.1", peer.port, timeout=ANSWER_SECONDS)
    chance, headers, took = random.Random(1), {"Authorization": f"Bearer {peer.token('searcher')}"}, list[float]()
    with ExitStack() as stack:
        for query in queries:
            stack.callback(Searcher(peer, query).close)
        time.sleep(2 if queries else 0)
        ends = time.monotonic() + seconds
        while (began := time.monotonic()) < ends:
            path = f"/workflows/{JOB.workflow_id}/jobs/{JOB.job_id}/logs?offset={chance.randrange(lines)}"
            connection.request("GET", path, headers=headers)
            answer = connection.getresponse()
            answer.read()
            if answer.status != 200:
                raise Failed(f"{path} was answered with {answer.status}")
            took.append(1000 * (time.monotonic() - began))
            time.sleep(0.02)
    return sorted(took)


def show_pages(peer: Ours, lines: int, rounds: int, seconds: float) -> None:
    """Prints the times of pages, quiet and beside scans of the same token, in turns."""
    beside = {"quiet": [], "a profile, a history": QUERIES[-2:], "two searches": [QUERIES[1], QUERIES[3]]}
    found: dict[str, list[float]] = {name: [] for name in beside}
    for _ in range(rounds):
        for name, queries in beside.items():
            found[name] += page_ms(peer, queries, lines, seconds)
    quiet = statistics.median(found["quiet"])
    print(f"\n{'a page beside':24} {'p50 ms':>8} {'p99 ms':>8} {'times quiet':>11}")
    for name, took in found.items():
        p50, p99 = statistics.median(took), statistics.quantiles(took, n=100)[98]
        print(f"{name:24} {p50:8.2f} {p99:8.2f} {p50 / quiet:11.2f}", flush=True)


def show(measurements: dict[Query, list[Measurement]]) -> None:
    """Prints a row for each query."""
    quiet = next(iter(measurements.values()))
    print(f"{'query':24} {'p50 ms':>8} {'p99 ms':>8} {'least':>7} {'most':>7} {'times quiet':>11} {'searched/s':>11}")
    for query, seen in measurements.items():
        p99 = [each.p99_ms for each in seen]
        times = statistics.median(p99) / statistics.median([each.p99_ms for each in quiet])
        searched = statistics.median([each.searched for each in seen])
        median = statistics.median([each.p50_ms for each in seen])
        row = f"{median:8.2f} {statistics.median(p99):8.2f} {min(p99):7.2f} {max(p99):7.2f} {times:11.2f}"
        print(f"{query.name:24} {row} {searched:11,.0f}", flush=True)


def main() -> None:
    """Measures and prints everything."""
    parser = argparse.ArgumentParser(prog="python -m bench.live_during_search", description=__doc__)
    parser.add_argument("lines", nargs="?", type=int, default=2_000_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=12.0)
    parser.add_argument("--only", default="")
    flags = parser.parse_args()
    queries = [query for query in QUERIES if not query.path or flags.only in query.name]
    measurements: dict[Query, list[Measurement]] = {query: [] for query in queries}
    with ArchivingService() as peer:
        peer.fill(flags.lines)
        for number in range(flags.rounds):
            for index, query in enumerate(queries):
                job = number * len(queries) + index
                measurements[query].append(measure(peer, query, job, flags.seconds))
        show_pages(peer, flags.lines, flags.rounds, flags.seconds / 2)
    print(f"\n{flags.lines:,} archived lines, {RATE} live lines a second, {flags.rounds} rounds")
    show(measurements)


if __name__ == "__main__":
    main()
