"""The archive's caches: limits in bytes and seconds, and a single load for concurrent callers."""

import threading
from typing import Any

import pytest

from chronoverse.archive.archiver import _Queue
from chronoverse.archive.caches import RECORD_SECONDS, RECORDS, ChunkRecordCache, SingleFlightCache
from chronoverse.joblog.chunk import Chunk
from chronoverse.joblog.model import JobRef
from tests.support.waiting import wait_until

JOIN_SECONDS = 20.0


class CountingIndex:
    """A chunk index with ten lines per chunk, which counts its calls."""

    def __init__(self) -> None:
        self.asked = 0

    def chunk(self, job: JobRef, number: int) -> Chunk | None:
        self.asked += 1
        first = (number - 1) // 10 * 10 + 1
        return Chunk(first, first + 9, f"{job}/{first}/{self.asked}", 100, "", ())


def test_the_least_recently_used_value_is_evicted_first() -> None:
    """The values never exceed the cache's size."""
    cache: SingleFlightCache[str, str] = SingleFlightCache(100)
    loads: list[str] = []

    def get(key: str) -> str:
        def load() -> tuple[str, int]:
            loads.append(key)
            return key.upper(), 40

        return cache.get(key, load)

    assert [get(key) for key in ("a", "b", "a", "c", "a", "b")] == ["A", "B", "A", "C", "A", "B"]
    assert loads == ["a", "b", "c", "b"]


def test_a_value_larger_than_the_cache_is_returned_but_not_cached() -> None:
    cache: SingleFlightCache[str, str] = SingleFlightCache(100)
    assert cache.get("a", lambda: ("small", 60)) == "small"
    assert cache.get("b", lambda: ("large", 101)) == "large"
    assert cache.get("b", lambda: ("large again", 101)) == "large again"
    assert cache.get("a", lambda: ("not loaded", 60)) == "small"


def test_a_value_that_is_removed_while_it_is_loaded_is_not_cached() -> None:
    cache: SingleFlightCache[str, str] = SingleFlightCache(100)

    def load() -> tuple[str, int]:
        cache.forget(lambda key: key == "a")
        return "old", 1

    assert cache.get("a", load) == "old"
    assert cache.get("a", lambda: ("new", 1)) == "new"


def test_an_error_reaches_all_waiting_callers_and_is_not_cached() -> None:
    cache: SingleFlightCache[str, str] = SingleFlightCache(100)
    loading, gate = threading.Event(), threading.Event()
    errors, loads = list[str](), list[int]()

    def load() -> tuple[str, int]:
        loads.append(1)
        loading.set()
        assert gate.wait(JOIN_SECONDS)
        raise ValueError("no such object")

    def get() -> None:
        try:
            cache.get("a", load)
        except ValueError as error:
            errors.append(str(error))

    threads = [threading.Thread(target=get) for _ in range(3)]
    threads[0].start()
    assert loading.wait(JOIN_SECONDS)
    for thread in threads[1:]:
        thread.start()
    future = cache._loading["a"]
    wait_until(lambda: len(future._condition._waiters) == 2, JOIN_SECONDS, "two wait")  # type: ignore[attr-defined]
    gate.set()
    for thread in threads:
        thread.join(JOIN_SECONDS)
    assert (errors, len(loads)) == (["no such object"] * 3, 1)
    assert cache.get("a", lambda: ("value", 1)) == "value"


def test_a_waiting_caller_loads_the_value_if_the_loading_one_is_stopped() -> None:
    """A greenlet may be killed while it loads. Its waiters must not fail with it."""
    cache: SingleFlightCache[str, str] = SingleFlightCache(100)
    loading, gate = threading.Event(), threading.Event()
    found: list[str] = []

    def stopped() -> tuple[str, int]:
        loading.set()
        assert gate.wait(JOIN_SECONDS)
        raise KeyboardInterrupt

    def first() -> None:
        with pytest.raises(KeyboardInterrupt):
            cache.get("a", stopped)

    threads = [threading.Thread(target=first)]
    threads[0].start()
    assert loading.wait(JOIN_SECONDS)
    threads.append(threading.Thread(target=lambda: found.append(cache.get("a", lambda: ("value", 1)))))
    threads[1].start()
    gate.set()
    for thread in threads:
        thread.join(JOIN_SECONDS)
    assert found == ["value"]


@pytest.mark.parametrize("loaded", [False, True])
def test_a_chunk_record_is_cached_for_a_second(loaded: bool) -> None:
    """Counted from the request to the index, which may answer late."""
    now = 100.0
    index, job = CountingIndex(), JobRef("wf_1", "job_1")

    def answer_late(ref: JobRef, number: int) -> Chunk | None:
        nonlocal now
        now += RECORD_SECONDS * 0.6
        return index.chunk(ref, number)

    late = ChunkRecordCache(answer_late, lambda: now)
    if loaded:
        late.load(lambda: {job: found} if (found := answer_late(job, 1)) else {})
    for _ in range(2):
        late.chunk(job, 1)
    now += RECORD_SECONDS * 0.6
    late.chunk(job, 1)
    assert index.asked == 2
    index.asked = 0

    # What is forgotten meanwhile can have been replaced since.
    def replace(ref: JobRef, number: int) -> Chunk | None:
        replaced.forget(job)
        return index.chunk(ref, number)

    replaced = ChunkRecordCache(replace, lambda: now)
    assert replaced.chunk(job, 1) != replaced.chunk(job, 1)
    index.asked = 0
    cache = ChunkRecordCache(index.chunk, lambda: now)
    first = cache.chunk(job, 1)
    assert cache.chunk(job, 10) == first
    assert cache.chunk(job, 11) != first
    assert cache.chunk(JobRef("wf_1", "job_2"), 1) != first
    assert index.asked == 3
    now += RECORD_SECONDS * 1.01
    assert cache.chunk(job, 1) != first
    assert index.asked == 4


def test_the_number_of_chunk_records_is_bounded() -> None:
    """Evicted first: a job's oldest records, and the least recently read jobs."""
    index, job, other = CountingIndex(), JobRef("wf_1", "job_1"), JobRef("wf_1", "job_2")
    cache = ChunkRecordCache(index.chunk, lambda: 100.0)
    cache.chunk(other, 1)
    for number in range(RECORDS + 1):
        cache.chunk(job, 10 * number + 1)
    asked = index.asked
    cache.chunk(job, 10 * RECORDS + 1)
    assert index.asked == asked
    cache.chunk(job, 1)
    cache.chunk(other, 1)
    assert index.asked == asked + 2


def test_only_one_jobs_records_are_forgotten() -> None:
    index, job, other = CountingIndex(), JobRef("wf_1", "job_1"), JobRef("wf_1", "job_2")
    cache = ChunkRecordCache(index.chunk, lambda: 100.0)
    for ref in (job, job, other):
        for number in (1, 11):
            cache.chunk(ref, number)
    asked = index.asked
    cache.forget(job)
    for number in (1, 11):
        cache.chunk(other, number)
    assert index.asked == asked
    for number in (1, 11):
        cache.chunk(job, number)
    assert index.asked == asked + 2


def test_an_archivers_queue() -> None:
    """Garbage is collected periodically, and immediately after a failure. A snoozed job has no other work."""
    now, job, other = 100.0, JobRef("wf_1", "job_1"), JobRef("wf_2", "job_2")
    queue = _Queue(lambda: now)
    queue.note_garbage(job, 10)
    assert queue.next_kind() is queue.with_garbage
    queue.garbage_checked(job)
    queue.note_garbage(job, 10)
    assert queue.next_kind() is None
    queue.garbage_checked(job, failed=True)
    queue.note_garbage(job, 10)
    assert job in queue.with_garbage
    queue.garbage_checked(job)
    now += 10
    queue.note_garbage(job, 10)
    assert job in queue.with_garbage
    queue.garbage_checked(job)
    kinds: list[Any] = [queue.running, queue.waiting, queue.due, queue.over, queue.ended, queue.without_derived]
    for ref in (job, other):
        for kind in kinds:
            kind[ref] = None
        queue.throttled.add(ref)
        queue.late_since[ref] = now
    queue.snooze(job, 5)
    assert [[*kind] for kind in kinds] == [[other]] * 6
    assert (queue.throttled, [*queue.late_since]) == ({other}, [job, other])
    assert (queue.can_skip(job), queue.snoozed_workflows()) == (True, {"wf_1"})
    queue.wake({"wf_2"})
    assert queue.can_skip(job)
    queue.wake({"wf_1"})
    assert not queue.can_skip(job)
    queue.snooze(job, 5)
    now += 5
    assert not queue.can_skip(job)
    queue.forget(other)
    assert [*kinds, {*queue.throttled}, {*queue.late_since}] == [{}] * 6 + [set(), {job}]
