"""Redactions at the edges of a log, and when the old text may remain."""

import os
import threading
import time
from collections.abc import Iterator
from functools import partial
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Final

import pytest

from chronoverse.archive import redaction
from chronoverse.archive.chunk_writer import fill
from chronoverse.archive.job_objects import archive_lock
from chronoverse.archive.manifest import read_manifest
from chronoverse.archive.object_store import FileObjectStore, StoredObject
from chronoverse.archive.redaction import Redaction, RedactionRequest, RedactionResult
from chronoverse.errors import ArchiveUnavailable, Fenced, LineStillOpen, QuotaReached, StoreUnavailable
from chronoverse.joblog.chunk import folder
from chronoverse.joblog.model import REDACTED_MESSAGE, Line, Status
from chronoverse.store.keys import ARCHIVE_LOCK
from tests.support.archivers import all_entries, archive
from tests.support.archives import archive_up_to
from tests.support.bench import JOB, Bench, make_lines, write_ended
from tests.support.waiting import wait_until

#: Fields of the hash that describe the archive, and are deleted by a redaction.
DERIVED: Final = {"archive_state", "archive_sha256", "archive_shapes", "swept"}


def redact(bench: Bench, objects: FileObjectStore, first: int, last: int, exact: bool = True) -> RedactionResult:
    audit = {"at": "2026-03-03T10:00:05.123Z", "subject": "me"}
    request = RedactionRequest(first, last, lambda line: line.sequence_num % 2 == 0, audit, exact=exact)
    return Redaction(bench.store, objects, JOB, request).run()


def redacted(bench: Bench, objects: FileObjectStore) -> list[int]:
    entries = all_entries(bench.store, objects, JOB)
    return [each.sequence_num for each in entries if isinstance(each, Line) and each.message == REDACTED_MESSAGE]


@pytest.mark.parametrize("archived", [False, True])
@pytest.mark.parametrize("ended", [True, False])
def test_the_last_line_can_be_redacted_once_the_log_has_ended(
    bench: Bench, objects: FileObjectStore, ended: bool, archived: bool
) -> None:
    """A running job's newest line cannot be redacted. Each line is counted once, and stays redacted."""
    attempt = bench.store.open(JOB, "token")
    bench.store.append(attempt, make_lines(1, 10))
    if ended:
        bench.store.finish(attempt, Status.COMPLETED, 0, 0, 11)
    if archived:
        archive(bench.store, objects, hot_seconds=0, running_seconds=0)
    if not ended:
        with pytest.raises(LineStillOpen, match="line 10 is the newest"):
            redact(bench, objects, 4, 10)
    bench.ask("RPUSH", bench.key("audit"), *["{}"] * 1_000)
    found = redact(bench, objects, 4, 10, exact=False)
    numbers = [4, 6, 8, 10] if ended else [4, 6, 8]
    assert (found.lines, found.last_checked, found.complete) == (len(numbers), 10 if ended else 9, True)
    assert redacted(bench, objects) == numbers
    assert redact(bench, objects, 1, 9).lines == 1
    assert redacted(bench, objects) == [2, *numbers]
    assert [each["count"] for each in bench.store.chunks.audit(JOB)] == [len(numbers), 1]
    # Even if its archiver comes later.
    assert bench.ttl("job") == -1
    if archived and ended:
        assert not DERIVED & {*bench.hash()}


def test_a_redaction_keeps_the_lines_of_a_log_over_its_quota(bench: Bench, objects: FileObjectStore) -> None:
    """The entry for the omitted lines was replaced with XDEL, below which XSETID does not go."""
    bench.store.catalog.change_settings("wf_1", job_bytes=120)
    attempt = bench.store.open(JOB, "token")
    for first in (1, 21, 31):
        with pytest.raises(QuotaReached):
            bench.store.append(attempt, make_lines(first, 20))
    bench.store.finish(attempt, Status.COMPLETED, 0, 0, 51)
    before = all_entries(bench.store, objects, JOB)
    for number in (2, 4):
        assert redact(bench, objects, 1, number).lines == 1
    after = all_entries(bench.store, objects, JOB)
    changed = [was for was, now in zip(before, after, strict=True) if was != now]
    assert [each.sequence_num for each in changed if isinstance(each, Line)] == [2, 4]
    assert len(changed) == 2


def test_a_long_redaction_reports_its_progress(
    bench: Bench, objects: FileObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It times out after each chunk. The store's lines come after the archived ones.

    It continues no earlier than it began, even if it has only archived earlier lines yet.
    """
    bench.store.append(bench.store.open(JOB, "token"), make_lines(1, 30))
    for last in (10, 20):
        archive_up_to(bench.store, objects, JOB, last)
    ticks = count(step=10)
    monkeypatch.setattr(redaction, "time", SimpleNamespace(time=time.time, monotonic=lambda: next(ticks)))
    found = [redact(bench, objects, first, 29) for first in (1, 11)]
    assert [(each.last_checked, each.complete) for each in found] == [(10, False), (29, True)]
    assert redacted(bench, objects) == [*range(2, 29, 2)]
    bench.store.append(bench.store.open(JOB, "token"), make_lines(31, 80, "x" * 10_000))
    monkeypatch.setattr(redaction, "fill", partial(fill, text_bytes=1))
    late = redact(bench, objects, 100, 105)
    assert (late.lines, late.last_checked, late.complete) == (0, 99, False)


def refuse(name: str) -> None:
    raise ArchiveUnavailable(name)


def test_the_description_of_the_old_text_is_deleted(
    bench: Bench, objects: FileObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The archiver recreates it. An object that only the manifest names may contain the text: the result is pending."""
    write_ended(bench.store)
    before = {kind: bench.ask("DUMP", bench.key(kind)) for kind in ("job", "log")}
    assert archive(bench.store, objects, hot_seconds=1_000) == 0
    assert {"archive_state", "archive_sha256", "archive_shapes"} <= {*bench.hash()}
    bench.store.chunks.mark_swept(JOB)
    old = {each.name for each in objects.list("")}
    assert redact(bench, objects, 1, 9).lines == 4
    assert [name for name in old & {each.name for each in objects.list("")} if name.endswith(".zst")] == []
    assert not DERIVED & {*bench.hash()}
    assert archive(bench.store, objects, hot_seconds=1_000) == 0
    assert {"archive_state", "archive_sha256", "archive_shapes"} <= {*bench.hash()}
    # What cannot be deleted yet stays garbage: the new manifest does not name it.
    monkeypatch.setattr(objects, "delete", refuse)
    assert redact(bench, objects, 10, 10).pending
    assert archive(bench.store, objects, hot_seconds=1_000) == 0
    manifest = read_manifest(objects, JOB)
    assert manifest
    assert manifest.names == {each.name for each in bench.store.chunks.chunks(JOB)}
    monkeypatch.undo()
    # The store goes back to before the archiver ran.
    bench.ask("DEL", bench.key("archive"), bench.key("garbage"))
    for kind, value in before.items():
        bench.ask("RESTORE", bench.key(kind), 0, value, "REPLACE")
    assert redact(bench, objects, 10, 10).pending


def test_a_redaction_that_the_store_loses_fails(bench: Bench, tmp_path: Path) -> None:
    """The store lost power before the redaction reached its disk. The archive lock is older, and still held."""
    bench.store.append(bench.store.open(JOB, "token"), make_lines(1, 10))
    before: dict[str, object] = {}

    class LosesPower(FileObjectStore):
        def list(self, prefix: str) -> Iterator[StoredObject]:
            kinds = ("job", "log", "archive", "garbage")
            if not before:
                before.update({kind: bench.ask("DUMP", bench.key(kind)) for kind in kinds})
            elif redacted(bench, self) == [2]:
                bench.ask("DEL", *(bench.key(kind) for kind in kinds))
                for kind in ("job", "log"):
                    bench.ask("RESTORE", bench.key(kind), 0, before[kind])
            return super().list(prefix)

    objects = LosesPower(tmp_path / "archive")
    with pytest.raises(StoreUnavailable, match="lost the redaction"):
        redact(bench, objects, 1, 2)
    assert redacted(bench, objects) == []
    objects.put(f"{folder(JOB)}unrecorded", b"old text")
    os.utime(tmp_path / "archive" / folder(JOB) / "unrecorded", (time.time() + 40,) * 2)  # its clock is ahead
    assert not redact(bench, FileObjectStore(tmp_path / "archive"), 1, 2).pending
    assert redacted(bench, objects) == [2]


def test_a_lost_lock_is_not_acquired_again(bench: Bench) -> None:
    """The store can have lost the job as well, and its holder would take all objects for garbage."""
    others, key = {*threading.enumerate()}, bench.key(ARCHIVE_LOCK)
    with archive_lock(bench.store, JOB, 0.3):
        bench.ask("PEXPIRE", key, 60_000)
        wait_until(lambda: bench.ttl(ARCHIVE_LOCK) < 400, 20, "the lock is renewed")
        bench.ask("DEL", key)
        wait_until(lambda: {*threading.enumerate()} <= others, 20, "nobody renews it")
        assert bench.ttl(ARCHIVE_LOCK) == -2


def test_an_archiver_without_the_lock_marks_only_its_own_upload(bench: Bench) -> None:
    """Another's upload in progress will be recorded later. The lock's holder marks and gets all."""
    index = bench.store.chunks
    own, other, third = (f"wf_1/job_1/{name}" for name in ("own", "other", "third"))
    for token, name in (("first", own), ("second", other)):
        bench.ask("DEL", bench.key(ARCHIVE_LOCK))
        assert index.acquire_lock(JOB, token, 60)
        index.begin_upload(JOB, token, name)
    assert [{*index.mark_garbage(JOB, "first", [third])} for _ in range(2)] == [{own}, set()]
    assert index.garbage(JOB) == {own, other}
    assert bench.ask("HGET", bench.key("garbage"), other) == b"writer:second"
    assert {*index.mark_garbage(JOB, "second", [third])} == {own, other, third}
    with pytest.raises(Fenced):
        index.begin_upload(JOB, "first", own)


def test_an_archived_job_does_not_expire_and_keeps_its_logs_expiry(bench: Bench, objects: FileObjectStore) -> None:
    """From its first chunk. Completing it again does not extend its log's time to live."""
    write_ended(bench.store)
    assert bench.ttl("job") > 0
    archive_up_to(bench.store, objects, JOB, 5, trim=False)
    assert (bench.ttl("job"), bench.ttl("archive")) == (-1, -1)
    assert archive(bench.store, objects, hot_seconds=1_000) == 0
    assert 900_000 < bench.ttl("log") <= 1_000_000
    bench.ask("PEXPIRE", bench.key("log"), 50_000)
    bench.ask("HDEL", bench.key("job"), "archive_state", "archive_sha256", "archive_shapes")
    assert archive(bench.store, objects, hot_seconds=1_000) == 0
    assert bench.store.catalog.archive_state(JOB).complete
    assert 0 < bench.ttl("log") <= 50_000
    assert bench.ttl("job") == -1
