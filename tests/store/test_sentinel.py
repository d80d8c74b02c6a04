"""The store behind Sentinels connects to the master that they name, and to no replica."""

import contextlib
import itertools
import time
from collections.abc import Iterator

import pytest
import redis

from chronoverse.errors import StoreError, StoreUnavailable
from chronoverse.joblog.model import JobRef
from chronoverse.settings.redis_url import RedisUrl
from chronoverse.store import Store
from chronoverse.store.cluster import SLOTS
from chronoverse.store.driver import new_connection
from chronoverse.store.sentinel import CHECK_MASTER_SECONDS, SentinelTopology, require_master
from tests.support.bench import JOB, make_lines
from tests.support.fleets import SentinelFleet
from tests.support.waiting import wait_until


@pytest.fixture
def store(sentinels: SentinelFleet, prefix: str) -> Iterator[Store]:
    """A store with an unused prefix."""
    store = Store(sentinels.url, prefix=prefix)
    yield store
    store.close()


def test_an_unresponsive_sentinel_is_skipped(sentinels: SentinelFleet, prefix: str) -> None:
    """One responsive Sentinel is enough."""
    store = Store(sentinels.url.replace("://", "://127.0.0.1:1,"), prefix=prefix)
    assert store.get_job(JOB) is None
    store.close()


@pytest.mark.parametrize("hosts", ["127.0.0.1:1,127.0.0.1:2/logs", "{sentinels}/unknown"])
def test_no_sentinel_names_a_master(sentinels: SentinelFleet, hosts: str) -> None:
    """None responds, or none knows the name. The error is immediate."""
    own_hosts = sentinels.url.partition("://")[2].partition("/")[0]
    store = Store(f"redis+sentinel://{hosts.format(sentinels=own_hosts)}")
    began = time.monotonic()
    with pytest.raises(StoreUnavailable, match="no Sentinel names a master"):
        store.get_job(JobRef("wf_1", "job_1"))
    store.close()

    assert time.monotonic() - began < 10


def test_a_replica_is_not_used_as_the_master(sentinels: SentinelFleet) -> None:
    """The Sentinels' answer may be stale. A server that reports itself a replica is not used."""
    replica = sentinels.ports[sentinels.servers.index(sentinels.replica)]
    connection = new_connection(f"redis://127.0.0.1:{replica}", redis_connect_func=require_master)
    with pytest.raises(redis.ConnectionError, match="is not the master"):
        connection.connect()
    connection.disconnect()


def test_a_master_that_became_a_replica_is_left_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before the next check, which comes after two seconds."""
    now, masters = [0.0], [b"one", b"two"]
    topology = SentinelTopology(RedisUrl.parse("redis+sentinel://127.0.0.1:1/logs"), clock=lambda: now[0])
    monkeypatch.setattr(topology, "_ask_map", lambda address: [(0, SLOTS - 1, (masters.pop(0), 7000))])

    def refuse(client: redis.Redis) -> None:
        raise redis.ReadOnlyError("READONLY")

    for now[0] in (1.0, 1.5):
        with pytest.raises(redis.ReadOnlyError):
            topology.run("wf_1", refuse)
    assert masters == []


def test_a_master_cut_off_from_its_sentinels_is_left(store: Store, sentinels: SentinelFleet, prefix: str) -> None:
    """Although it still answers. The live reader leaves it, too."""
    store.register(JOB)
    reader = store.live_reader(0.05)
    reader.watch(JOB, 0)
    assert reader.read(1) == []
    lost = sentinels.cut_off()
    wait_until(lambda: sentinels.master is not lost, 10, "the Sentinels name another master")
    numbers = itertools.count(2)

    def reaches_the_new_one() -> bool:
        job = JobRef("wf_1", f"job_{next(numbers)}")
        store.register(job)
        return bool(sentinels.ask("EXISTS", f"{prefix}:{{wf_1}}:{job.job_id}:job"))

    def reads_from_the_new_one() -> bool:
        with contextlib.suppress(StoreError):
            return any(not isinstance(entries, StoreError) for _, _, entries in reader.read(1))
        return False

    wait_until(reaches_the_new_one, 3 * CHECK_MASTER_SECONDS, "the new master is used")
    store.append(store.open(JOB, "token"), make_lines(1, 1))
    wait_until(reads_from_the_new_one, 20, "the live reader reads from it")
    reader.close()
    sentinels.rejoin(lost)
