"""Reading in sequence returns the same entries as reading on request, but sooner."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

import pytest

from chronoverse.errors import NotALog, StoreUnavailable
from chronoverse.joblog.entries import RawEntry
from chronoverse.joblog.model import JobRef
from chronoverse.store import Store
from chronoverse.store.sequential_reader import AHEAD_SECONDS, SequentialReader
from chronoverse.store.topology import Topology
from tests.support.reading import Clock
from tests.support.servers import RedisServer, running

JOB: Final = JobRef("wf_1", "job_1")
OTHER: Final = JobRef("wf_1", "job_2")


class Rig:
    """A reader, and logs of a foreign runner."""

    def __init__(self, server: RedisServer, prefix: str) -> None:
        self.ask: Callable[..., Any] = server.ask
        self.clock = Clock()
        self.topology = Topology(server.url)
        self.store = Store(server.url, prefix=prefix)
        self.reader = SequentialReader(self.topology, server.url, self.key, self.store.read, self.clock)
        self._prefix = prefix

    def key(self, job: JobRef = JOB) -> str:
        return f"{self._prefix}:{{{job.workflow_id}}}:{job.job_id}:log"

    def write(self, first: int, last: int, job: JobRef = JOB) -> None:
        for number in range(first, last + 1):
            self.ask("XADD", self.key(job), f"{number}-0", "message", f"line {number}")

    def read(self, after: int, count: int = 2, job: JobRef = JOB) -> list[int]:
        return numbers(self.reader.read(job, after, count))


def numbers(entries: Sequence[RawEntry]) -> list[int]:
    return [int(entry_id.removesuffix(b"-0")) for entry_id, _ in entries]


@pytest.fixture
def rig(server: RedisServer, prefix: str) -> Iterator[Rig]:
    rig = Rig(server, prefix)
    yield rig
    rig.reader.close()
    rig.store.close()


def test_a_prefetched_answer_is_used_only_for_its_own_request(rig: Rig) -> None:
    """Another line, count or job is requested separately."""
    rig.write(1, 8)
    rig.write(1, 3, OTHER)
    for after, count, job, found in ((1, 2, JOB, [2, 3]), (4, 3, JOB, [5, 6, 7]), (0, 9, OTHER, [1, 2, 3])):
        rig.read(0)
        rig.read(2)
        assert rig.read(after, count, job) == found


def test_a_partial_answer_is_not_used(rig: Rig) -> None:
    """More entries may have been added since."""
    rig.write(1, 5)
    rig.read(0)
    rig.read(2)
    rig.write(6, 7)

    assert rig.read(4) == [5, 6]


@pytest.mark.parametrize("why", ["old", "discarded", "another server", "long lines"])
def test_entries_that_may_have_changed_are_requested_again(rig: Rig, why: str) -> None:
    """The log may have been deleted, redacted, or moved: a master cut off from its Sentinels still answers.

    Long lines are not prefetched: a caller may use only some of them, and then request others.
    """
    rig.write(1, 3)
    rig.ask("XADD", rig.key(), "4-0", "message", b"x" * (2**20 if why == "long lines" else 1))
    rig.write(5, 8)
    rig.read(0)
    rig.read(2)
    rig.ask("DEL", rig.key())
    if why == "old":
        rig.clock.now += AHEAD_SECONDS
    elif why == "discarded":
        rig.reader.discard()
    elif why == "another server":
        rig.topology.version += 1

    assert rig.read(4) == []


def test_entries_after_a_gap_are_prefetched(rig: Rig) -> None:
    """The next request starts after the last returned entry."""
    rig.write(1, 9)
    rig.ask("XDEL", rig.key(), "3-0")
    rig.read(0)
    assert (rig.read(2), rig.read(5)) == ([4, 5], [6, 7])
    rig.ask("DEL", rig.key())

    assert rig.read(7) == [8, 9]


def test_an_error_is_raised_only_for_its_own_job(rig: Rig) -> None:
    """One job's key is no stream. A reader of another job does not get that error."""
    rig.write(1, 2, OTHER)
    rig.ask("SET", rig.key(), "no stream")

    with pytest.raises(NotALog):
        rig.read(0)
    assert rig.read(0, 2, OTHER) == [1, 2]


@pytest.mark.parametrize("reads", [1, 2], ids=["nothing ahead", "ahead"])
def test_a_closed_connection_is_reopened(rig: Rig, reads: int) -> None:
    """Closed between two reads, with or without a pending answer."""
    rig.write(1, 8)
    for after in range(0, 2 * reads, 2):
        rig.read(after)
    rig.ask("CLIENT", "KILL", "TYPE", "normal")

    assert [rig.read(after) for after in (2 * reads, 2 * reads + 2)] == [
        [2 * reads + 1, 2 * reads + 2],
        [2 * reads + 3, 2 * reads + 4],
    ]


def test_a_server_that_restarts(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Reads raise while it is down, and work immediately once it is back."""
    with running(tmp_path_factory.mktemp("own")) as server:
        rig = Rig(server, "own")
        rig.write(1, 8)
        rig.read(2)
        server.kill()
        for _ in range(2):
            with pytest.raises(StoreUnavailable):
                rig.read(4)
        server.start()
        rig.write(1, 6)
        assert rig.read(4) == [5, 6]
        rig.reader.close()
        rig.store.close()
