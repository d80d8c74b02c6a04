"""A store, an archive, or both are lost, and recovered by the commands of docs/recovery.md as printed."""

import json
import re
import shlex
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, Final

import httpx
import pytest

from chronoverse.archive.object_store import FileObjectStore
from chronoverse.archive.store_history import MARK
from chronoverse.joblog.model import JobRef, Status
from chronoverse.store import Store
from tests.support.bench import make_lines
from tests.support.commands import PATIENCE_SECONDS, call_main, environ
from tests.support.guarded_server import GuardedServer
from tests.support.ports import free_port
from tests.support.service import ROOT, Service

pytestmark = pytest.mark.long

WORKFLOW: Final = "nightly"


def page_block(containing: str) -> str:
    """The page's only block with this text."""
    page = (ROOT / "docs" / "recovery.md").read_text("utf-8")
    (found,) = (each for each in re.findall(r"^ *```sh\n(.*?)^ *```$", page, re.M | re.S) if containing in each)
    return "\n".join(line.strip() for line in found.splitlines())


class Site:
    """A store on its own server, an archive, a service, and somebody who runs the page's commands."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self.objects = FileObjectStore(directory / "archive")
        self._port = free_port()
        self.redis = GuardedServer(directory / "redis", shutil.which("redis-server"), "--port", str(self._port))
        (directory / "backup" / "archive").mkdir(parents=True)
        settings: dict[str, Any] = {"archive_url": (directory / "archive").as_uri(), "lease_seconds": 2}
        self.service = Service(directory / "service", self.url("service"), **settings)
        # Every ended log is read from the archive.
        self._variables = {
            "CHRONOVERSE_URL": "",
            "CHRONOVERSE_REDIS_URL": self.url("archiver"),
            "CHRONOVERSE_ARCHIVE_URL": settings["archive_url"],
            "CHRONOVERSE_HOT_SECONDS": "0",
        }

    def url(self, user: str) -> str:
        """The store's URL for one of its users."""
        return f"redis://{user}:{self.redis.password_of(user)}@127.0.0.1:{self._port}/0"

    def run(self, containing: str) -> str:
        """Runs one of the page's blocks, with this site's values of the page's variables. Returns its stderr.

        A block that is one ``chronoverse`` command runs in this process, which takes a tenth of the CPU time.
        """
        block = page_block(containing)
        if block.startswith("chronoverse "):
            return self.command(*shlex.split(block)[1:]).stderr
        exports = page_block("export ARCHIVE=")
        values = {f"redis://{user}:PASSWORD@127.0.0.1:6379/0": self.url(user) for user in ("archiver", "admin")}
        values |= {"/srv/archive": f"{self._directory}/archive", "/srv/backup": f"{self._directory}/backup"}
        values |= {"/var/lib/redis": str(self.redis.directory)}
        for shown, value in values.items():
            assert shown in exports
            exports = exports.replace(shown, value)
        done = subprocess.run(
            ["sh", "-ec", f"{exports}\n{block}"],
            env=environ(self.service, **self._variables),
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=PATIENCE_SECONDS,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stderr

    def command(self, *arguments: str) -> "subprocess.CompletedProcess[str]":
        """Runs ``chronoverse …`` in this process."""
        done = call_main(*arguments, environ=environ(self.service, **self._variables))
        assert done.returncode == 0, done.stderr
        return done

    def write_jobs(self, *numbers: int) -> list[str]:
        """Writes and archives ended jobs of a few lines each. Returns their ids."""
        with closing(Store(self.url("runner"))) as store:
            for number in numbers:
                attempt = store.open(JobRef(WORKFLOW, f"job_{number}"), "token")
                store.append(attempt, make_lines(1, 3 + number))
                store.finish(attempt, (Status.COMPLETED, Status.FAILED)[number % 2], number % 2, 0, 4 + number)
        self.command("archive", "--once")
        return [f"job_{number}" for number in numbers]

    def answers(self, jobs: list[str]) -> dict[str, str]:
        """What the service tells of the workflow and of these jobs."""
        headers = {"Authorization": f"Bearer {self.service.token()}"}
        with httpx.Client(base_url=f"{self.service.url}/workflows/{WORKFLOW}", headers=headers, timeout=60) as client:
            rests = ("", "/logs", "/logs/raw", "/events")
            paths = ["/jobs", *(f"/jobs/{job}{rest}" for job in jobs for rest in rests)]
            found = {path: client.get(path).raise_for_status().text for path in paths}
        return {path: re.sub("retry: [0-9]+", "", text) for path, text in found.items()}

    def import_and_confirm(self, jobs: list[str], before: dict[str, str]) -> None:
        """The archiver and the import notice that the store went back. Then, everything is as before."""
        # Archivers notice the mark within two minutes. Pretend that they have.
        self.objects.put(MARK, json.dumps({"mark": time.time()}).encode())
        assert "the store lost data" in self.run("archive --import")
        assert self.answers(jobs) == before
        assert self.command("retention", WORKFLOW).stdout == "7776000 s\n"
        self.run("archive --confirm-store")
        assert "the store lost data" not in self.run("archive --import")

    def restore_store(self) -> None:
        self.redis.kill()
        self.run("appendonlydir")
        self.redis.start()
        self.run("CONFIG SET appendonly")

    def restore_archive(self) -> None:
        for each in list(self.objects.list("")):
            self.objects.delete(each.name)
        self.run("BACKUP/archive/.")


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    site = Site(tmp_path)
    with site.redis, site.service:
        yield site


@pytest.mark.timeout(300)
def test_the_page_as_printed(site: Site) -> None:
    """The archive, the store and then both are lost, under a single service."""
    first = site.write_jobs(0, 1)
    site.command("retention", WORKFLOW, "90d")
    backed_up = site.answers(first)
    site.run("--rdb")
    site.restore_archive()
    site.run("archive --verify")
    assert site.answers(first) == backed_up

    jobs = [*first, *site.write_jobs(2)]
    before = site.answers(jobs)
    # The store is lost, first without a copy of it, then with one.
    site.redis.kill()
    site.redis.start()
    assert site.redis.ask("DBSIZE") == 0
    site.import_and_confirm(jobs, before)
    site.restore_store()
    assert site.redis.ask("ZCARD", f"chronoverse:{{{WORKFLOW}}}:jobs") == len(first)
    site.import_and_confirm(jobs, before)

    site.restore_archive()
    site.restore_store()
    site.import_and_confirm(first, backed_up)
