"""Fixtures: one service and one store for all tests of the page."""

import itertools
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import pytest

from chronoverse.joblog.labels import Labels
from chronoverse.joblog.model import JobRef, Line, Status, iso_timestamp
from chronoverse.store import Store
from tests.browser.browsing import Tab
from tests.support.bench import ticking
from tests.support.servers import RedisServer, running
from tests.support.service import ROOT, Service, serving
from tests.support.tools import unavailable

if TYPE_CHECKING:
    from playwright.sync_api import Browser

_numbers = itertools.count(1)

#: A line: its message, its stream, and whether it is partial.
Written = tuple[str, str, bool]


@pytest.fixture(scope="session")
def page_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """The service's store."""
    with running(tmp_path_factory.mktemp("page-store")) as server:
        yield server


@pytest.fixture(scope="session")
def page_service(
    browser: "Browser", tmp_path_factory: pytest.TempPathFactory, page_server: RedisServer
) -> Iterator[Service]:
    """The service; not started without a browser."""
    directory = tmp_path_factory.mktemp("page")
    archive = (directory / "archive").as_uri()
    with serving(directory, page_server.url, heartbeat_seconds=1, archive_url=archive) as service:
        yield service


class Job:
    """A job that a test writes step by step."""

    def __init__(self, store: Store, job_id: str, workflow_id: str = "page", labels: Labels = ()) -> None:
        self.ref = JobRef(workflow_id, job_id)
        self.last = 0
        self._waited = 0.0
        self._store = store
        self._attempt = store.open(self.ref, "token", labels=labels)

    def lines(self, *messages: str, stream: str = "stdout") -> "Job":
        """Writes complete lines of one stream."""
        return self.write((message, stream, False) for message in messages)

    def write(self, written: Iterator[Written]) -> "Job":
        """Writes lines of any kind, 1,000 per round trip."""
        while batch := list(itertools.islice(written, 1000)):
            stamp = iso_timestamp(1_772_532_000 + self._waited + self.last / 10)
            lines = [Line(self.last + n, stamp, *each) for n, each in enumerate(batch, 1)]
            self._store.append(self._attempt, lines)
            self.last += len(lines)
        return self

    def lose(self) -> "Job":
        """Declares the next line lost."""
        self.last = self._store.append_lost(self._attempt, self.last + 1, self.last + 1) - 1
        return self

    def wait(self, seconds: float) -> "Job":
        """Delays the next line's timestamp. Lines written individually are 0.1 s apart."""
        self._waited += seconds
        return self

    def end(self, status: Status = Status.COMPLETED, exit_code: int = 0) -> "Job":
        """Ends the job."""
        self._store.finish(self._attempt, status, exit_code, 0, self.last + 1)
        return self


@pytest.fixture(scope="session")
def page_store(page_server: RedisServer) -> Iterator[Store]:
    """The store that runners write to. No leases are renewed: they outlive every test."""
    store = Store(page_server.url, clock=ticking(), lease_seconds=600)
    yield store
    store.close()


@pytest.fixture
def job(page_store: Store) -> Job:
    """A new empty job for each test."""
    return Job(page_store, f"job-{next(_numbers)}")


@pytest.fixture(scope="session")
def big(page_store: Store) -> Job:
    """A job of 25,000 lines that contain their own numbers. Every seventh line is on stderr."""
    job = Job(page_store, "big")
    kinds = (("stderr" if number % 7 == 0 else "stdout") for number in range(1, 25_001))
    return job.write((f"line {number}.", kind, False) for number, kind in enumerate(kinds, 1)).end()


@pytest.fixture
def open_tab(browser: "Browser", page_service: Service) -> Iterator[Callable[..., Tab]]:
    """Opens tabs, each in its own profile. Fails at teardown if any tab had an error."""
    contexts, tabs = [], []

    def open_tab(job: JobRef | None = None, fragment: str = "") -> Tab:
        context = browser.new_context(viewport={"width": 1280, "height": 760})
        context.grant_permissions(["clipboard-read", "clipboard-write"])
        tab = Tab(context, page_service)
        contexts.append(context)
        tabs.append(tab)
        return tab.open(job, fragment) if job else tab

    yield open_tab
    for context in contexts:
        context.close()
    assert [fault for tab in tabs for fault in tab.faults] == []


@pytest.fixture(scope="session")
def axe() -> str:
    """The source of axe-core, which ``npm install --prefix tests/clients`` installs."""
    path = ROOT / "tests" / "clients" / "node_modules" / "axe-core" / "axe.min.js"
    if not path.is_file():
        unavailable("npm install --prefix tests/clients was not run")
    return path.read_text("utf-8")
