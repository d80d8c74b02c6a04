"""Alerts that fire for a real service, a real archiver and a real store.

Each test scrapes ``/metrics`` before and after a fault. Prometheus's own evaluator gets the result, with the labels
that Prometheus adds to a target. So a rule only fires if its names and labels are those that are really exported.
"""

import contextlib
import os
import re
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
import redis
import yaml
from prometheus_client.parser import text_string_to_metric_families

from chronoverse.joblog.model import JobRef, Status
from chronoverse.store import Store
from tests.deploy.test_alerts import RULES, promtool
from tests.support.bench import make_lines
from tests.support.commands import call_main
from tests.support.ports import free_port
from tests.support.servers import RedisServer, running
from tests.support.service import PATIENCE_SECONDS, SECRET, START_SECONDS, Service, serving
from tests.support.waiting import wait_until

pytestmark = pytest.mark.long

#: Seconds between two scrapes, and the number of equal scrapes: five minutes before a fault, and ten minutes of each
#: state after it.
INTERVAL_SECONDS: Final = 15
BEFORE: Final = 20
AFTER: Final = 40
#: Maximum seconds between our own scrapes while a test waits.
SCRAPE_SECONDS: Final = 0.5
#: The result of a scrape: values by series.
Scrape = dict[str, float]


class Target:
    """A target of Prometheus on a local port, with the ``labels`` that Prometheus adds."""

    def __init__(self, port: int, **labels: str) -> None:
        self.labels = labels
        self._url = f"http://127.0.0.1:{port}/metrics"

    def scrape(self) -> Scrape:
        """Our samples, and ``up``, which is the only one if nobody answers."""
        try:
            text = httpx.get(self._url, timeout=5, verify=False).text
        except httpx.TransportError:
            return {self._series("up", {}): 0.0}
        samples = [each for family in text_string_to_metric_families(text) for each in family.samples]
        ours = [each for each in samples if each.name.startswith("chronoverse_")]
        return {self._series("up", {}): 1.0, **{self._series(each.name, each.labels): each.value for each in ours}}

    def value(self, name: str) -> float:
        """The sum of the series of one of our metrics."""
        return sum(each for series, each in self.scrape().items() if series.startswith(f"chronoverse_{name}{{"))

    def alert(self, severity: str, summary: str, **labels: str) -> dict[str, Any]:
        """An alert for this target, as promtool expects it."""
        return {
            "exp_labels": {**self.labels, "severity": severity, **labels},
            "exp_annotations": {"summary": summary.format(self.labels["instance"])},
        }

    def has(self, name: str) -> bool:
        """Whether it exports this metric."""
        return any(series.startswith(f"chronoverse_{name}{{") for series in self.scrape())

    def _series(self, name: str, labels: dict[str, str]) -> str:
        shown = ",".join(f'{name}="{value}"' for name, value in sorted({**labels, **self.labels}.items()))
        return f"{name}{{{shown}}}"


def history(*scrapes: Scrape) -> list[dict[str, str]]:
    """Input for promtool. Each scrape's result is repeated for a while. A series missing in a scrape ends there."""
    counts = [BEFORE, *[AFTER] * (len(scrapes) - 1)]

    def values(series: str) -> str:
        return " ".join(
            f"{scrape[series]!r}x{count - 1}" if series in scrape else f"stale _x{count - 1}"
            for scrape, count in zip(scrapes, counts, strict=True)
        )

    return [{"series": series, "values": values(series)} for series in sorted(set().union(*scrapes))]


def fires(alert: str, series: list[dict[str, str]], *expected: dict[str, Any], after: int = AFTER) -> dict[str, Any]:
    """A test for promtool: ``alert`` does not fire before the fault; ``expected`` fires in the last state, if given.

    Evaluated after this many scrapes of that state, by default after all of them.
    """
    states = max(each["values"].count("x") for each in series)
    scrapes = (BEFORE, BEFORE + AFTER * (states - 2) + after)
    return {
        "interval": f"{INTERVAL_SECONDS}s",
        "input_series": series,
        "alert_rule_test": [
            {"alertname": alert, "eval_time": f"{INTERVAL_SECONDS * (count - 1)}s", "exp_alerts": alerts}
            for count, alerts in zip(scrapes, ([], [*expected]), strict=True)
        ],
    }


def check(directory: Path, *tests: dict[str, Any]) -> None:
    """Runs the tests with the shipped rules in promtool."""
    (directory / RULES.name).write_text(RULES.read_text("utf-8"), "utf-8")
    path = directory / "tests.yaml"
    content = {"rule_files": [RULES.name], "evaluation_interval": f"{INTERVAL_SECONDS}s", "tests": list(tests)}
    path.write_text(yaml.safe_dump(content))
    promtool("test", "rules", str(path))


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """A store with the settings required by docs/redis.md."""
    with running(tmp_path_factory.mktemp("store"), None, "--appendonly", "yes") as server:
        yield server


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The archive's directory."""
    return tmp_path_factory.mktemp("archive")


@pytest.fixture(scope="module")
def service(server: RedisServer, archive: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service with an archive."""
    with serving(tmp_path_factory.mktemp("service"), server.url, archive_url=archive.as_uri()) as service:
        yield service


@contextlib.contextmanager
def archiving(directory: Path, redis_url: str, archive: Path) -> Iterator[tuple[subprocess.Popen[bytes], Target]]:
    """A working archiver, and its metrics as Prometheus sees them in Kubernetes."""
    port = free_port()
    environ = {
        **os.environ,
        "CHRONOVERSE_REDIS_URL": redis_url,
        "CHRONOVERSE_JWT_SECRET": SECRET.decode(),
        "CHRONOVERSE_DATA_DIR": str(directory),
        "CHRONOVERSE_ARCHIVE_URL": archive.as_uri(),
    }
    command = [sys.executable, "-m", "chronoverse", "archive", "--metrics", f"127.0.0.1:{port}"]
    target = Target(port, job="prod/chronoverse-archiver", namespace="prod", pod="archiver-1", instance="a:9100")
    with (directory / "archiver.log").open("wb") as log:
        process = subprocess.Popen(command, env=environ, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    try:
        wait_until(lambda: is_working(process, target), START_SECONDS, "the archiver works", SCRAPE_SECONDS)
        yield process, target
    finally:
        process.terminate()
        process.wait(PATIENCE_SECONDS)


def is_working(process: subprocess.Popen[bytes], archiver: Target) -> bool:
    """Whether the archiver has begun a step. Fails if it has ended."""
    assert process.poll() is None
    return archiver.value("archiver_last_step_timestamp_seconds") > 0


def node(service: Service) -> Target:
    """A node as Prometheus sees it in Kubernetes."""
    return Target(service.port, job="prod/chronoverse", namespace="prod", pod="node-1", instance="n:8000")


def break_jobs(server: RedisServer, archiver: Target, first: int, last: int) -> None:
    """Makes jobs with invalid logs, and waits until the archiver has failed on each of them."""
    for number in range(first, last + 1):
        server.ask("HSET", f"chronoverse:{{wf_1}}:broken_{number}:job", "status", "COMPLETED")
        server.ask("SET", f"chronoverse:{{wf_1}}:broken_{number}:log", "no stream")
    wait_until(
        lambda: archiver.value("archive_errors_total") >= last,
        PATIENCE_SECONDS,
        "it has failed at all of them",
        SCRAPE_SECONDS,
    )


def test_an_archiver_that_fails_and_then_stops(
    server: RedisServer, archive: Path, service: Service, tmp_path: Path
) -> None:
    """Its errors fire an alert. When it has ended, Prometheus cannot scrape it, and the node misses an archiver."""
    target = node(service)
    with archiving(tmp_path, server.url, archive) as (process, archiver):
        well, archives = target.scrape(), archiver.scrape()
        break_jobs(server, archiver, 1, 1)
        fails = archiver.scrape()
        break_jobs(server, archiver, 2, 6)
        fails_again = archiver.scrape()
        process.terminate()
        process.wait(PATIENCE_SECONDS)
        alone, ended = target.scrape(), archiver.scrape()

    failing = archiver.alert("warning", "the archiver of {} keeps failing: NotALog", kind="NotALog")
    both = history({**well, **archives}, {**alone, **ended})
    missing = target.alert("critical", "{} has an archive, but no archiver")
    check(
        tmp_path,
        # A minute after the last error. Two minutes after it, the alert ends.
        fires("ChronoverseArchiveErrors", history(archives, fails, fails_again), failing, after=4),
        fires("ChronoverseDown", both, archiver.alert("critical", "{} cannot be scraped")),
        fires("ChronoverseArchiverMissing", both, missing),
        # Prometheus no longer scrapes any archiver.
        fires("ChronoverseArchiverMissing", history({**well, **archives}, well), missing),
    )


def test_a_store_that_may_evict_and_denies_commands(server: RedisServer, service: Service, tmp_path: Path) -> None:
    """The node's metrics report both, including commands denied to others."""
    target = node(service)
    before = target.scrape()
    server.ask("CONFIG", "SET", "maxmemory-policy", "allkeys-lru")
    server.ask("ACL", "SETUSER", "stranger", "on", ">secret", "-@all")
    with (
        redis.Redis.from_url(server.url, username="stranger", password="secret", driver_info=None) as stranger,
        pytest.raises(redis.exceptions.NoPermissionError),
    ):
        stranger.get("chronoverse:{wf_1}:job_1:lease")
    # A service checks every ten seconds.
    wait_until(lambda: target.value("store_denied") > 0, START_SECONDS, "the store was asked", SCRAPE_SECONDS)
    after = target.scrape()

    may_evict = target.alert("critical", "the store of {} may evict logs: its maxmemory-policy is not noeviction")
    denies = target.alert("warning", "the store of {} denies commands, keys or logins; see ACL LOG")
    check(
        tmp_path,
        fires("ChronoverseStoreMayEvict", history(before, after), may_evict),
        fires("ChronoverseStoreDenies", history(before, after), denies),
    )


def write_ended(service: Service, job_id: str, lines: int = 3) -> JobRef:
    """Writes an ended job into the store."""
    job = JobRef("wf_alerts", job_id)
    with contextlib.closing(Store(service.redis_url or "")) as store:
        attempt = store.open(job, "token")
        store.append(attempt, make_lines(1, lines))
        store.finish(attempt, Status.COMPLETED, 0, 0, lines + 1)
    return job


def is_archived(server: RedisServer, job: JobRef) -> bool:
    key = f"chronoverse:{{{job.workflow_id}}}:{job.job_id}"
    return bool(server.ask("HGET", f"{key}:job", "archive_state") == b"complete")


def test_a_working_archiver_fires_nothing(server: RedisServer, archive: Path, service: Service, tmp_path: Path) -> None:
    """As a separate process, it has neither streams nor a scan server, and does not export their metrics."""
    with archiving(tmp_path, server.url, archive) as (_, archiver):
        job = write_ended(service, "fine")
        wait_until(lambda: is_archived(server, job), PATIENCE_SECONDS, "it works", SCRAPE_SECONDS)
        assert not archiver.has("scans_up")
        series = history(archiver.scrape(), archiver.scrape())
    names = re.findall(r"- alert: (\w+)", RULES.read_text("utf-8"))
    check(tmp_path, *(fires(name, series) for name in names))


def test_an_unavailable_archive(server: RedisServer, service: Service, tmp_path: Path) -> None:
    """The backlog is counted even if each attempt fails."""
    bucket = tmp_path / "bucket"
    with archiving(tmp_path, server.url, bucket) as (_, archiver):
        before = archiver.scrape()
        shutil.rmtree(bucket, ignore_errors=True)
        bucket.write_text("a file where a directory should be")
        job = write_ended(service, "waits")
        key = f"chronoverse:{{{job.workflow_id}}}:{job.job_id}:job"
        server.ask("HSET", key, "end_seen_ms", round(1000 * (time.time() - 1_000)))

        def errors() -> float:
            return archiver.value("archive_errors_total")

        found = "the archiver has found the job"
        wait_until(lambda: archiver.value("archive_lag_seconds") > 900, PATIENCE_SECONDS, found, SCRAPE_SECONDS)
        first = errors()
        wait_until(lambda: errors() > first + 3, PATIENCE_SECONDS, "it has tried several times", SCRAPE_SECONDS)
        after = archiver.scrape()
        bucket.unlink()
        wait_until(lambda: is_archived(server, job), PATIENCE_SECONDS, "it is archived", SCRAPE_SECONDS)
        wait_until(lambda: archiver.value("archive_waiting_jobs") == 0, PATIENCE_SECONDS, "none waits", SCRAPE_SECONDS)
        again = archiver.scrape()
    behind = archiver.alert("warning", "lines have waited over 15 minutes for the archiver of {}")
    check(
        tmp_path,
        fires("ChronoverseArchiveBehind", history(before, after), behind),
        fires("ChronoverseArchiveBehind", history(before, after, again)),
    )


def test_an_archive_that_came_back_empty(server: RedisServer, tmp_path: Path) -> None:
    """Readers get 502, and both the archiver and the node report it, until an operator confirms it."""
    bucket = tmp_path / "bucket"

    def command(*arguments: str) -> None:
        environ = {
            **os.environ,
            "CHRONOVERSE_URL": "",
            "CHRONOVERSE_REDIS_URL": server.url,
            "CHRONOVERSE_ARCHIVE_URL": bucket.as_uri(),
        }
        assert call_main(*arguments, environ=environ).returncode == 0

    with serving(tmp_path / "service", server.url, archive_url=bucket.as_uri()) as service:
        job = write_ended(service, "lost")
        command("archive", "--confirm-store")
        target = node(service)
        with archiving(tmp_path, server.url, bucket) as (_, archiver):
            wait_until(lambda: is_archived(server, job), PATIENCE_SECONDS, "it is archived", SCRAPE_SECONDS)
            before, node_before = archiver.scrape(), target.scrape()
        server.ask("DEL", f"chronoverse:{{{job.workflow_id}}}:{job.job_id}:log")
        shutil.rmtree(bucket)
        headers = {"Authorization": f"Bearer {service.token()}"}
        answer = httpx.get(f"{service.url}/workflows/{job.workflow_id}/jobs/{job.job_id}/logs", headers=headers)
        assert answer.status_code == 502
        node_after = target.scrape()
        # A running archiver reads the archive's mark each minute.
        with archiving(tmp_path, server.url, bucket) as (_, archiver):
            lost = partial(archiver.value, "archive_bucket_lost")
            wait_until(lambda: lost() == 1, PATIENCE_SECONDS, "it has noticed", SCRAPE_SECONDS)
            after = archiver.scrape()
        command("archive", "--confirm-store")
        with archiving(tmp_path, server.url, bucket) as (_, archiver):
            confirmed = archiver.scrape()
    gone = "the archive was emptied, or belongs to another store; "
    gone += "the archiver of {} deletes nothing until this is confirmed"
    asked = "readers of {} requested archived lines that are missing or damaged"
    check(
        tmp_path,
        fires("ChronoverseArchiveLost", history(before, after), archiver.alert("critical", gone)),
        fires("ChronoverseArchiveLost", history(before, after, confirmed)),
        fires("ChronoverseArchiveDamaged", history(node_before, node_after), target.alert("critical", asked), after=8),
    )
