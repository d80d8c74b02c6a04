"""Fixtures: a receiver, and a notifier in a thread."""

import asyncio
import contextlib
import ssl
import threading
import time
from collections.abc import Iterator

import orjson
import pytest

from chronoverse.archive.reader import ArchiveReader
from chronoverse.cli.notify.notifier import Notifier
from chronoverse.history.scans.app import ScanApp
from chronoverse.history.scans.scan import SummaryScan
from chronoverse.joblog.labels import check_labels
from chronoverse.joblog.model import JobRef, Line, Status, iso_timestamp
from chronoverse.joblog.watches import DEFAULT_STATUSES, Watch
from tests.support.bench import Bench, ticking
from tests.support.receiver import Receiver

WORKFLOW = "nightly"
URL = "https://logs.example"


@pytest.fixture(autouse=True)
def _no_running_loop() -> Iterator[None]:
    """Hides the event loop of the browser's driver, with which ``asyncio.run`` would fail in this thread."""
    running = asyncio._get_running_loop()
    asyncio._set_running_loop(None)
    yield
    asyncio._set_running_loop(running)


class Site:
    """A store, a receiver and a notifier, whose clock is ``now`` seconds ahead."""

    def __init__(self, bench: Bench, receiver: Receiver) -> None:
        tick, self._ago = ticking(), 0.0
        self.store = bench.new_store(clock=lambda: tick() - self._ago)
        #: The notifier's store.
        self.judge = bench.new_store(clock=time.time)
        self.receiver = receiver
        self.now = 0.0
        self._stop = threading.Event()
        self._app = ScanApp(self.store, ArchiveReader(None, self.store.chunks.chunk), 65_536)
        self._thread: threading.Thread | None = None

    def summarize(self, ref: JobRef) -> dict[str, object]:
        scan = SummaryScan(workflow_id=ref.workflow_id, job_id=ref.job_id, asked_at=time.monotonic(), patience=9)
        found: dict[str, object] = orjson.loads(self._app.read_summary(scan))
        return found

    def notifier(self) -> Notifier:
        hosts, context = {"127.0.0.1": True}, ssl.create_default_context()
        return Notifier(
            self.judge,
            self.summarize,
            hosts,
            URL,
            context,
            self._stop,
            clock=lambda: time.time() + self.now,
            step_seconds=0.05,
        )

    def start(self) -> None:
        self._thread = threading.Thread(target=self.notifier().run)
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        if self._thread:
            self._thread.join(30)
            assert not self._thread.is_alive()
        self._thread = None
        self._stop.clear()

    def watch(
        self,
        watch_id: str = "main",
        on: str = "end",
        *,
        status: tuple[str, ...] | None = None,
        label: dict[str, str] | None = None,
        same: tuple[str, ...] = (),
        seconds: int | None = None,
        url: str = "",
        secret: str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw",
    ) -> Watch:
        watch = Watch(
            workflow_id=WORKFLOW,
            id=watch_id,
            on=on,
            url=url or self.receiver.url,
            secret=secret,
            status=list(DEFAULT_STATUSES[on] if status is None else status),
            label=label or {},
            same=list(same),
            seconds=seconds,
        )
        self.store.watches.put(watch)
        return watch

    def run(
        self,
        job_id: str,
        status: Status,
        *messages: str,
        labels: dict[str, str] | None = None,
        seconds_ago: float = 0,
        seconds_behind: float = 0,
    ) -> JobRef:
        """Writes a job that ends with this status, or is RUNNING. It began and printed ``seconds_ago``.

        Its runner's clock is ``seconds_behind``.
        """
        ref, self._ago = JobRef(WORKFLOW, job_id), seconds_ago
        attempt = self.store.open(ref, f"token-{job_id}", labels=check_labels(labels or {}))
        self._ago = 0.0
        at = iso_timestamp(time.time() - seconds_ago - seconds_behind)
        lines = [Line(number, at, text, "stdout") for number, text in enumerate(messages or ("a line",), 1)]
        self.store.append(attempt, lines)
        if status.terminal:
            code = {Status.COMPLETED: 0, Status.FAILED: 1}.get(status)
            self.store.finish(attempt, status, code, 0, len(lines) + 1)
        return ref

    def told(self) -> list[tuple[str, str | None]]:
        """Type and job of each message."""
        return [
            (each.json["type"], (each.json["data"]["job"] or {}).get("id")) for each in list(self.receiver.messages)
        ]


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with Receiver() as receiver:
        yield receiver


@pytest.fixture
def site(bench: Bench, receiver: Receiver) -> Iterator[Site]:
    site = Site(bench, receiver)
    with contextlib.ExitStack() as stack:
        stack.callback(site.stop)
        yield site
