"""Services, archivers and runners warn about a store that can evict logs, or has done so."""

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest
from prometheus_client import REGISTRY

from chronoverse.errors import StoreError, StoreRefused, StoreUnavailable
from chronoverse.store import Store
from chronoverse.store.server_checks import UNKNOWN_POLICY, watch_servers
from tests.support.guarded_server import GuardedServer
from tests.support.jobs import RunningJob
from tests.support.servers import RedisServer, running
from tests.support.service import PATIENCE_SECONDS, SECRET, Service, serving
from tests.support.waiting import wait_until

EVICTION: Final = "its maxmemory-policy is allkeys-lru and must be noeviction"
NO_FILE: Final = "the store keeps no append-only file"
DROPS: Final = "the store will drop its logs when it restarts"
METRIC: Final = "chronoverse_store_evicted_keys"


@pytest.fixture
def evicting(tmp_path: Path) -> Iterator[RedisServer]:
    """A server that has evicted keys and can evict more."""
    with running(tmp_path / "store", None, "--maxmemory-policy", "allkeys-lru") as server:
        for number in range(100):
            server.ask("SET", f"other:{number}", b"x" * 10_000)
        used = int(server.ask("INFO", "memory").partition(b"used_memory:")[2].partition(b"\r")[0])
        server.ask("CONFIG", "SET", "maxmemory", used - 200_000)
        server.ask("SET", "other:more", "x")
        server.ask("CONFIG", "SET", "maxmemory", 2 * used)
        yield server


@pytest.fixture
def safe(tmp_path: Path) -> Iterator[RedisServer]:
    """A server with the settings that docs/redis.md requires."""
    with running(tmp_path / "store", None, "--appendonly", "yes") as server:
        yield server


class ScriptedStore:
    """A store whose checks fail with these errors in turn, and then succeed."""

    def __init__(self, *failures: StoreError) -> None:
        self.failures = list(failures)

    def warnings(self) -> list[str]:
        if self.failures:
            raise self.failures.pop(0)
        return ["a warning"]

    def server_infos(self) -> list[dict[str, str]]:
        if self.failures:
            raise self.failures.pop(0)
        return [{"evicted_keys": "0"}]


def test_startup_reports_why_the_store_does_not_answer() -> None:
    """Each reason once, then the warnings. Otherwise a wrong password would show only at the first request."""
    away, refused = (
        StoreUnavailable("the store cannot be reached"),
        StoreUnavailable("the store does not accept our password"),
    )
    store, said, rounds = ScriptedStore(away, away, refused), list[str](), iter(range(4))

    def count(_: float) -> None:
        next(rounds)

    with pytest.raises(StopIteration):
        watch_servers(store.warnings, store.server_infos, said.append, count)

    assert said == [str(away), str(refused), "a warning"]


def test_outages_after_startup_are_not_reported_here() -> None:
    """Requests and streams report them."""
    store, said, rounds = ScriptedStore(), list[str](), iter(range(3))

    def fail_from_now_on(_: float) -> None:
        next(rounds)
        store.failures = [StoreUnavailable("the store cannot be reached")]

    with pytest.raises(StopIteration):
        watch_servers(store.warnings, store.server_infos, said.append, sleep=fail_from_now_on)

    assert said == ["a warning"]


def test_a_metric_reports_whether_the_store_answered_the_last_check() -> None:
    """Even without any requests. A store that refuses commands is not away."""
    store, found = ScriptedStore(), list[float | None]()
    outcomes = iter([StoreUnavailable("away"), StoreRefused("the store rejects writes"), None])

    def fail_next(_: float) -> None:
        found.append(REGISTRY.get_sample_value("chronoverse_store_away"))
        store.failures = [each for each in (next(outcomes),) if each is not None]

    with pytest.raises(StopIteration):
        watch_servers(store.warnings, store.server_infos, sleep=fail_next)

    assert found == [0, 1, 0, 0]


@pytest.mark.long
def test_a_service_warns_and_counts(evicting: RedisServer, tmp_path: Path) -> None:
    """Once at startup, however many workers there are. Its metric counts evicted keys."""
    with serving(tmp_path / "service", evicting.url, workers=2) as service:
        wait_until(lambda: has_logged(service, EVICTION, NO_FILE), PATIENCE_SECONDS, "both warnings are logged")
        wait_until(lambda: service.metric(METRIC) > 0, PATIENCE_SECONDS, "the metric counts them")
        evicted = int(evicting.ask("INFO", "stats").partition(b"evicted_keys:")[2].partition(b"\r")[0])

        assert service.metric(METRIC) == evicted
        assert service.logs().count(EVICTION) == 1


def has_logged(service: Service, *texts: str) -> bool:
    return all(text in service.logs() for text in texts)


def test_an_archiver_warns(evicting: RedisServer, tmp_path: Path) -> None:
    """At startup."""
    environ = {
        **os.environ,
        "CHRONOVERSE_REDIS_URL": evicting.url,
        "CHRONOVERSE_JWT_SECRET": SECRET.decode(),
        "CHRONOVERSE_DATA_DIR": str(tmp_path),
        "CHRONOVERSE_ARCHIVE_URL": (tmp_path / "archive").as_uri(),
    }
    command = [sys.executable, "-m", "chronoverse", "archive", "--once"]
    done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=60)

    assert done.returncode == 0, done.stderr
    assert EVICTION in done.stderr
    assert NO_FILE in done.stderr


def test_a_runner_warns(evicting: RedisServer, tmp_path: Path) -> None:
    """Once, about what endangers its own lines."""
    with contextlib.closing(Store(evicting.url)) as store, RunningJob("print(1)", store, tmp_path) as job:
        assert job.result() == 0

    assert job.stderr_text.count(EVICTION) == 1
    assert NO_FILE not in job.stderr_text


def test_a_user_without_the_right_to_run_info_gets_a_warning(safe: RedisServer, tmp_path: Path) -> None:
    """The runner still publishes."""
    safe.ask("ACL", "SETUSER", "blind", "on", ">secret", "allkeys", "allchannels", "+@all", "-info")
    url = safe.url.replace("unix://", "unix://blind:secret@")
    with contextlib.closing(Store(url)) as store:
        assert store.warnings() == [UNKNOWN_POLICY]
        with RunningJob("print(1)", store, tmp_path) as job:
            assert job.result() == 0

    assert UNKNOWN_POLICY in job.stderr_text


@pytest.fixture
def guarded(tmp_path: Path) -> Iterator[GuardedServer]:
    """A server with the users of deploy/redis-users.acl and an append-only file."""
    with GuardedServer(tmp_path / "store", None, "--appendonly", "yes") as server:
        yield server


def warnings_of(server: GuardedServer, user: str) -> list[str]:
    with contextlib.closing(Store(server.url_of(user))) as store:
        return store.warnings()


@pytest.mark.parametrize("rules", ["-@all", "-zadd", "resetkeys ~other:*"])
def test_a_default_user_without_rights_causes_a_warning(guarded: GuardedServer, rules: str) -> None:
    """The server replays its append-only file as this user: a restart would drop what it may not write."""
    assert warnings_of(guarded, "service") == []
    guarded.ask("ACL", "SETUSER", "default", *rules.split())

    for user in ("service", "archiver"):
        (warning,) = warnings_of(guarded, user)
        assert DROPS in warning
    guarded.ask("CONFIG", "SET", "appendonly", "no")
    assert DROPS not in "".join(warnings_of(guarded, "service"))


def test_no_warning_about_a_default_user_without_the_right_to_check(guarded: GuardedServer) -> None:
    """Users from before this check lack the right."""
    guarded.ask("ACL", "SETUSER", "default", "-@all")
    guarded.ask("ACL", "SETUSER", "service", "-acl|dryrun")

    assert warnings_of(guarded, "service") == []
