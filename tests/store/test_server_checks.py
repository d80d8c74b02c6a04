"""Services, archivers and runners warn about a store that can evict logs, or has done so."""

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest
from prometheus_client import REGISTRY

from chronoverse.errors import StoreRefused, StoreUnavailable
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


def test_a_store_that_does_not_answer_is_reported() -> None:
    """At startup each reason once, then the warnings; later by a metric only. Refusing commands is an answer."""
    away, refused = StoreUnavailable("the store cannot be reached"), StoreRefused("the store rejects writes")
    outcomes, said, metric = [away, away, refused, None, away, refused, None], list[str](), list[float | None]()

    def answer(found: list[Any]) -> list[Any]:
        if outcomes[0] is not None:
            raise outcomes[0]
        return found

    def next_check(_: float) -> None:
        metric.append(REGISTRY.get_sample_value("chronoverse_store_away"))
        del outcomes[0]
        if not outcomes:
            raise StopIteration

    with pytest.raises(StopIteration):
        watch_servers(lambda: answer(["a warning"]), lambda: answer([{"evicted_keys": "0"}]), said.append, next_check)

    assert said == [str(away), str(refused), "a warning"]
    assert metric == [1, 1, 0, 0, 1, 0, 0]


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
