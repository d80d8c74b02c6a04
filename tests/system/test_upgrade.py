"""The last release and this version on one store: what docs/versions.md promises for an upgrade and a rollback."""

import os
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any, Final

import httpx
import pytest

from tests.support.commands import call_main, environ
from tests.support.servers import RedisServer
from tests.support.service import ROOT, SECRET, Service
from tests.support.tools import unavailable
from tests.support.waiting import wait_until

pytestmark = pytest.mark.long

#: The commit of the last release, 0.2.0.
RELEASE: Final = "f9ff07ed"
#: The repository with the history. ``.ci/run`` sets it, because it tests a copy of the tree without one.
HISTORY: Final = Path(os.environ.get("HISTORY_REPOSITORY", ROOT / ".git"))
#: A job that prints lines until the file exists, so that the node is replaced midway.
JOB: Final = 'i=0; until [ -e "$1" ]; do i=$((i + 1)); echo line $i; sleep 0.2; done'
#: Time limit of any event on a busy machine, in seconds.
PATIENCE_SECONDS: Final = 90.0


@pytest.fixture(scope="module")
def old_tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The code of the last release."""
    command = ["git", "-c", "safe.directory=*", f"--git-dir={HISTORY}", "archive", RELEASE]
    archive = subprocess.run(command, capture_output=True)
    if archive.returncode:
        unavailable(f"the commit {RELEASE} is not here: a shallow clone, or no repository")
    directory = tmp_path_factory.mktemp("release")
    with tarfile.open(fileobj=BytesIO(archive.stdout)) as files:
        files.extractall(directory, filter="data")
    return directory


class Side:
    """One version's commands, for this test's store and archive."""

    def __init__(self, tree: Path, service: Service, processes: ExitStack, **settings: str) -> None:
        self.tree = tree
        self._service = service
        self._processes = processes
        self._settings = settings

    def start(self, *arguments: str) -> "subprocess.Popen[str]":
        """Starts ``chronoverse …``, to be killed at the end if it is still running."""
        clean = {name: value for name, value in os.environ.items() if not name.startswith("CHRONOVERSE_")}
        ours = {
            "CHRONOVERSE_DATA_DIR": str(self._service.data_dir),
            "CHRONOVERSE_TOKEN": self._service.token(),
            "PYTHONPATH": str(self.tree),
        }
        process = subprocess.Popen(
            [sys.executable, "-m", "chronoverse", *arguments],
            cwd=self.tree,
            env=clean | ours | self._settings,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self._processes.enter_context(process)
        self._processes.callback(process.kill)
        return process


def lines_of(process: "subprocess.Popen[str]") -> list[str]:
    """The lines that the process prints to stdout until it exits successfully."""
    printed, errors = process.communicate(timeout=PATIENCE_SECONDS)
    assert process.returncode == 0, errors
    return printed.splitlines()


@pytest.fixture
def processes() -> Iterator[ExitStack]:
    """Everything that ends with the test."""
    with ExitStack() as stack:
        yield stack


def exchange(service: Service, tree: Path) -> None:
    """Stops the node, and starts it with another version."""
    service.stop()
    service.tree = tree
    service.start()


# The service starts four times.
@pytest.mark.timeout(300)
def test_runners_and_viewers_of_both_versions_survive_upgrade_and_rollback(
    old_tree: Path, processes: ExitStack, tmp_path: Path
) -> None:
    """An upgrade and a rollback neither lose nor duplicate lines, live or later. Both versions read the archive."""
    redis = processes.enter_context(RedisServer(tmp_path, None))
    archive_url = f"file://{tmp_path}/archive"
    trees, over = {"old": old_tree, "new": ROOT}, tmp_path / "over"
    service = Service(tmp_path, redis.url, tree=old_tree, archive_url=archive_url)
    processes.callback(service.kill)
    service.start()
    runners = {
        name: Side(tree, service, processes, CHRONOVERSE_REDIS_URL=redis.url, CHRONOVERSE_JWT_SECRET=SECRET.decode())
        for name, tree in trees.items()
    }
    viewers = {name: Side(tree, service, processes, CHRONOVERSE_URL=service.url) for name, tree in trees.items()}

    def all_view() -> bool:
        return service.metric("chronoverse_streams_open") >= len(trees)

    running = {
        name: side.start("run", "--workflow", "w", "--job", name, "--", "sh", "-c", JOB, "sh", str(over))
        for name, side in runners.items()
    }
    for name in trees:
        wait_until(partial(exists, service, name), PATIENCE_SECONDS, f"the job of the {name} runner")
    # Each runner's job has a viewer of the other version.
    following = {job: viewers[name].start("logs", "-f", "w", job) for job, name in (("old", "new"), ("new", "old"))}
    wait_until(all_view, PATIENCE_SECONDS, "all viewers")
    for tree in (ROOT, old_tree):
        before = {name: len(read_page(service, name)) for name in trees}
        exchange(service, tree)
        wait_until(all_view, PATIENCE_SECONDS, "all viewers are back")
        for name, count in before.items():
            wait_until(partial(has_more, service, name, count), PATIENCE_SECONDS, f"more lines of the {name} runner")
    over.touch()

    expected = {}
    for name in trees:
        expected[name] = lines_of(running[name])
        assert expected[name] == [f"line {number}" for number in range(1, len(expected[name]) + 1)]
        assert lines_of(following[name]) == expected[name]
    ours = {"CHRONOVERSE_URL": "", "CHRONOVERSE_REDIS_URL": redis.url, "CHRONOVERSE_ARCHIVE_URL": archive_url}
    assert call_main("archive", "--once", environ=environ(service, **ours)).returncode == 0
    pages = {name: read_page(service, name) for name in trees}
    exchange(service, ROOT)
    assert pages == {name: read_page(service, name) for name in trees}
    assert {name: [line["message"] for line in page] for name, page in pages.items()} == expected


def get(service: Service, path: str) -> httpx.Response:
    """The service's answer about workflow ``w``."""
    headers = {"Authorization": f"Bearer {service.token()}"}
    url = f"{service.url}/workflows/w/jobs/{path}"
    return httpx.get(url, headers=headers, timeout=PATIENCE_SECONDS, verify=service.verify)


def exists(service: Service, job: str) -> bool:
    """Whether the job has started."""
    return get(service, job).status_code == 200


def read_page(service: Service, job: str) -> list[dict[str, Any]]:
    """The whole log as one page."""
    logs: list[dict[str, Any]] = get(service, f"{job}/logs?limit=1000").json()["logs"]
    return logs


def has_more(service: Service, job: str, count: int) -> bool:
    """Whether the log has more than that many lines."""
    return len(read_page(service, job)) > count
