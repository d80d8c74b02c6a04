"""Fixtures that run the command line, in the tests' process or in another one."""

import os
import pty
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import pytest

from tests.support.commands import call_main
from tests.support.servers import RedisServer, running
from tests.support.service import Service, serving

ROOT: Final = Path(__file__).parents[2]
COMMAND: Final = (sys.executable, "-m", "chronoverse")
#: Time limit of each of these commands on a busy machine, in seconds.
PATIENCE_SECONDS: Final = 60

Cli = Callable[..., "subprocess.CompletedProcess[str]"]


def environ(home: Path, **settings: str) -> dict[str, str]:
    """An environment whose only Chronoverse settings are ``settings``, named without their prefix."""
    inherited = {name: text for name, text in os.environ.items() if not name.startswith("CHRONOVERSE_")}
    named = {f"CHRONOVERSE_{name}": text for name, text in settings.items()}
    return {**inherited, "PYTHONPATH": str(ROOT), "CHRONOVERSE_DATA_DIR": str(home), **named}


@pytest.fixture(scope="session")
def backend(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """The store of the shared service. Each module uses its own workflows."""
    with running(tmp_path_factory.mktemp("store")) as server:
        yield server


@pytest.fixture(scope="session")
def service(tmp_path_factory: pytest.TempPathFactory, backend: RedisServer) -> Iterator[Service]:
    """The service of all modules, with an archive."""
    directory = tmp_path_factory.mktemp("service")
    with serving(directory, backend.url, archive_url=(directory / "archive").as_uri()) as service:
        yield service


@pytest.fixture
def terminal() -> Iterator[tuple[int, int]]:
    """A terminal's two ends: ours, and the one for a command."""
    ends = pty.openpty()
    yield ends
    for end in ends:
        os.close(end)


@pytest.fixture
def cli(tmp_path: Path) -> Cli:
    """Runs the command line to completion in this process. Each test has its own data directory."""

    def call(*argv: str, **settings: str) -> "subprocess.CompletedProcess[str]":
        return call_main(*argv, environ=environ(tmp_path, **settings))

    return call


@pytest.fixture
def cli_process(tmp_path: Path) -> Cli:
    """Like ``cli``, but in another process, as users start it."""

    def call(*argv: str, **settings: str) -> "subprocess.CompletedProcess[str]":
        command = [*COMMAND, *argv]
        return subprocess.run(
            command, env=environ(tmp_path, **settings), capture_output=True, text=True, timeout=PATIENCE_SECONDS
        )

    return call
