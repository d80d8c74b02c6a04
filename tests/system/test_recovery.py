"""A store, an archive, or both are lost, and recovered by the commands of docs/recovery.md as printed."""

import contextlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, Final

import httpx
import pytest

from chronoverse.archive.object_store import FileObjectStore, ObjectStore
from chronoverse.archive.schemes import open_object_store
from chronoverse.archive.store_history import MARK
from chronoverse.auth.tokens import ADMIN, READ, WRITE
from chronoverse.joblog.model import Job, JobRef, Status
from chronoverse.store import Store
from tests.archive.s3server import BUCKET, s3_server
from tests.support.bench import make_lines
from tests.support.commands import call_main, chronoverse_argv, environ
from tests.support.guarded_server import GuardedServer
from tests.support.ports import free_port
from tests.support.service import ROOT, Service, serving
from tests.support.waiting import deadline, wait_until
from tests.web.routes.wire import Stream, blocks

pytestmark = pytest.mark.long

#: Time limits in seconds: a command on a busy machine, and the import of a thousand jobs.
PATIENCE_SECONDS: Final = 120
WORKFLOW: Final = "nightly"
#: Jobs running when the store is emptied, lines that each has printed by then, and bytes per line. Together they
#: exceed the minimum limit of a log in the store.
RUNNING: Final = 2
LINES: Final = 12_000
LINE_BYTES: Final = 400
STATUSES: Final = (Status.COMPLETED, Status.FAILED, Status.CANCELED)


def page_block(containing: str) -> str:
    """The page's only block with this text."""
    page = (ROOT / "docs" / "recovery.md").read_text("utf-8")
    (found,) = (each for each in re.findall(r"^ *```sh\n(.*?)^ *```$", page, re.M | re.S) if containing in each)
    return "\n".join(line.strip() for line in found.splitlines())


class Site:
    """A store on its own server, an archive, a service, and somebody who runs the page's commands."""

    def __init__(self, directory: Path, archive_url: str = "") -> None:
        self.directory = directory
        self.archive = directory / "archive"
        self.port = free_port()
        self.redis = GuardedServer(directory / "redis", shutil.which("redis-server"), "--port", str(self.port))
        self.archive_url = archive_url or self.archive.as_uri()
        (directory / "backup" / "archive").mkdir(parents=True)
        #: Commands that a shell has already run.
        self._ran: set[str] = set()

    def url(self, user: str) -> str:
        """The store's URL for one of its users."""
        return f"redis://{user}:{self.redis.password_of(user)}@127.0.0.1:{self.port}/0"

    def exports(self) -> str:
        """The page's variables, with this site's values."""
        text = page_block("export ARCHIVE=")
        values = {f"redis://{user}:PASSWORD@127.0.0.1:6379/0": self.url(user) for user in ("archiver", "admin")}
        values |= {"file:///srv/archive": self.archive_url, "/srv/archive": str(self.archive)}
        values |= {"/var/lib/redis": str(self.redis.directory), "/srv/backup": str(self.directory / "backup")}
        for shown, value in values.items():
            assert shown in text
            text = text.replace(shown, value)
        return text

    def shell(self, command: str) -> "subprocess.CompletedProcess[str]":
        """Runs one of the page's commands as printed.

        A chronoverse command that a shell has run once later runs in this process, which takes a tenth of the CPU time.
        """
        if command in self._ran and command.startswith("chronoverse ") and "\n" not in command:
            return self.command(*shlex.split(command)[1:])
        self._ran.add(command)
        tools = self.directory / "bin"
        tools.mkdir(exist_ok=True)
        program = tools / "chronoverse"
        program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m chronoverse "$@"\n')
        program.chmod(0o755)
        done = subprocess.run(
            ["sh", "-ec", f"{self.exports()}\n{command}"],
            env=self.variables({"PATH": f"{tools}:{os.environ['PATH']}"}),
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=PATIENCE_SECONDS,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done

    def command(self, *arguments: str, **variables: str) -> "subprocess.CompletedProcess[str]":
        """Runs ``chronoverse …`` in this process."""
        done = call_main(*arguments, environ=self.variables(variables))
        assert done.returncode == 0, done.stderr
        return done

    def variables(self, more: dict[str, str]) -> dict[str, str]:
        variables = {
            "CHRONOVERSE_URL": "",
            "CHRONOVERSE_REDIS_URL": self.url("archiver"),
            "CHRONOVERSE_ARCHIVE_URL": self.archive_url,
            "CHRONOVERSE_LEASE_SECONDS": "2",
            # Every ended log is read from the archive.
            "CHRONOVERSE_HOT_SECONDS": "0",
        }
        return environ(Service(self.directory), **{**variables, **more})

    @contextlib.contextmanager
    def serving(self) -> Iterator[httpx.Client]:
        settings: dict[str, Any] = {"archive_url": self.archive_url, "lease_seconds": 2}
        with serving(self.directory / "service", self.url("service"), **settings) as service:
            headers = {"Authorization": f"Bearer {service.token(scopes=[READ, WRITE, ADMIN])}"}
            with httpx.Client(base_url=service.url, headers=headers, timeout=60) as client:
                self.service = service
                yield client

    def restart(self, *, emptied: bool = False) -> None:
        self.redis.kill()
        if emptied:
            (self.redis.directory / "dump.rdb").unlink(missing_ok=True)
        self.redis.start()


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    site = Site(tmp_path)
    with site.redis:
        yield site


def write_jobs(site: Site, numbers: range) -> list[JobRef]:
    """Writes ended jobs of a few lines each, some of them failed."""
    jobs = [JobRef(WORKFLOW, f"job_{number}") for number in numbers]
    with contextlib.closing(Store(site.url("runner"))) as store:
        for number, job in zip(numbers, jobs, strict=True):
            attempt = store.open(job, "token")
            count = 3 + number % 5
            store.append(attempt, make_lines(1, count, f"error: number {number}" if number % 2 else "step"))
            status = STATUSES[number % 3]
            store.finish(attempt, status, (0, 1, None)[number % 3], number % 2, count + 1)
    return jobs


def ask(client: httpx.Client, path: str) -> httpx.Response:
    """The answer. On a busy machine, a service can temporarily reject a search, which is then retried."""
    in_time = deadline(PATIENCE_SECONDS, f"{path} is not refused with 503")
    while (answer := client.get(path)).status_code == 503 and in_time():
        time.sleep(1)
    return answer


def pages(client: httpx.Client, path: str) -> list[Any]:
    """All pages' answers, without their cursors."""
    found: list[Any] = []
    cursor: str | None = ""
    while cursor is not None:
        more = f"{'&' if '?' in path else '?'}cursor={cursor}" if cursor else ""
        answer = ask(client, path + more)
        assert answer.status_code == 200, answer.text
        page = answer.json()
        cursor = page.pop("cursor")
        found.append(page)
    return found


def all_routes(site: Site, client: httpx.Client, jobs: list[JobRef]) -> dict[str, Any]:
    """The answers of all routes for these jobs."""
    workflow = f"/workflows/{WORKFLOW}"
    found: dict[str, Any] = {path: pages(client, path) for path in ("/workflows", f"{workflow}/jobs?limit=100")}
    # The content of a search's page depends on the search's duration.
    hits = pages(client, f"{workflow}/logs/search?q=number&limit=100&per_job=100")
    found["search"] = [(each["id"], line) for page in hits for each in page["jobs"] for line in each["logs"]]
    headers = {"Authorization": client.headers["Authorization"]}
    for job in jobs:
        path = f"{workflow}/jobs/{job.job_id}"
        rests = ("", "/logs/raw?format=json", "/summary", "/wait")
        answers = [ask(client, path + rest) for rest in rests]
        found[path] = [(answer.status_code, re.sub('"request_id":"[^"]*"', "", answer.text)) for answer in answers]
        if (answer := ask(client, f"{path}/logs/new")).status_code == 200:
            # Nor are the new lines always on the first page.
            found[f"{path}/new"] = [line for page in pages(client, f"{path}/logs/new") for line in page["logs"]]
        else:
            found[f"{path}/new"] = answer.json()["detail"]
        # On a slow machine, a page of the history ends early.
        history = pages(client, f"{path}/logs/1/history")
        found[f"{path}/history"] = history[0]["shape"], [each for page in history for each in page["jobs"]]
        found[f"{path}/logs"] = pages(client, f"{path}/logs?limit=3")
        found[f"{path}/search"] = pages(client, f"{path}/logs/search?q=step")
        with Stream(site.service, f"{path}/events", headers) as stream:
            ended = stream.wait_end()
            found[f"{path}/events"] = [each for each in blocks(ended.body) if each.get("event") != "connected"]
    return found


@pytest.mark.timeout(900)
def test_a_store_that_was_emptied_under_load(site: Site) -> None:
    """Every route's answer about ended jobs is unchanged. Running ones continue after their archived lines."""
    count = int(os.environ.get("RECOVERY_JOBS", "6"))
    jobs = write_jobs(site, range(count))
    site.command("archive", "--once")
    with site.serving() as client:
        before = all_routes(site, client, jobs)
        ready = [site.directory / f"ready_{number}" for number in range(RUNNING)]
        go = site.directory / "go"
        runners = [start_runner(site, number, ready[number], go) for number in range(RUNNING)]
        try:
            wait_until(lambda: all(each.exists() for each in ready), PATIENCE_SECONDS, "the jobs have printed much")
            stored = partial(site.redis.ask, "XLEN")
            logs = [f"chronoverse:{{live}}:live_{number}:log" for number in range(RUNNING)]
            wait_until(lambda: min(map(stored, logs)) >= LINES, PATIENCE_SECONDS, "the store has all lines so far")

            def is_archived() -> object:
                site.command("archive", "--once", CHRONOVERSE_HOT_BYTES="1048576")
                return max(map(stored, logs)) <= LINES * 3 // 4

            # For 5 s, the archiver skips a job that changed while it was archived.
            wait_until(is_archived, PATIENCE_SECONDS, "the oldest lines are in the archive alone")
            site.redis.ask("FLUSHALL")
            said = site.shell(page_block("archive --import"))
            possible = "|".join(str(count + each) for each in range(RUNNING + 1))
            assert re.match(rf"({possible}) jobs imported, 0 of them LOST", said.stdout)
            go.touch()
            assert [runner.wait(PATIENCE_SECONDS) for runner in runners] == [0] * RUNNING
        finally:
            for runner in runners:
                runner.kill()
                runner.wait()
        for number in range(RUNNING):
            job = client.get(f"/workflows/live/jobs/live_{number}").json()
            assert (job["status"], job["attempt"] > 0, job["first_sequence_num"]) == ("COMPLETED", True, 1), job
            raw = client.get(f"/workflows/live/jobs/live_{number}/logs/raw?format=jsonl").text
            shown = [json.loads(line) for line in raw.splitlines()]
            texts = {int(each["message"].split()[0]): each["sequence_num"] for each in shown if "message" in each}
            # Everything archived, and everything printed after the store was emptied.
            assert all(text == sequence_num for text, sequence_num in texts.items())
            assert set(range(1, LINES // 4 + 1)) <= texts.keys()
            assert {LINES + 1, LINES + 10} <= texts.keys()
        site.redis.ask("DEL", *site.redis.ask("KEYS", "chronoverse:{live}:*"))
        assert client.get("/workflows").status_code == 200
        # Reading the list of workflows repairs it.
        assert all_routes(site, client, jobs) == before


def test_redacted_text_is_in_no_cached_answer(site: Site) -> None:
    """The store is emptied before an archiver has returned to the jobs. The service has answers from each state."""
    jobs = write_jobs(site, range(2))
    running = JobRef("live", "running")
    with contextlib.closing(Store(site.url("admin"), lease_seconds=600)) as store, site.serving() as client:
        store.append(store.open(running, "token"), make_lines(1, 20))
        all_routes(site, client, jobs)
        site.command("archive", "--once")
        all_routes(site, client, jobs)
        for number in (1, 2):
            for job in (*jobs, running):
                path = f"/workflows/{job.workflow_id}/jobs/{job.job_id}/logs/redact"
                assert client.post(path, json={"from": number, "to": number}).json()["redacted"] == 1
        before = all_routes(site, client, jobs)
        site.redis.ask("FLUSHALL")
        site.command("archive", "--import")
        counts = [job.redactions for job in store.get_jobs([*jobs, running]) if isinstance(job, Job)]
        assert counts == [2] * (len(jobs) + 1)
        assert all_routes(site, client, jobs) | {"/workflows": None} == before | {"/workflows": None}


def start_runner(site: Site, number: int, ready: Path, go: Path) -> "subprocess.Popen[bytes]":
    """Runs a job that prints :data:`LINES` lines, waits, and prints ten more."""
    code = (
        "import pathlib, sys, time\n"
        f"for n in range(1, {LINES + 1}): print(n, 'x' * {LINE_BYTES})\n"
        f"sys.stdout.flush(); pathlib.Path({str(ready)!r}).touch()\n"
        f"while not pathlib.Path({str(go)!r}).exists(): time.sleep(0.1)\n"
        f"for n in range({LINES + 1}, {LINES + 11}): print(n, 'x' * {LINE_BYTES})\n"
    )
    argv = ("run", "--workflow", "live", "--job", f"live_{number}", "--", sys.executable, "-c", code)
    variables = {
        "CHRONOVERSE_URL": "",
        "CHRONOVERSE_REDIS_URL": site.url("runner"),
        "CHRONOVERSE_LEASE_SECONDS": "2",
        "CHRONOVERSE_DATA_DIR": str(site.directory / f"runner_{number}"),
    }
    env = environ(Service(site.directory), **variables)
    return subprocess.Popen(
        chronoverse_argv(*argv), env=env, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )


@pytest.fixture(params=["files", "S3"])
def any_site(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[Site, bool]]:
    """A site whose archive is in files or a bucket, and whether it is a bucket."""
    with contextlib.ExitStack() as stack:
        is_s3 = request.param == "S3"
        if is_s3:
            stack.enter_context(s3_server())
        site = Site(tmp_path, f"s3://{BUCKET}/logs" if is_s3 else "")
        stack.enter_context(site.redis)
        yield site, is_s3


@pytest.fixture
def stack() -> Iterator[contextlib.ExitStack]:
    """Everything that ends with the test."""
    with contextlib.ExitStack() as stack:
        yield stack


@pytest.mark.timeout(600)
def test_the_page_as_printed(any_site: tuple[Site, bool], stack: contextlib.ExitStack) -> None:
    """The store, the archive and then both are lost, under a single service."""
    site, is_s3 = any_site
    objects = open_object_store(site.archive_url)

    backup = FileObjectStore(site.directory / "backup" / "archive")

    def copy(source: ObjectStore, target: ObjectStore) -> None:
        """Does the same as the page's ``aws s3 sync``, which is not installed here."""
        for each in source.list(""):
            target.put(each.name, source.get(each.name))

    def run(containing: str) -> str:
        lines = page_block(containing).splitlines()
        if is_s3:
            lines = [line for line in lines if not line.startswith("cp -a")]
        return site.shell("\n".join(lines)).stderr

    def restore_store() -> None:
        site.redis.kill()
        run("appendonlydir")
        site.redis.start()
        run("CONFIG SET appendonly")

    def restore_archive() -> None:
        for each in list(objects.list("")):
            objects.delete(each.name)
        run("BACKUP/archive/.")
        if is_s3:
            copy(backup, objects)

    client = stack.enter_context(site.serving())

    def answers(jobs: list[JobRef]) -> dict[str, Any]:
        return all_routes(site, client, jobs)

    def import_and_confirm(jobs: list[JobRef], before: dict[str, Any]) -> None:
        # Archivers notice the mark within two minutes. Pretend that they have.
        objects.put(MARK, json.dumps({"mark": time.time()}).encode())
        assert "the store lost data" in run("archive --import")
        assert answers(jobs) == before
        assert [site.command(name, WORKFLOW).stdout for name in ("retention", "limits")] == settings
        run("archive --confirm-store")
        assert "the store lost data" not in run("archive --import")
        site.command("archive", "--once")
        assert answers(jobs) == before

    first = write_jobs(site, range(3))
    settings = [
        site.command("retention", WORKFLOW, "90d").stdout,
        site.command("limits", WORKFLOW, "--job-bytes", "100000").stdout,
    ]
    site.command("archive", "--once")
    as_backed_up = answers(first)
    run("--rdb")
    if is_s3:
        copy(objects, backup)

    if not is_s3:  # Its answers from the archive are repeated below.
        # The archive is lost.
        restore_archive()
        assert "0 are missing or damaged" in run("archive --verify")
        assert answers(first) == as_backed_up

        jobs = first + write_jobs(site, range(3, 6))
        site.command("archive", "--once")
        before = answers(jobs)

        # The store is lost, first without a copy of it, then with one.
        site.redis.kill()
        site.redis.start()
        assert site.redis.ask("DBSIZE") == 0
        import_and_confirm(jobs, before)
        restore_store()
        assert site.redis.ask("ZCARD", f"chronoverse:{{{WORKFLOW}}}:jobs") == len(first)
        import_and_confirm(jobs, before)

    # Both are lost.
    restore_archive()
    restore_store()
    import_and_confirm(first, as_backed_up)


def send_records(client: httpx.Client, job_id: str, first: int, count: int) -> None:
    """Sends log records without numbers, like a collector that reads a pod's output."""
    resource = {"attributes": [attribute("service.name", "pods"), attribute("service.instance.id", job_id)]}
    stamp = str(time.time_ns())
    records = [{"timeUnixNano": stamp, "body": {"stringValue": f"line {each}"}} for each in range(first, first + count)]
    content = {"resourceLogs": [{"resource": resource, "scopeLogs": [{"logRecords": records}]}]}
    answer = client.post("/v1/logs", json=content)
    assert (answer.status_code, answer.json()) == (200, {})


def attribute(key: str, value: str) -> dict[str, Any]:
    return {"key": key, "value": {"stringValue": value}}


def test_open_jobs_of_records_are_archived(site: Site, stack: contextlib.ExitStack) -> None:
    """Nobody ends them, and no runner holds them. After the store is emptied, they return as LOST."""
    jobs, lines = [f"pod-{number}" for number in range(6)], 296
    client = stack.enter_context(site.serving())
    variables = site.variables({"CHRONOVERSE_ARCHIVE_RUNNING_SECONDS": "1"})
    archiver = subprocess.Popen(chronoverse_argv("archive"), env=variables, stdin=subprocess.DEVNULL)
    try:
        for job_id in jobs:
            send_records(client, job_id, 1, lines)

        def archived() -> int:
            return len({each.name.split("/")[1] for each in open_object_store(site.archive_url).list("pods/")})

        wait_until(lambda: archived() == len(jobs), PATIENCE_SECONDS, "the archive has a part of each job")
    finally:
        archiver.terminate()
        archiver.wait(PATIENCE_SECONDS)
    site.redis.ask("FLUSHALL")
    said = site.shell(page_block("archive --import"))
    assert said.stdout == "6 jobs imported, 6 of them LOST; 0 were known; 0 problems\n"
    for job_id in jobs:
        job = client.get(f"/workflows/pods/jobs/{job_id}").json()
        assert (job["status"], job["first_sequence_num"], job["last_sequence_num"]) == ("LOST", 1, lines + 1)
        shown = pages(client, f"/workflows/pods/jobs/{job_id}/logs?limit=1000")
        assert [line["message"] for page in shown for line in page["logs"]] == [
            f"line {number}" for number in range(1, lines + 1)
        ]
        with Stream(site.service, f"/workflows/pods/jobs/{job_id}/events", dict(client.headers)) as stream:
            (gap,) = (each for each in blocks(stream.wait_end().body) if each.get("event") == "gap")
            assert gap["data"] == {"from": lines + 1, "to": lines + 1, "reason": "lost"}
