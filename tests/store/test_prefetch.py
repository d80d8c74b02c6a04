"""Reading ahead brings the same entries as reading on request, but sooner."""

import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

import pytest

from chronoverse.errors import NotALog, StoreUnavailable
from chronoverse.joblog.entries import RawEntry
from chronoverse.joblog.model import JobRef
from chronoverse.store.driver import new_connection
from chronoverse.store.prefetch import PREFETCH_BYTES, PREFETCH_SECONDS, PrefetchReader
from tests.support.reading import Clock
from tests.support.servers import RedisServer, running

JOB: Final = JobRef("wf_1", "job_1")
OTHER: Final = JobRef("wf_1", "job_2")


def do_nothing() -> None:
    """The usual callback before a command is sent."""


class Rig:
    """A reader, and logs as a foreign runner writes them."""

    def __init__(self, server: RedisServer, prefix: str) -> None:
        self.ask: Callable[..., Any] = server.ask
        self.clock = Clock()
        #: Called before the reader sends a command.
        self.before: Callable[[], object] = do_nothing
        self.reader = PrefetchReader(new_connection(server.url), self._key_for_command, self.clock)
        self._prefix = prefix

    def _key_for_command(self, job: JobRef) -> str:
        self.before()
        return self.key(job)

    def key(self, job: JobRef = JOB) -> str:
        return f"{self._prefix}:{job.job_id}"

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


def test_a_log_is_read_to_its_end(rig: Rig) -> None:
    """It comes in parts. After its end each read is empty."""
    rig.write(1, 7)

    assert [rig.read(after) for after in (0, 2, 4, 6, 7, 7)] == [[1, 2], [3, 4], [5, 6], [7], [], []]


def test_the_next_entries_are_prefetched(rig: Rig) -> None:
    """After a read that began where the last one ended, the next entries are there even if the log is deleted."""
    rig.write(1, 8)
    rig.read(0)
    rig.read(2)
    rig.ask("DEL", rig.key())

    assert (rig.read(4), rig.read(6)) == ([5, 6], [])


def test_long_entries_are_not_prefetched(rig: Rig) -> None:
    """A caller may take fewer of them than it was given, and then asks for others."""
    rig.write(1, 3)
    rig.ask("XADD", rig.key(), "4-0", "message", b"x" * PREFETCH_BYTES)
    rig.write(5, 8)
    rig.read(0)
    rig.read(2)
    rig.ask("DEL", rig.key())

    assert rig.read(4) == []


def test_a_prefetched_answer_is_used_only_for_its_own_request(rig: Rig) -> None:
    """A request for another line, another count or another job is sent anew."""
    rig.write(1, 8)
    rig.write(1, 3, OTHER)
    for after, count, job, found in ((1, 2, JOB, [2, 3]), (4, 3, JOB, [5, 6, 7]), (0, 9, OTHER, [1, 2, 3])):
        rig.read(0)
        rig.read(2)
        assert rig.read(after, count, job) == found


def test_a_prefetched_answer_that_is_not_full_is_not_used(rig: Rig) -> None:
    """More entries may have come since."""
    rig.write(1, 5)
    rig.read(0)
    rig.read(2)
    rig.write(6, 7)

    assert rig.read(4) == [5, 6]


def test_an_old_prefetched_answer_is_not_used(rig: Rig) -> None:
    """The log may have been deleted since."""
    rig.write(1, 8)
    rig.read(0)
    rig.read(2)
    rig.ask("DEL", rig.key())
    rig.clock.now += PREFETCH_SECONDS

    assert rig.read(4) == []


def test_a_log_with_a_gap_is_prefetched_after_it(rig: Rig) -> None:
    """The prefetch begins after the last entry that was returned."""
    rig.write(1, 9)
    rig.ask("XDEL", rig.key(), "3-0")
    rig.read(0)

    assert rig.read(2) == [4, 5]
    rig.ask("DEL", rig.key())
    assert rig.read(5) == [6, 7]


def test_a_prefetched_error_is_raised_only_for_its_own_job(rig: Rig) -> None:
    """The key is no stream any more. A reader of another job does not get the error."""
    rig.write(1, 8)
    rig.write(1, 2, OTHER)
    for next_job in (JOB, OTHER):
        rig.read(0)
        sent: list[int] = []

        def spoil(sent: list[int] = sent) -> None:
            """Between the second command and the prefetching one."""
            sent.append(1)
            if len(sent) == 2:
                rig.ask("RENAME", rig.key(), rig.key() + "-renamed")
                rig.ask("SET", rig.key(), "no stream")

        rig.before = spoil
        assert rig.read(2) == [3, 4]
        rig.before = do_nothing
        if next_job == OTHER:
            assert rig.read(0, 2, OTHER) == [1, 2]
        with pytest.raises(NotALog):
            rig.read(4)
        rig.ask("RENAME", rig.key() + "-renamed", rig.key())


@pytest.mark.parametrize("reads", [1, 2], ids=["no prefetch", "prefetch"])
def test_a_closed_connection_is_opened_again(rig: Rig, reads: int) -> None:
    """It was closed between two reads, with or without a prefetch under way."""
    rig.write(1, 8)
    for after in range(0, 2 * reads, 2):
        rig.read(after)
    rig.ask("CLIENT", "KILL", "TYPE", "normal")

    assert [rig.read(after) for after in (2 * reads, 2 * reads + 2)] == [
        [2 * reads + 1, 2 * reads + 2],
        [2 * reads + 3, 2 * reads + 4],
    ]


def test_a_server_that_stops_and_starts_again(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Reads raise while it is stopped, and work at once when it is back."""
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


def test_concurrent_reads(rig: Rig) -> None:
    """Each thread gets its own answers."""
    rig.write(1, 40)
    found: dict[int, list[int]] = {}

    def read(start: int) -> None:
        found[start] = [number for after in range(start, 40, 4) for number in rig.read(after, 4)]

    threads = [threading.Thread(target=read, args=(start,)) for start in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert found == {start: list(range(start + 1, 41)) for start in range(4)}
