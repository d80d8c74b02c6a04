"""The parts of a simulation: service nodes, archivers, runners and viewers, all of which run the real code."""

import contextlib
import http.client
import json
import os
import shutil
import sqlite3
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final, cast
from urllib.parse import urlencode

import gevent

from chronoverse.archive import archiver as archiver_module
from chronoverse.archive import schemes
from chronoverse.archive.reader import ArchiveReader
from chronoverse.archive.retention import RetentionPolicy
from chronoverse.auth.jwks import keep_fresh
from chronoverse.auth.minting import mint
from chronoverse.auth.rights import READ, WRITE
from chronoverse.errors import ChronoverseError
from chronoverse.history.pages import PageBudget
from chronoverse.history.scans.app import ScanApp
from chronoverse.history.scans.scan import ReplayScan
from chronoverse.joblog.line_splitter import LineBatch
from chronoverse.joblog.model import JobRef, Status, iso_timestamp
from chronoverse.joblog.sse import ServerSentEvent
from chronoverse.live import tail
from chronoverse.live.replay_cache import ReplayCache, read_frames
from chronoverse.runner.http_log_writer import HttpLogWriter
from chronoverse.runner.publisher import JobResult, LogWriter, Publisher
from chronoverse.runner.run import close_and_report
from chronoverse.runner.spool import spool_file
from chronoverse.runner.spool.spool import Spool
from chronoverse.runner.spool.spool_file import SpoolRoom
from chronoverse.settings import Settings
from chronoverse.store import Durability, Store
from chronoverse.web import app as web_app
from chronoverse.web.http.dependencies import Dependencies
from tests.faults.emitter import line
from tests.faults.oracle import GAP, Printed
from tests.faults.watching import FilteredWatcher, WaitLoop, Watcher
from tests.simulation.http_server import serve
from tests.simulation.install import OrderedSet
from tests.simulation.kernel import EPOCH, Process, loop, world
from tests.simulation.network import Network
from tests.simulation.outside import Issuer, SimObjectStore
from tests.simulation.plan import Shape
from tests.simulation.store_server import Sentinel, StoreServer
from tests.support.workflow_client import Client
from tests.web.routes.model import Query

SECRET: Final = "a secret of the simulation that signs nothing else"
#: The service's host.
BALANCER: Final = "service"
WORKFLOW: Final = "sim"


@dataclass
class Site:
    """Everything in this simulation. ``clock`` is ``clock.c``, compiled."""

    directory: Path
    shape: Shape
    clock: Path
    quota: int = 0
    network: Network = field(default_factory=Network)
    objects: SimObjectStore = field(default_factory=SimObjectStore)
    nodes: "list[Node]" = field(default_factory=list)
    archivers: "list[ArchiverProcess]" = field(default_factory=list)
    runners: "list[Runner]" = field(default_factory=list)
    viewers: "list[Viewer]" = field(default_factory=list)
    workflow_viewers: "list[WorkflowViewer]" = field(default_factory=list)
    #: Processes of people who register, redact and delete jobs, and import archives.
    people: list[Process] = field(default_factory=list)
    #: Until when the store may have lost lines that their runner has yet to resend.
    unsafe_until: float = 0.0
    #: Since when there are no faults, and how often the store has died in this round.
    began: float = 0.0
    quiet_since: float = 0.0
    outages: int = 0
    #: Start times of faults that can prevent runners from renewing their leases.
    silences: list[float] = field(default_factory=list)
    #: When the store lost everything, and when an import then ended.
    losses: list[list[float]] = field(default_factory=list)

    def __post_init__(self) -> None:
        world.slow, world.late = self.shape.slow, self.shape.late
        self.store = StoreServer(self.network, "store", self.directory, self.clock)
        self.store.lost_reports = self.shape.lost_reports
        self.sentinel: Sentinel | None = None
        if self.shape.has_sentinel:
            self.store.replicate()
            self.sentinel = Sentinel(self.network, "sentinel", "store")
        self.issuer = Issuer() if self.shape.has_issuer else None
        if self.issuer:
            web_app._fetch_keys_in_time = self.issuer.fetch  # type: ignore[assignment]
        self.network.resolve = self.resolve
        schemes.open_object_store = web_app.open_object_store = lambda url: self.objects  # type: ignore[attr-defined]
        # At their real intervals, looking for changes takes most of the time.
        archiver_module.MEASURE_SECONDS = tail.CHECK_SECONDS = self.shape.check  # type: ignore[misc]
        # Otherwise even an empty spool file has 49 kB.
        spool_file.PAGE_BYTES = 1_024  # type: ignore[misc]
        # Several appends in transit, earlier than with 5,000 lines in each. A burst needs several, too.
        HttpLogWriter.batch_lines = max(12, self.shape.burst // 4)  # type: ignore
        tail.TICK_SECONDS = self.shape.check / 2  # type: ignore[misc]
        cast("dict[str, Any]", tail.Tail.__init__.__kwdefaults__)["ring_bytes"] = self.shape.ring

    @property
    def store_url(self) -> str:
        return "redis+sentinel://sentinel/main" if self.sentinel else "redis://store"

    @property
    def durability(self) -> Durability:
        return Durability.REPLICATED if self.sentinel else Durability.FSYNCED

    @property
    def services(self) -> "list[Node | ArchiverProcess]":
        return [*self.nodes, *self.archivers]

    def token(self, subject: str) -> str:
        """A token with all permissions, valid for the whole simulation."""
        if self.issuer:
            return self.issuer.sign(subject)
        return mint(SECRET.encode(), subject, (READ, WRITE, "logs:admin"), ("*",), 400 * 86_400, EPOCH - 86_400)

    def resolve(self, host: str) -> str:
        """A balancer that selects a node for each connection, possibly one that is down."""
        return self.nodes[int(world.chance.random() * len(self.nodes))].name if host == BALANCER else host


class Node:
    """A node of the service: one worker, and a scan server."""

    def __init__(self, site: Site, name: str) -> None:
        self.name: Final = name
        self._site = site
        self.process, self.scans = Process(name), Process(f"{name}-scans")
        self.deps: Dependencies | None = None

    def start(self) -> None:
        self.process, self.scans = Process(self.name), Process(f"{self.name}-scans")
        self.process.spawn(self._run)
        self.scans.spawn(self._run_scans)

    def _run(self) -> None:
        issuer = self._site.issuer
        settings = Settings.from_env(
            {"HOME": str(self._site.directory)}
            | {"CHRONOVERSE_REDIS_URL": self._site.store_url, "CHRONOVERSE_DURABILITY": self._site.durability.value}
            | ({"CHRONOVERSE_JWT_JWKS_URL": "https://issuer"} if issuer else {"CHRONOVERSE_JWT_SECRET": SECRET})
            | {"CHRONOVERSE_ARCHIVE_URL": "file:///simulated", "CHRONOVERSE_LEASE_SECONDS": str(self._site.shape.lease)}
        )
        self.deps = deps = web_app.build_dependencies(settings)
        if issuer:
            self.process.spawn(keep_fresh, deps.verifier.published)
        deps.admission._tickets = OrderedSet()  # type: ignore[assignment]
        endpoint = SimpleNamespace(path=self.scans.name, file=os.memfd_create(self.name), is_up=True)
        deps.scans.connect_to(endpoint)  # type: ignore[arg-type]
        serve(self._site.network, self.name, self.process, web_app.build_app(deps))
        world.tell(self.name, "serves")

    def _run_scans(self) -> None:
        store = Store(self._site.store_url, lease_seconds=self._site.shape.lease)
        archive = ArchiveReader(self._site.objects, store.chunks.chunk)
        replay_cache = ReplayCache(store, archive, most_bytes=0)

        def read(scan: ReplayScan, budget: PageBudget) -> tuple[bytes, int]:
            # No time passes while it scans, so each scan would read a whole log.
            budget.bytes_left = 1
            return read_frames(replay_cache, scan, budget)

        app = ScanApp(store, archive, 65_536, read_replay=read)
        serve(self._site.network, self.scans.name, self.scans, app)

    def kill(self, *, power: bool = False) -> None:
        self._site.network.kill(self.process, power=power)
        self._site.network.kill(self.scans, power=power)


class ArchiverProcess:
    def __init__(self, site: Site, name: str) -> None:
        self.name: Final = name
        self._site = site
        self.process = Process(name)

    def start(self) -> None:
        self.process = Process(self.name)
        self.process.spawn(self._run)

    def _run(self) -> None:
        store = Store(self._site.store_url, lease_seconds=self._site.shape.lease)
        shape = self._site.shape
        policy = RetentionPolicy(shape.hot_bytes, shape.hot_seconds, 7 * 86_400, shape.running_seconds, 300, shape.lock)
        archiver = archiver_module.Archiver(store, self._site.objects, policy, stop=threading.Event())
        # Virtual time passes only while all wait, so a round takes no time and would immediately restart.
        archiver._rounds.seconds = shape.archiver_seconds
        archiver.run()

    def kill(self, *, power: bool = False) -> None:
        self._site.network.kill(self.process, power=power)


class _Publisher(Publisher):
    """Records the times of the requests that renew the lease, and of their answers."""

    asked_at = 0.0
    contacts: list[tuple[float, float]]

    def _step(self, store: LogWriter) -> None:
        self.asked_at = loop.time
        super()._step(store)

    def _schedule_renewal(self) -> None:
        self.contacts.append((self.asked_at, loop.time))
        super()._schedule_renewal()


class Runner:
    """Publishes one job, by a new process after each death; ``printed`` counts each one's lines.

    Its command prints bursts of lines. ``kind`` is how it publishes: ``store`` or ``http``.
    """

    def __init__(self, site: Site, job: JobRef, kind: str, seconds: float, pause: float) -> None:
        self.job: Final = job
        self.name: Final = f"r-{job.job_id}"
        self.path: Final = f"/workflows/{job.workflow_id}/jobs/{job.job_id}"
        self._site = site
        self._kind = kind
        self.until = loop.time + seconds
        self._pause = pause
        self.printed: dict[str, Printed] = {}
        self.process = Process(self.name)
        self.publisher: _Publisher | None = None
        #: Whether it has finished: everything is delivered, or it will not be restarted. Whether the job is deleted.
        self.is_done = self.is_deleted = False
        #: Whether its full spool dropped lines that the store had, and then lost.
        self.has_forgotten = False
        self.redactions: list[Any] = []
        #: When the store last lost everything, which only viewers then have; or 0.
        self.lost_at = 0.0
        self.refusal: ChronoverseError | None = None
        self._directory = site.directory / job.job_id
        self._spool_path: Path | None = None
        self.deaths = self.dropped = 0
        #: Times of its lease renewals and their answers; its first start, its end, and when it was deleted.
        self.contacts: list[tuple[float, float]] = []
        self.began, self.over_at, self.deleted_at = 0.0, float("inf"), float("inf")
        #: Maximum lines per burst, and those of the last one, as when a whole file is printed.
        self._burst = site.shape.burst
        self._last_burst = world.chance.choice((0, 0, 0, 1_200 if site.shape.burst > 100 else 40))
        #: With zero, a line is nowhere else once the store has confirmed it as durable.
        self.keep_bytes = world.chance.choice((0, 1_000, 4_000_000))

    def start(self) -> None:
        self.began = self.began or loop.time
        self.process = Process(self.name)
        self.process.spawn(self._run)

    def _connect(self) -> LogWriter:
        if self._kind == "store":
            return Store(self._site.store_url, lease_seconds=self._site.shape.lease, durability=self._site.durability)
        return HttpLogWriter(f"http://{BALANCER}", self._site.token("runner"), durable=True)

    def _run(self) -> None:
        # Some spools are full after a short outage.
        memory, file = (1_500, 7_000) if self.keep_bytes == 1_000 else (200_000, 2_000_000)
        room = SpoolRoom(self._directory, "spool", memory, file, self.keep_bytes)
        spool = Spool.recover(self._spool_path, room) if self._spool_path else Spool(room)
        writer = f"{self.job.job_id}-{self.deaths}"
        publisher = _Publisher(
            self._connect, self.job, spool, self._say, lease_seconds=self._site.shape.lease, wait_for_lease=True
        )
        publisher.contacts, self.publisher = self.contacts, publisher
        self.printed[writer] = Printed(0, 0)
        try:
            publisher.start(5.0)
            spool.save_state(ending=None)
            self._print(writer, spool)
            publisher.end(JobResult(Status.COMPLETED, 0))
            while not publisher.join(1.0):
                pass
        except ChronoverseError as error:
            self._say(f"refused: {error}")
        publisher.stop()
        self.refusal = publisher.refusal
        close_and_report(publisher, delivered=publisher.ended, refusal=publisher.refusal)
        self.is_done, self.over_at = True, loop.time
        self.dropped += spool.dropped
        world.tell(self.name, f"is done, {'delivered' if publisher.ended else self.refusal!r}")

    def _print(self, writer: str, spool: Spool) -> None:
        number, chance, is_over = 0, world.chance, False
        while not is_over and self.publisher and self.publisher.refusal is None:
            # Most commands print a line just before they end.
            is_over = loop.time >= self.until
            if is_over and self._last_burst:
                return
            count = 1 if chance.random() < 0.8 else int(chance.random() * self._burst) + 1
            count = max(count, self._last_burst if loop.time + self._pause > self.until else 0)
            self.printed[writer] = Printed(number + count, number + count)
            text = "\n".join(line(writer, each) for each in range(number + 1, number + count + 1))
            stream = chance.choice(("stdout", "stdout", "stderr"))
            spool.put(LineBatch(stream, iso_timestamp(time.time()), text.encode(), count))
            number += count
            world.count("lines", count)
            if not is_over:
                time.sleep(min(chance.expovariate(1 / self._pause), max(self.until - loop.time, 0.01)))

    def _say(self, text: str) -> None:
        # The directory has a different name in each run.
        world.tell(self.name, text.replace(str(self._site.directory), ""))

    def limit_disk(self, pages: int) -> None:
        """Its spool file can grow up to that many SQLite pages, or not at all."""
        file = self.publisher.spool._file if self.publisher else None
        with contextlib.suppress(sqlite3.Error):
            if file is not None:
                file._connection.execute(f"PRAGMA max_page_count = {pages}")

    @property
    def is_alive(self) -> bool:
        return self.publisher is not None and not self.process.dead and not self.is_done

    @property
    def is_awaited(self) -> bool:
        """Whether it was killed, and its next process has yet to open the job. Only the store has the earlier lines."""
        return self.deaths > 0 and not self.is_done and (self.publisher is None or self.publisher.base is None)

    @property
    def is_gone(self) -> bool:
        """Whether nobody has all of its lines: the store lost them after confirming them to the runner, or it died."""
        return self.is_done and max((asked for asked, _ in self.contacts), default=0.0) < self.lost_at

    @property
    def lapses(self) -> int:
        """How often its lease can have expired because faults kept it silent for long enough."""
        # With several requests in transit, an answer can be to an earlier one. The first can have had none.
        asked = [self.contacts[max(at - (self._kind == "http"), 0)][0] for at in range(len(self.contacts))]
        asked, answered = [self.began, *asked], [*(each for _, each in self.contacts), self.over_at]
        silent = [
            each for each in zip(asked, answered, strict=False) if each[1] - each[0] > 0.9 * self._site.shape.lease
        ]
        # A fault lasts for 30 s, and detecting its end takes some time.
        return sum(any(a - 45 < at < b for at in self._site.silences) for a, b in silent)

    def kill(self, *, restarts: bool) -> None:
        """The runner is killed: the spool's memory is lost, and its file is as the kernel has it."""
        if (publisher := self.publisher) is None or self.is_done:
            return
        self._site.network.kill(self.process)
        self.deaths += 1
        path = publisher.spool.path
        # What the store confirmed as durable, and what the file has, must finally be in the log.
        for writer, printed in self.printed.items():
            self.printed[writer] = printed._replace(required=0)
        self._spool_path = None
        if path is not None:
            # The dead process's SQLite still has the file open. A copy is what another process would find.
            self._spool_path = path.with_name(f"left-{self.deaths}.sqlite")
            for end in ("", "-journal"):
                if os.path.exists(f"{path}{end}"):
                    shutil.copy(f"{path}{end}", f"{self._spool_path}{end}")
        # A command that has ended is not run again. Without a job, its viewers would wait forever.
        if (restarts and publisher._result is None) or publisher.base is None:
            self.until, self.publisher = max(self.until, loop.time + 60.0), None
            loop.call_later(world.chance.uniform(0.1, 20.0), self.start)
        else:
            self.is_done = True


class Viewer(Watcher):
    """Views one job, from line 1 to its end. Each connection goes to another node. ``query`` is its filter."""

    query: Query | None = None

    def __init__(self, site: Site, job: JobRef, name: str, **options: Any) -> None:
        super().__init__("http://node", job, site.token(name), **options)
        self.name: Final = name
        self._site = site
        #: How often it disconnects after receiving something, and how many seconds it then takes to read that.
        self._leaves = 0.2 * (world.chance.random() < site.shape.restless)
        self.reads_for = world.chance.choice((0.3, 2.0)) * (world.chance.random() < site.shape.sluggish)
        #: Start times of connections, and the redacted lines it was notified of: its number, the first and the last.
        self.connected_at: list[float] = []
        self.told: list[tuple[int, int, int]] = []
        self.ended_at = 0.0
        self.process = Process(name)

    def start(self) -> "Viewer":
        self.process.spawn(self._run)
        return self

    def _new_connection(self) -> http.client.HTTPConnection:
        self.connected_at.append(loop.time)
        # A gap has no id of its own. After the preceding id, it is sent again.
        reached = getattr(self, "_looked_at", 0) or int(self._cursor or 0)
        self.seen = [each for each in self.seen if each.kind != GAP or each.last <= reached]
        # Without a byte, it then reconnects, like the service's clients.
        return http.client.HTTPConnection(BALANCER, timeout=45.0)

    def _event(self, event: ServerSentEvent) -> None:
        super()._event(event)
        if event.event == "redact":
            ranges = json.loads(event.data)
            self.told.append((self.connections, ranges["from"], ranges["to"]))
        if event.event == "error" and ("gone from the store" in event.data or "lost the end" in event.data):
            # A filtered stream's id is that of an omitted line. The log can come back.
            self.ending = ""

    def _tell(self, before: int) -> None:
        for seen in self.seen[before:]:
            world.tell(self.name, f"{seen.kind} {seen.number} {seen.last or ''} {seen.message}")
        world.count("deliveries", len(self.seen) - before)

    def _feed(self, decoder: Any, chunk: bytes) -> None:
        before, chance = len(self.seen), world.chance.random
        has_faults = self._site.quiet_since <= self._site.began
        leaves = has_faults and chance() < self._leaves
        # Anywhere, even within an event.
        super()._feed(decoder, chunk[: int(chance() * len(chunk))] if leaves else chunk)
        self._tell(before)
        self.ended_at = loop.time
        # The other events of a filtered stream have few bytes, so many of them wait in the kernel.
        if has_faults and self.reads_for and len(self.seen) > before:
            time.sleep(self.reads_for)
        if leaves and not self.ending:
            raise ConnectionResetError("it leaves")


class FilteredViewer(Viewer, FilteredWatcher):
    """A viewer of the lines that match ``query``."""

    def __init__(self, site: Site, job: JobRef, name: str, query: Query) -> None:
        asked = {name: str(value).lower() for name, value in query._asdict().items() if value}
        super().__init__(site, job, name, query=urlencode(asked))
        self.query = query


class WaitViewer(FilteredViewer, WaitLoop):
    """Repeatedly waits for the lines that match ``query``."""

    @property
    def _path(self) -> str:
        # Waiting a second at a time would be a request per second.
        return super()._path.replace("timeout=1", "timeout=20")

    def _answer(self, answer: Any) -> None:
        before = len(self.seen)
        super()._answer(answer)
        self._tell(before)


class WorkflowViewer(Client):
    """Tracks the workflow's jobs by its events."""

    def __init__(self, site: Site, name: str, seed: int) -> None:
        super().__init__(BALANCER, 80, partial(site.token, name), WORKFLOW, seed)
        self.connected_seconds = site.shape.connected
        self.process = Process(name)

    def start(self) -> None:
        self.process.spawn(self.run)


def in_process(name: str, function: Callable[[], Any], seconds: float) -> Any:
    """The result of ``function`` in the judge's process. Raises TimeoutError, or RuntimeError after a violation."""
    found: list[Any] = []

    def run() -> None:
        try:
            found.append(function())
        except Exception as error:
            found.append(error)

    Process(name).spawn(run)
    until = loop.time + seconds
    while not found:
        if loop.time >= until or world.violations:
            raise (RuntimeError if world.violations else TimeoutError)(f"{name} did not end")
        gevent.sleep(0.1)
    if isinstance(found[0], Exception):
        raise found[0]
    return found[0]
