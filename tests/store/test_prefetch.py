"""Reading ahead: the same entries as reading when asked, sooner."""

import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

import pytest

from chronoverse.errors import NotALog, StoreUnavailable
from chronoverse.joblog.entries import RawEntry
from chronoverse.joblog.values import JobRef
from chronoverse.store.driver import new_connection
from chronoverse.store.prefetch import PREFETCH_BYTES, PREFETCH_SECONDS, PrefetchReader
from tests.support.reading import Clock
from tests.support.servers import RedisServer, running

JOB: Final = JobRef("wf_1", "job_1")
OTHER: Final = JobRef("wf_1", "job_2")


def nothing() -> None:
    """What usually happens before a question is sent."""


class Rig:
    """A reader, and logs as a foreign runner writes them."""

    def __init__(self, server: RedisServer, prefix: str) -> None:
        self.ask: Callable[..., Any] = server.ask
        self.clock = Clock()
        #: Called when the reader is about to send a question.
        self.before: Callable[[], object] = nothing
        self.reader = PrefetchReader(new_connection(server.url), self._asking, self.clock)
        self._prefix = prefix

    def _asking(self, job: JobRef) -> str:
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


def test_a_log_read_from_end_to_end(rig: Rig) -> None:
    """Piece by piece, and nothing behind its end, as often as that is asked."""
    rig.write(1, 7)

    assert [rig.read(after) for after in (0, 2, 4, 6, 7, 7)] == [[1, 2], [3, 4], [5, 6], [7], [], []]


def test_the_next_is_asked_for_before_it_is_wanted(rig: Rig) -> None:
    """Once a read has gone on where the one before ended: so it is there although it has gone from the store."""
    rig.write(1, 8)
    rig.read(0)
    rig.read(2)
    rig.ask("DEL", rig.key())

    assert (rig.read(4), rig.read(6)) == ([5, 6], [])


def test_long_entries_are_not_asked_for_before_they_are_wanted(rig: Rig) -> None:
    """Whoever reads them may not take all of what comes, and asks for something else."""
    rig.write(1, 3)
    rig.ask("XADD", rig.key(), "4-0", "message", b"x" * PREFETCH_BYTES)
    rig.write(5, 8)
    rig.read(0)
    rig.read(2)
    rig.ask("DEL", rig.key())

    assert rig.read(4) == []


def test_an_answer_that_is_not_wanted_is_nobodys(rig: Rig) -> None:
    """Another line, another number of lines, another job: asked for when it is wanted."""
    rig.write(1, 8)
    rig.write(1, 3, OTHER)
    for after, count, job, found in ((1, 2, JOB, [2, 3]), (4, 3, JOB, [5, 6, 7]), (0, 9, OTHER, [1, 2, 3])):
        rig.read(0)
        rig.read(2)
        assert rig.read(after, count, job) == found


def test_an_answer_that_is_not_full_is_asked_for_again(rig: Rig) -> None:
    """More may have come."""
    rig.write(1, 5)
    rig.read(0)
    rig.read(2)
    rig.write(6, 7)

    assert rig.read(4) == [5, 6]


def test_an_old_answer_is_asked_for_again(rig: Rig) -> None:
    """The log may have gone."""
    rig.write(1, 8)
    rig.read(0)
    rig.read(2)
    rig.ask("DEL", rig.key())
    rig.clock.now += PREFETCH_SECONDS

    assert rig.read(4) == []


def test_a_log_with_a_hole_is_read_ahead_behind_it(rig: Rig) -> None:
    """From where its last entry really is."""
    rig.write(1, 9)
    rig.ask("XDEL", rig.key(), "3-0")
    rig.read(0)

    assert rig.read(2) == [4, 5]
    rig.ask("DEL", rig.key())
    assert rig.read(5) == [6, 7]


def test_an_error_that_was_read_ahead_is_told_to_whom_it_concerns(rig: Rig) -> None:
    """A key that has become no log: the reader of another job does not hear of it."""
    rig.write(1, 8)
    rig.write(1, 2, OTHER)
    for wanted in (JOB, OTHER):
        rig.read(0)
        sent: list[int] = []

        def spoil(sent: list[int] = sent) -> None:
            """Between the second question and the one ahead."""
            sent.append(1)
            if len(sent) == 2:
                rig.ask("RENAME", rig.key(), rig.key() + "-kept")
                rig.ask("SET", rig.key(), "no stream")

        rig.before = spoil
        assert rig.read(2) == [3, 4]
        rig.before = nothing
        if wanted == OTHER:
            assert rig.read(0, 2, OTHER) == [1, 2]
        with pytest.raises(NotALog):
            rig.read(4)
        rig.ask("RENAME", rig.key() + "-kept", rig.key())


@pytest.mark.parametrize("reads", [1, 2], ids=["nothing asked", "asked ahead"])
def test_a_connection_that_was_closed_costs_nothing(rig: Rig, reads: int) -> None:
    """Between two reads, with or without an answer on its way."""
    rig.write(1, 8)
    for after in range(0, 2 * reads, 2):
        rig.read(after)
    rig.ask("CLIENT", "KILL", "TYPE", "normal")

    assert [rig.read(after) for after in (2 * reads, 2 * reads + 2)] == [
        [2 * reads + 1, 2 * reads + 2],
        [2 * reads + 3, 2 * reads + 4],
    ]


def test_a_server_that_has_gone_and_comes_back(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Said at once, and forgotten at once."""
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


def test_many_read_at_once(rig: Rig) -> None:
    """Each gets its own answers."""
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
