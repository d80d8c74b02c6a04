"""OpenTelemetry log records: each is in the log once and in order, or covered by a gap."""

import random
import secrets
from itertools import chain
from typing import Any

import pytest

from chronoverse.errors import Closed, Deleted, Held
from chronoverse.joblog.entries import read_entries
from chronoverse.joblog.model import End, Gap, Line, Status
from chronoverse.store import Store
from chronoverse.store.records import MISSING_SECONDS, RecordBatch, RecordRun
from tests.support.bench import JOB, NOW, Bench
from tests.support.waiting import wait_until


def numbered(first: int, last: int, generation: str = "aa", name: str = "a.log", time: int = 0) -> RecordBatch:
    """Records of one file, one line each with its number and the file's generation. ``time`` is that of the first."""
    messages = [f"{generation} {number}".encode() for number in range(first, last + 1)]
    # A new batch with the same records, as from another sender.
    digest = secrets.token_hex(8)
    source = (name, generation if first == 1 else "")
    return RecordBatch([RecordRun(NOW, "stdout", False, 1, first, 1, messages, time)], digest, [source])


def plain(digest: str, *texts: str, end: tuple[Status, int | None] | None = None) -> RecordBatch:
    runs = [RecordRun(NOW, "stderr", False, 0, 0, 0, [text.encode() for text in texts])] if texts else []
    return RecordBatch(runs, digest, end=end)


def content(bench: Bench) -> list[Any]:
    """A reader's view of the log: texts, gaps, and the end's status."""
    entries = read_entries(bench.ask("XRANGE", bench.key("log"), "-", "+"), 0)
    return [e.message if isinstance(e, Line) else e.status if isinstance(e, End) else e for e in entries]


def texts(first: int, last: int, generation: str = "aa") -> list[str]:
    return [f"{generation} {number}" for number in range(first, last + 1)]


def age_holes(bench: Bench, seconds: float) -> None:
    """Makes the store's wait for missing records that much longer."""
    for name, value in _pairs(bench.ask("HGETALL", bench.key("files"))):
        number, first, since, *rest = value.decode().split(" ")
        since = str(int(since) - round(1000 * seconds)) if since != "0" else since
        bench.ask("HSET", bench.key("files"), name, " ".join((number, first, since, *rest)))


def _pairs(flat: list[bytes]) -> list[tuple[bytes, bytes]]:
    return list(zip(flat[::2], flat[1::2], strict=True))


def test_a_hole_becomes_a_gap_after_some_seconds(bench: Bench, store: Store) -> None:
    """The gap has one number per missing record. Records that arrive for it later are skipped."""
    store.records.append(JOB, numbered(1, 3))
    later, last = numbered(6, 8), numbered(11, 12)
    assert store.records.append(JOB, last).waits
    age_holes(bench, -3_600)  # the store's clock was set back
    for batch in (later, last):
        assert store.records.append(JOB, batch).waits
    age_holes(bench, MISSING_SECONDS)
    # The batch with the lowest number received is appended first, whoever asks first.
    assert store.records.append(JOB, last).waits
    assert not store.records.append(JOB, later).waits
    assert content(bench) == [*texts(1, 3), Gap(4, 5, "missing"), *texts(6, 8)]
    assert store.records.append(JOB, last).waits
    age_holes(bench, MISSING_SECONDS)
    assert not store.records.append(JOB, last).waits
    assert not store.records.append(JOB, numbered(4, 12)).waits
    expected = [*texts(1, 3), Gap(4, 5, "missing"), *texts(6, 8), Gap(9, 10, "missing"), *texts(11, 12)]
    assert content(bench) == expected
    store.records.append(JOB, plain("d", end=(Status.COMPLETED, 0)))
    assert content(bench) == [*expected, Status.COMPLETED]


def test_a_sender_of_the_lowest_number_that_never_returns_blocks_nobody(bench: Bench, store: Store) -> None:
    """After twice the time, any later batch is appended."""
    store.records.append(JOB, numbered(5, 6))
    age_holes(bench, 2 * MISSING_SECONDS)
    assert not store.records.append(JOB, numbered(9, 9)).waits
    assert content(bench) == [Gap(1, 8, "missing"), "aa 9"]


def test_a_rotated_file_restarts_its_numbers(bench: Bench, store: Store) -> None:
    """A different first record identifies the new file."""
    for batch in (numbered(1, 5), numbered(1, 5), numbered(1, 2, "bb"), numbered(3, 9, "bb"), numbered(1, 2, "bb")):
        assert not store.records.append(JOB, batch).waits
    assert content(bench) == [*texts(1, 5), *texts(1, 9, "bb")]


@pytest.mark.parametrize("ends_at", [500, 75])
def test_the_rest_of_a_rotated_file_can_follow_the_next_file(bench: Bench, store: Store, ends_at: int) -> None:
    """Recognized by its time, even if its numbers are the next ones of the other file, and if it is repeated."""
    rest = [numbered(first, first + 19, time=first) for first in range(ends_at + 1, ends_at + 81, 20)]
    store.records.append(JOB, numbered(1, ends_at, time=1))
    store.records.append(JOB, numbered(1, 2, "bb", time=1000))
    assert store.records.append(JOB, numbered(4, 4, "bb", time=999)).waits
    for batch in (
        numbered(3, 75, "bb", time=1003),
        # A program's times need not be in order, unless the numbers fit both files.
        numbered(76, 80, "bb", time=900 if ends_at == 500 else 1076),
        rest[0],
        numbered(81, 90, "bb", time=1081),
        rest[0],
    ):
        assert not store.records.append(JOB, batch).waits
    assert store.records.append(JOB, rest[2]).waits
    for batch in (rest[1], rest[2], rest[3], numbered(91, 700, "bb", time=1091), rest[3]):
        assert not store.records.append(JOB, batch).waits
    both = content(bench)
    assert [text for text in both if "aa" in text] == texts(1, ends_at + 80)
    assert [text for text in both if "bb" in text] == texts(1, 700, "bb")


def test_the_rest_of_a_rotated_file_can_share_the_time_of_the_next_file(bench: Bench, store: Store) -> None:
    """Times in seconds, or none at all: then the numbers decide, where they can."""
    for first, last, generation in ((1, 500, "aa"), (1, 75, "bb"), (501, 600, "aa"), (76, 80, "bb"), (601, 610, "aa")):
        assert not store.records.append(JOB, numbered(first, last, generation)).waits
    assert content(bench) == [
        *texts(1, 500),
        *texts(1, 75, "bb"),
        *texts(501, 600),
        *texts(76, 80, "bb"),
        *texts(601, 610),
    ]


def test_rotated_files_from_overtaking_senders_lose_nothing(bench: Bench, store: Store) -> None:
    """Each batch is one of the next four, and is retried after it has waited."""
    rng, batches, expected = random.Random(5), list[RecordBatch](), dict[str, list[str]]()
    for generation in ("aa", "bb", "cc", "dd"):
        count, number = rng.randint(150, 400), 1
        expected[generation] = texts(1, count, generation)
        while number <= count:
            last = min(number + rng.randint(0, 30), count)
            batches.append(numbered(number, last, generation, time=1_000_000 * len(expected) + number))
            number = last + 1
    firsts = [batch for batch in batches if batch.sources[0][1]]
    while batches:
        batch = rng.choice(batches[:4])
        # A batch from before a file's first record cannot be distinguished from that file.
        if batch is not batches[0] and any(each in firsts for each in batches[: batches.index(batch)]):
            continue
        if not store.records.append(JOB, batch).waits:
            batches.remove(batch)
    found = content(bench)
    for generation, lines in expected.items():
        assert [text for text in found if generation in str(text)] == lines
    assert len(found) == sum(map(len, expected.values()))


def test_a_record_of_several_lines_is_appended_whole(bench: Bench, store: Store) -> None:
    """All its lines share a number, and a second file is numbered separately."""
    runs = [
        RecordRun(NOW, "stdout", False, 1, 1, 0, [b"a", b"b"]),
        RecordRun(NOW, "stdout", True, 1, 1, 0, [b"c"]),
        RecordRun(NOW, "stdout", False, 1, 1, 0, [b"d"]),
        RecordRun(NOW, "stderr", False, 2, 1, 1, [b"e", b"f"]),
        RecordRun(NOW, "stdout", False, 1, 2, 1, [b"g"]),
    ]
    for digest in ("x", "y"):
        assert not store.records.append(JOB, RecordBatch(runs, digest, [("a.log", "aa"), ("b.log", "bb")])).waits
    assert content(bench) == list("abcdefg")


def test_a_batch_without_numbers_is_appended_once(bench: Bench, store: Store) -> None:
    """Its digest is remembered for ten minutes, even after the job's end."""
    last = plain("2", "b", end=(Status.FAILED, 7))
    bench.ask("ZADD", bench.key("batches"), 1, "an old digest")
    for batch in (plain("1", "a"), plain("1", "a"), last, last, plain("1", "a")):
        store.records.append(JOB, batch)
    assert content(bench) == ["a", "b", Status.FAILED]
    with pytest.raises(Closed):
        store.records.append(JOB, plain("3", "c"))
    job = store.require_job(JOB)
    assert (job.exit_code, job.lines) == (7, 2)
    assert 0 < bench.ttl("batches") <= 600_000
    assert bench.ask("ZCARD", bench.key("batches")) == 2


def test_marks_outlive_the_end_and_expire_with_the_log(bench: Bench, store: Store) -> None:
    """A retry of the last lines is not refused."""
    store.records.append(JOB, numbered(1, 5))
    assert bench.ttl("files") == -1
    store.records.append(JOB, plain("d", end=(Status.COMPLETED, None)))
    assert not store.records.append(JOB, numbered(4, 5)).waits
    with pytest.raises(Closed):
        store.records.append(JOB, numbered(5, 6))
    assert bench.ttl("files") == pytest.approx(bench.ttl("log"), abs=1_000)
    # Otherwise the records of the next job with this id would count as repeated.
    store.catalog.apply_retention(JOB, None, 5)
    assert 0 < bench.ttl("files") <= 5_000


def test_a_job_of_a_runner_is_refused(bench: Bench, store: Store) -> None:
    """As are the logs of foreign runners and deleted jobs. A runner can continue a job of records."""
    store.records.append(JOB, numbered(1, 2))
    attempt = store.open(JOB, "token")
    assert (attempt.attempt, attempt.next) == (2, 3)
    with pytest.raises(Held):
        store.records.append(JOB, numbered(1, 3))
    assert not store.records.append(JOB, numbered(1, 2)).waits
    foreign = JOB._replace(job_id="foreign")
    bench.xadd("1-0", "message", "x", job=foreign)
    with pytest.raises(Held):
        store.records.append(foreign, plain("d", "y"))
    gone = JOB._replace(job_id="gone")
    bench.ask("SET", bench.key("deleted", gone), "1")
    with pytest.raises(Deleted):
        store.records.append(gone, plain("d", "y"))


@pytest.mark.parametrize("senders_first", [True, False])
def test_records_continue_an_imported_job_until_a_runner_opens_it(
    bench: Bench, store: Store, senders_first: bool
) -> None:
    """The import cannot know who wrote it. These are the keys that it creates."""
    fields = {"status": "RUNNING", "attempt": "1", "archived": "3", "archived_first": "1", "imported": "3"}
    bench.ask("HSET", bench.key("job"), *chain(*fields.items()))
    bench.ask("SET", bench.key("lease"), "next")
    if senders_first:
        store.records.append(JOB, plain("a", "x"))
    attempt = store.open(JOB, "token")
    assert (attempt.attempt, attempt.next) == (2, 4 + senders_first)
    store.finish(attempt, Status.PENDING, 0, 0, attempt.next)
    with pytest.raises(Held):
        store.records.append(JOB, plain("b", "y"))


def test_a_registered_job_starts_with_its_first_record(bench: Bench, store: Store) -> None:
    """From then on it does not expire."""
    store.register(JOB)
    store.records.append(JOB, numbered(1, 2))
    job = store.require_job(JOB)
    assert (job.status, job.attempt, bench.ttl("job")) == (Status.RUNNING, 1, -1)


def test_a_silent_job_is_lost_only_with_a_setting(bench: Bench, store: Store) -> None:
    """Every batch restarts the timeout, even a repeated one."""
    other = JOB._replace(job_id="job_2")
    store.records.append(other, numbered(1, 2))
    assert bench.ttl("lease", other) == -1
    store.records.append(JOB, numbered(1, 2), idle_seconds=100)
    bench.ask("PEXPIRE", bench.key("lease"), 5_000)
    store.records.append(JOB, numbered(1, 2), idle_seconds=100)
    assert 90_000 < bench.ttl("lease") <= 100_000
    bench.ask("DEL", bench.key("lease"))
    eager = bench.new_store(lease_seconds=0.05)
    wait_until(lambda: status_of(eager) is Status.LOST, 20, "the job is lost")
    assert content(bench) == [*texts(1, 2), Status.LOST]


def status_of(store: Store) -> Status | None:
    job = store.get_job(JOB)
    return job.status if job else None


def test_quotas_omit_lines(bench: Bench, store: Store) -> None:
    """A gap covers their numbers, and their records are acknowledged as appended."""
    store.catalog.set_common_bounds(116, 0, list)
    assert store.records.append(JOB, numbered(1, 6)).left_out == 2
    assert store.records.append(JOB, numbered(5, 8)).left_out == 2
    age_holes(bench, 0)
    assert not store.records.append(JOB, numbered(1, 8)).left_out
    # Missing records after an omitted line belong to its gap.
    runs = [RecordRun(NOW, "stdout", False, 0, 0, 0, [b"x"]), *numbered(11, 11).runs]
    for _ in range(2):
        assert store.records.append(JOB, RecordBatch(runs, "c", [("a.log", "")])).left_out
        age_holes(bench, MISSING_SECONDS)
    store.records.append(JOB, plain("d", end=(Status.COMPLETED, 0)))
    assert content(bench) == [*texts(1, 4), Gap(5, 13, "quota"), Status.COMPLETED]


def test_marks_of_files_count_in_quotas(bench: Bench, store: Store) -> None:
    """Records of a file without room for its mark are omitted immediately, whatever their numbers."""
    store.catalog.set_common_bounds(2_000, 0, list)
    for first in range(0, 100, 10):
        sources = [(f"{number}.log", "aa") for number in range(first, first + 10)]
        runs = [RecordRun(NOW, "stdout", False, source, 1, 1, [b"text"] * 2) for source in range(1, 11)]
        store.records.append(JOB, RecordBatch(runs, f"{first}", sources))
    assert bench.ask("HLEN", bench.key("files")) <= 20
    appended = store.records.append(JOB, numbered(3, 4, name="99.log"))
    assert (appended.left_out, appended.waits) == (2, False)
    store.records.append(JOB, plain("d", end=(Status.COMPLETED, 0)))
    found = content(bench)
    assert found[-2:] == [Gap(found.index(found[-2]) + 1, 202, "quota"), Status.COMPLETED]
    job = store.require_job(JOB)
    assert job.dropped == 202 - (len(found) - 2)


def test_no_record_is_duplicated_in_any_order(bench: Bench, store: Store) -> None:
    """Some batches are lost, some repeated. Each record is in the listed job once and in order, or in a gap."""
    rng = random.Random(11)
    batches = [numbered(first, first + 6) for first in range(1, 300, 7)]
    lost = set(rng.sample(range(len(batches) - 1), 6))
    waiting = [batch for number, batch in enumerate(batches) if number not in lost]
    waiting += waiting[:5]
    appended: set[int] = set()
    while waiting:
        rng.shuffle(waiting)
        again = [batch for batch in waiting if store.records.append(JOB, batch).waits]
        appended |= {batch.runs[0].number for batch in waiting if batch not in again}
        if again == waiting:
            age_holes(bench, MISSING_SECONDS)
        waiting = again
    found = content(bench)
    numbers = [int(text.split()[1]) for text in found if isinstance(text, str)]
    assert numbers == sorted(set(numbers))
    assert store.listing.page("wf_1", None, 10) != []
    assert {1 + 7 * number for number in lost}.isdisjoint(numbers)
    assert len(numbers) == 7 * (len(batches) - len(lost))
    assert sum(gap.last - gap.first + 1 for gap in found if isinstance(gap, Gap)) == 7 * len(lost)
