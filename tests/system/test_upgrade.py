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

from tests.support.servers import RedisServer
from tests.support.service import ROOT, SECRET, Service
from tests.support.waiting import wait_until

pytestmark = pytest.mark.long

#: The commit of the last release, 0.2.0.
RELEASE: Final = "f9ff07ed"
#: The repository with the history. ``.ci/run`` names it, because it tests a copy of the tree without one.
HISTORY: Final = Path(os.environ.get("CHRONOVERSE_HISTORY", ROOT / ".git"))
#: Lines of each job. They take so long that the node is exchanged in the middle.
LINES: Final = 60
JOB: Final = f"for i in $(seq {LINES}); do echo line $i; sleep 0.1; done"
EXPECTED: Final = [f"line {number}" for number in range(1, LINES + 1)]
#: Seconds for anything on a busy machine.
PATIENCE_SECONDS: Final = 90.0


@pytest.fixture(scope="module")
def old_tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The code of the last release."""
    command = ["git", "-c", "safe.directory=*", f"--git-dir={HISTORY}", "archive", RELEASE]
    archive = subprocess.run(command, capture_output=True)
    if archive.returncode:
        pytest.skip(f"the commit {RELEASE} is not here: a shallow clone, or no repository")
    directory = tmp_path_factory.mktemp("release")
    with tarfile.open(fileobj=BytesIO(archive.stdout)) as files:
        files.extractall(directory, filter="data")
    return directory


class Side:
    """The commands of one version, for the store and the archive of this test."""

    def __init__(self, tree: Path, service: Service, processes: ExitStack, **settings: str) -> None:
        self.tree = tree
        self._service = service
        self._processes = processes
        self._settings = settings

    def start(self, *arguments: str) -> "subprocess.Popen[str]":
        """Starts ``chronoverse …``. It is killed at the end if it runs then."""
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
    """What the process has printed to stdout until its end, which is a good one."""
    printed, errors = process.communicate(timeout=PATIENCE_SECONDS)
    assert process.returncode == 0, errors
    return printed.splitlines()


@pytest.fixture
def processes() -> Iterator[ExitStack]:
    """What ends with the test."""
    with ExitStack() as stack:
        yield stack


@pytest.mark.parametrize("way", ["upgrade", "rollback"])
def test_runners_and_viewers_of_both_see_a_node_exchanged(
    old_tree: Path, processes: ExitStack, tmp_path: Path, way: str
) -> None:
    """No line is lost or doubled, live and afterwards, and the other version reads what this one has archived."""
    redis = processes.enter_context(RedisServer(tmp_path, None))
    archive_url = f"file://{tmp_path}/archive"
    trees = {"old": old_tree, "new": ROOT}
    first, second = ("old", "new") if way == "upgrade" else ("new", "old")
    service = Service(tmp_path, redis.url, tree=trees[first], archive_url=archive_url)
    processes.callback(service.kill)
    service.start()
    runners = {
        name: Side(tree, service, processes, CHRONOVERSE_REDIS_URL=redis.url, CHRONOVERSE_JWT_SECRET=SECRET.decode())
        for name, tree in trees.items()
    }
    viewers = {name: Side(tree, service, processes, CHRONOVERSE_URL=service.url) for name, tree in trees.items()}

    running = [
        side.start("run", "--workflow", "w", "--job", name, "--", "sh", "-c", JOB) for name, side in runners.items()
    ]
    for name in trees:
        wait_until(partial(exists, service, name), PATIENCE_SECONDS, f"the job of the {name} runner")
    following = [side.start("logs", "-f", "w", name) for name in trees for side in viewers.values()]
    wait_until(lambda: service.metric("chronoverse_streams_open") >= len(following), PATIENCE_SECONDS, "all viewers")
    service.stop()
    service.tree = trees[second]
    service.start()

    assert [lines_of(process) for process in (*running, *following)] == [EXPECTED] * 6
    archiver = Side(ROOT, service, processes, CHRONOVERSE_REDIS_URL=redis.url, CHRONOVERSE_ARCHIVE_URL=archive_url)
    lines_of(archiver.start("archive", "--once"))
    pages = [read_page(service, name) for name in trees]
    service.stop()
    service.tree = trees[first]
    service.start()
    assert pages == [read_page(service, name) for name in trees]
    assert [[line["message"] for line in page] for page in pages] == [EXPECTED] * 2


def get(service: Service, path: str) -> httpx.Response:
    """An answer of the service about workflow ``w``."""
    headers = {"Authorization": f"Bearer {service.token()}"}
    return httpx.get(f"{service.url}/workflows/w/jobs/{path}", headers=headers, timeout=PATIENCE_SECONDS)


def exists(service: Service, job: str) -> bool:
    """Whether the job has begun."""
    return get(service, job).status_code == 200


def read_page(service: Service, job: str) -> list[dict[str, Any]]:
    """The whole log as one page."""
    logs: list[dict[str, Any]] = get(service, f"{job}/logs?limit=1000").json()["logs"]
    return logs
