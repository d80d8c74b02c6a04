"""Filtered streams and loops of waits have exactly the lines that ``grep`` finds, over cuts, kills and archiving."""

import contextlib
import os
import random
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple
from urllib.parse import urlencode

import pytest

from chronoverse.archive.object_store import FileObjectStore
from chronoverse.joblog.model import Attempt, Job, JobRef, Line, Status
from chronoverse.store import Store
from tests.faults.runner import PATIENCE_SECONDS
from tests.faults.testbed import TOKEN_SECONDS, FaultTestbed
from tests.faults.watching import FilteredWatcher, WaitLoop
from tests.support.archives import archive_up_to
from tests.support.bench import NOW
from tests.support.faultproxy import FaultProxy
from tests.support.waiting import wait_until

#: A fixed one, and the one in FAULT_SEED if that is set.
SEEDS: Final = [20261126, *(int(seed) for seed in [os.environ.get("FAULT_SEED")] if seed)]
JOB: Final = JobRef("filters", "job")
WORKERS: Final = 2
#: How often all connections to the service, or all to nginx, are cut, and the seconds between two cuts.
CUTS: Final = 12
PAUSE_SECONDS: Final = (0.05, 0.5)
#: After that many cuts a worker is killed. After the last of these kills both are.
KILLS: Final = (4, 8)
#: Each time after that many cuts, nearly all lines are archived and taken out of the store.
ARCHIVE_EVERY: Final = 3
#: Lines that stay in the store then, at most.
HOT_LINES: Final = 200
#: The sizes of a writer's appends. The last one is more than a worker compares with a query at once.
BATCHES: Final = (1, 3, 7, 20, 600)
#: Lines a second, on average.
RATE: Final = 250
#: Viewers of each kind. Of all viewers each worker has more than it takes to write to them as groups.
VIEWERS: Final = 2


class Pattern(NamedTuple):
    """What lines must match."""

    q: str
    regex: bool = False
    stream: str = ""

    @property
    def query(self) -> str:
        """As in a URL."""
        optional = {"regex": "true"} if self.regex else {}
        return urlencode({"q": self.q, **optional, **({"stream": self.stream} if self.stream else {})})

    def grep(self, lines: list[Line], directory: Path) -> list[int]:
        """The numbers of those that match, as the program ``grep`` finds them."""
        file = directory / "lines"
        file.write_text("".join(f"{line.message}\n" for line in lines))
        found = subprocess.run(
            ["grep", "--line-number", "--ignore-case", "-E" if self.regex else "-F", "-e", self.q, str(file)],
            capture_output=True,
            env={**os.environ, "LC_ALL": "C.UTF-8"},
            check=True,
        )
        numbers = [int(line.partition(b":")[0]) for line in found.stdout.splitlines()]
        return [number for number in numbers if self.stream in ("", lines[number - 1].stream)]


PATTERNS: Final = (
    Pattern("needle"),
    Pattern('say "ü'),
    Pattern("needle", stream="stderr"),
    Pattern("took [0-9]+7 ms|^panic", regex=True),
    Pattern("took [0-9]+7 ms|^panic", regex=True, stream="stderr"),
)
#: Lines to choose from, by how often they come. The others have what a pattern looks for only in part.
TEXTS: Final = {
    "straw": 60,
    "need le, \x1b[1mbold\x1b[0m needl": 10,
    "a Needle in it": 4,
    '\x1b[31mNEEDLE\x1b[0m \\n "quoted"': 2,
    'they say "Ü" and "ü"': 3,
    "no panic here": 5,
    "panic: no ü left": 4,
    "took {} ms": 18,
}


class Writer(threading.Thread):
    """Appends random lines until it is told to end the job."""

    def __init__(self, store: Store, attempt: Attempt, seed: int) -> None:
        super().__init__(daemon=True)
        self.lines: list[Line] = []
        self._over = threading.Event()
        self._store, self._attempt, self._chance = store, attempt, random.Random(seed)

    def run(self) -> None:
        """Appends."""
        while not self._over.is_set():
            count = self._chance.choices(BATCHES, (6, 6, 4, 4, 1))[0]
            batch = [self._line(len(self.lines) + number) for number in range(1, count + 1)]
            self._store.append(self._attempt, batch)
            self.lines += batch
            self._over.wait(count / RATE)
        self._store.finish(self._attempt, Status.COMPLETED, 0, 0, len(self.lines) + 1)

    def end(self) -> None:
        """Ends the job."""
        self._over.set()
        self.join()

    def _line(self, number: int) -> Line:
        text = self._chance.choices([*TEXTS], [*TEXTS.values()])[0].format(self._chance.randrange(1000))
        padding = "." * self._chance.choice((0, 0, 10, 300))
        return Line(number, NOW, text + padding, self._chance.choice(("stdout", "stdout", "stderr")))


@contextlib.contextmanager
def writing(url: str, seed: int) -> Iterator[tuple[Store, Writer]]:
    """A job that is being written during the ``with`` block."""
    store = Store(url, lease_seconds=60)
    writer = Writer(store, store.open(JOB, "token"), seed)
    writer.start()
    try:
        yield store, writer
    finally:
        writer.end()
        store.close()


class Site(NamedTuple):
    """A service behind nginx, a job that is being written, and a proxy in front of each of the two."""

    seed: int
    testbed: FaultTestbed
    store: Store
    writer: Writer
    archive: FileObjectStore
    direct: FaultProxy
    through_nginx: FaultProxy

    def watchers(self) -> list[tuple[Pattern, FilteredWatcher]]:
        """Filtered streams and loops of waits of every pattern, by both ways."""
        nginx = self.testbed.nginx
        assert nginx is not None
        token = self.testbed.service.token(ttl=TOKEN_SECONDS)
        urls: dict[str, ssl.SSLContext | bool] = {
            self.direct.http_url: False,
            self.through_nginx.http_url.replace("http", "https"): nginx.verify,
        }
        return [
            (pattern, kind(url, JOB, token, verify, query=pattern.query))
            for pattern in PATTERNS
            for kind in (FilteredWatcher, WaitLoop)
            for url, verify in urls.items()
            for _ in range(VIEWERS)
        ]

    def archive_most(self, chance: random.Random) -> None:
        """Moves all lines to the archive but for the newest."""
        archived = (self.store.get_job(JOB) or Job(JOB, Status.RUNNING)).archived
        to = len(self.writer.lines) - chance.randint(1, HOT_LINES)
        if to > archived:
            archive_up_to(self.store, self.archive, JOB, to, trim=True)

    def kill_workers(self, count: int) -> None:
        """Kills some, and waits until there are others in their place."""
        service = self.testbed.service
        for pid in service.worker_pids()[:count]:
            self.testbed.kill_worker(pid)
        wait_until(lambda: len(service.worker_pids()) == WORKERS, PATIENCE_SECONDS, "all workers")


@pytest.fixture(params=SEEDS)
def site(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Site]:
    """The service, and a job that has just begun."""
    archive = tmp_path / "archive"
    with contextlib.ExitStack() as stack:
        testbed = stack.enter_context(
            FaultTestbed(tmp_path, lease=60, workers=WORKERS, with_nginx=True, archive_url=archive.as_uri())
        )
        assert testbed.nginx is not None
        proxies = [stack.enter_context(FaultProxy((each.host, each.port))) for each in (testbed.service, testbed.nginx)]
        store, writer = stack.enter_context(writing(testbed.redis.url, request.param))
        yield Site(request.param, testbed, store, writer, FileObjectStore(archive), *proxies)


@pytest.mark.long
def test_filtered_streams_and_loops_of_waits_have_what_grep_finds(site: Site, tmp_path: Path) -> None:
    """Each line once and in order, directly and through nginx.

    Meanwhile connections are cut, workers are killed, and lines move to the archive.
    """
    chance, watchers = random.Random(site.seed), site.watchers()
    for _, watcher in watchers:
        watcher.start()
    for number in range(1, CUTS + 1):
        time.sleep(chance.uniform(*PAUSE_SECONDS))
        chance.choice((site.direct, site.through_nginx)).cut()
        if number in KILLS:
            site.kill_workers(WORKERS if number == KILLS[-1] else 1)
        if number % ARCHIVE_EVERY == 0:
            site.archive_most(chance)
    cut = site.direct.traffic.cut + site.through_nginx.traffic.cut
    site.writer.end()
    lines, job = site.writer.lines, site.store.get_job(JOB)
    assert job is not None
    expected = {pattern: pattern.grep(lines, tmp_path) for pattern in PATTERNS}
    for pattern, watcher in watchers:
        name = f"{type(watcher).__name__} of {pattern} at {watcher.url}"
        assert watcher.join(PATIENCE_SECONDS), f"{name} has only {watcher.highest}: {watcher.errors[-5:]}"
        assert watcher.numbers == expected[pattern], name
        assert watcher.gaps == []
    found = {pattern.query: len(numbers) for pattern, numbers in expected.items()}
    print(f"{len(lines)} lines, {job.archived} archived, {cut} connections cut, matching: {found}")
    assert cut >= CUTS
    assert job.archived > len(lines) / 2
    assert all(len(numbers) > 5 for numbers in expected.values())
