"""The store behind Sentinels: whom they name is asked, also again, and only a master is good enough."""

import time
from collections.abc import Iterator

import pytest
import redis

from chronoverse.errors import StoreUnavailable
from chronoverse.joblog.values import JobRef
from chronoverse.store import Store
from chronoverse.store.driver import new_connection
from chronoverse.store.sentinel import MasterConnection
from tests.support.bench import JOB, make_lines
from tests.support.fleets import Watched


@pytest.fixture
def store(watched: Watched, prefix: str) -> Iterator[Store]:
    """A store with nothing under its prefix."""
    store = Store(watched.url, prefix=prefix)
    yield store
    store.close()


def test_the_store_is_the_master_that_they_name(store: Store, watched: Watched, prefix: str) -> None:
    """Commands, appends and the reader lead there."""
    store.append(store.open(JOB, "token"), make_lines(1, 2))
    reader = store.live_reader(0.01)
    ((_, entries),) = reader.read({JOB: 0}, 10)
    reader.close()

    assert len(entries) == 2
    assert watched.master.ask("XLEN", f"{prefix}:{{wf_1}}:job_1:log") == 2


def test_a_sentinel_that_is_away_is_passed_over(watched: Watched, prefix: str) -> None:
    """One of those named is enough."""
    store = Store(watched.url.replace("://", "://127.0.0.1:1,"), prefix=prefix)
    assert store.get_job(JOB) is None
    store.close()


@pytest.mark.parametrize("place", ["127.0.0.1:1,127.0.0.1:2/logs", "{watched}/unknown"])
def test_nobody_to_name_a_master(watched: Watched, place: str) -> None:
    """Whether no Sentinel answers or none knows the name: it is said at once."""
    hosts = watched.url.partition("://")[2].partition("/")[0]
    store = Store(f"redis+sentinel://{place.format(watched=hosts)}")
    began = time.monotonic()
    with pytest.raises(StoreUnavailable, match="no Sentinel names a master"):
        store.get_job(JobRef("wf_1", "job_1"))
    store.close()

    assert time.monotonic() - began < 1


def test_a_replica_is_not_taken_for_the_master(watched: Watched) -> None:
    """What the Sentinels say may be old: a server that says of itself that it is a replica is left at once."""
    replica = watched.ports[watched.servers.index(watched.replica)]
    led = new_connection(
        "redis://nowhere", connection_class=MasterConnection, find_master=lambda: ("127.0.0.1", replica)
    )
    with pytest.raises(redis.ConnectionError, match="is not the master"):
        led.connect()
    led.disconnect()
