"""An archiver between random operations on jobs: which lines remain, where their text is, and when jobs are deleted.

The archive can be unavailable, objects can stay that should be deleted, archivers restart, and the store loses jobs.
"""

import contextlib
import os
import random
import time
from collections.abc import Callable
from itertools import count
from pathlib import Path

import orjson
import pytest

from chronoverse import metrics
from chronoverse.archive.codec import read_chunk
from chronoverse.archive.derived import derived_names
from chronoverse.archive.importing import import_jobs
from chronoverse.archive.manifest import manifest_name, read_manifest
from chronoverse.archive.object_store import FileObjectStore
from chronoverse.archive.redaction import REDACTED_MESSAGE, Redaction, RedactionRequest
from chronoverse.archive.workflow_settings import change_settings
from chronoverse.errors import ArchiveUnavailable
from chronoverse.joblog.chunk import combined_sha256, folder
from chronoverse.joblog.model import Attempt, JobRef, Line, Status, iso_timestamp, seconds_of
from chronoverse.store.keys import JOB_KEYS
from tests.support.archivers import all_entries, archiver
from tests.support.bench import Bench

#: Seconds. ``RETRY``: within which an archiver retries what failed. ``SETTLED``: within which it looks at every job.
RETENTION, SHORT_RETENTION, ORPHAN, RUNNING, RETRY, SETTLED = 2_000, 900, 500, 60, 70, 310


class Objects(FileObjectStore):
    """Files that are as old as they are on the machine's clock."""

    away = stuck = False

    def __init__(self, directory: Path, now: Callable[[], float]) -> None:
        super().__init__(directory)
        self.directory, self.now = directory, now

    def put(self, name: str, data: bytes) -> None:
        if self.away:
            raise ArchiveUnavailable("away")
        super().put(name, data)
        os.utime(self.directory / name, (self.now(), self.now()))

    def delete(self, name: str) -> None:
        if self.away or self.stuck:
            raise ArchiveUnavailable("stuck")
        super().delete(name)


def with_line(objects: FileObjectStore, job: JobRef, text: str) -> set[str]:
    """The job's objects with that line."""
    names = {
        each.name: int(each.name.rpartition("/")[2][:15]) for each in objects.list(folder(job)) if ".zst" in each.name
    }
    return {name for name, first in names.items() if read_chunk(job, name, first, objects.get(name), text)[1]}


class Log:
    """A job's lines as printed and as shown. ``tainted``: objects with text that was redacted since."""

    def __init__(self, ref: JobRef, attempt: Attempt) -> None:
        self.ref, self.attempt = ref, attempt
        self.printed: list[str] = []
        self.shown: list[str] = []
        self.ended_at: float | None = None
        self.redacted_at = 0.0
        self.secrets: list[str] = []
        self.tainted: set[str] = set()
        self.was_lost = False


class Machine:
    def __init__(self, bench: Bench, directory: Path, seed: int) -> None:
        self.bench, self.chance, self.seconds, self.began = bench, random.Random(seed), 0.0, time.time()
        self.store = bench.new_store(clock=self.now)
        self.objects = Objects(directory, self.now)
        self.hot_seconds = self.chance.choice([0, 3_600])
        self.logs: list[Log] = []
        self.numbers = count()
        self.retention = {"wf_1": RETENTION, "wf_2": RETENTION}
        #: When something last kept the archiver from its work.
        self.disturbed = 0.0
        self.restart()

    def now(self) -> float:
        return self.began + self.seconds

    def restart(self) -> None:
        """Another archiver continues."""
        self.archiver = archiver(
            self.store,
            self.objects,
            clock=self.now,
            monotonic=lambda: self.seconds,
            hot_seconds=self.hot_seconds,
            retention_seconds=RETENTION,
            running_seconds=RUNNING,
            orphan_seconds=ORPHAN,
        )

    # Operations

    def open(self) -> None:
        ref = JobRef(self.chance.choice([*self.retention]), f"job_{next(self.numbers)}")
        self.logs.append(Log(ref, self.store.open(ref, "token")))

    def append(self, log: Log) -> None:
        if log.ended_at is None:
            texts = [f"{log.ref.job_id} {self.chance.randbytes(8).hex()}" for _ in range(self.chance.randrange(1, 40))]
            log.printed += texts
            log.shown += texts
            self.send(log, len(log.printed) - len(texts))

    def send(self, log: Log, start: int) -> None:
        stamp = iso_timestamp(self.now())
        lines = [Line(at, stamp, text, "stdout") for at, text in enumerate(log.printed[start:], start + 1)]
        if lines:
            self.store.append(log.attempt, lines)

    def end(self, log: Log) -> None:
        if log.ended_at is None and log.printed:
            self.store.finish(log.attempt, Status.COMPLETED, 0, 0, len(log.printed) + 1)
            log.ended_at = self.seconds

    def redact(self, log: Log) -> None:
        last = len(log.shown) - (log.ended_at is None)
        if self.objects.away or last < 1 or self.is_over(log):
            return
        number = self.chance.randint(1, last)
        if (text := log.shown[number - 1]) == REDACTED_MESSAGE:
            return
        tainted = with_line(self.objects, log.ref, text)
        # The objects with the text can stay for now. Meanwhile, the archiver describes the log again.
        before, self.objects.stuck = self.objects.stuck, self.chance.random() < 0.5
        request = RedactionRequest(number, number, lambda line: True, {"at": "", "subject": "me"}, exact=True)
        assert Redaction(self.store, self.objects, log.ref, request).run().lines == 1
        log.shown[number - 1] = REDACTED_MESSAGE
        self.settle(self.chance.choice([1, SETTLED]))
        self.objects.stuck = before
        log.redacted_at = self.disturbed = self.seconds
        log.tainted |= tainted
        log.secrets.append(text)
        assert self.bench.keys_with(text.encode()) == []

    def lose(self, log: Log) -> None:
        """The store loses a job that the archive, or its runner, can restore. Either can come first."""
        is_archived = self.store.catalog.archive_state(log.ref).complete
        if self.objects.away or self.is_over(log) or not (log.ended_at is None or is_archived):
            return
        job = self.store.require_job(log.ref)
        self.bench.ask("DEL", *(self.bench.key(kind, log.ref) for kind in JOB_KEYS))
        log.was_lost = True
        is_first = log.ended_at is None and self.chance.random() < 0.5 and job.archived > 0
        if is_first:
            log.attempt = self.store.open(log.ref, "token")
            kept = self.chance.randint(1, job.archived)
            self.store.append_lost(log.attempt, 1, kept)
            self.send(log, kept)
        problems = [each.problem for each in import_jobs(self.store, self.objects, 60, self.now) if each.job == log.ref]
        assert set(problems) <= {""}
        if log.ended_at is None and not is_first:
            log.attempt = self.store.open(log.ref, "token")
            self.send(log, log.attempt.next - 1)

    def shorten(self, workflow: str) -> None:
        self.logs = [log for log in self.logs if not self.is_over(log)]  # it may be gone, whatever is set now
        own = self.chance.choice([RETENTION, SHORT_RETENTION])
        self.retention[workflow] = own
        self.disturbed = self.seconds
        change_settings(self.store, workflow, {"retention_seconds": own}, RETENTION, lambda *_: None)

    def wait(self, log: Log) -> None:
        """Until the job's retention is over. Before, the archive may be away; at the end, objects may stay."""
        self.heal()
        if log.ended_at is None:
            self.settle(self.chance.choice([5, RUNNING, 200]))
            return
        over_at = log.ended_at + self.retention[log.ref.workflow_id]
        if self.seconds < over_at - 400 and self.chance.random() < 0.7:
            self.objects.away = True
            self.settle(over_at - self.chance.randint(120, 290) - self.seconds)
            self.objects.away = False
        self.settle(RETRY)
        self.objects.stuck = self.chance.random() < 0.4
        self.settle(max(1.0, over_at + 1 - self.seconds))
        if self.objects.stuck:
            self.heal()
            self.settle(RETRY)
        if not log.was_lost:
            assert (self.store.get_job(log.ref), [*self.objects.list(folder(log.ref))]) == (None, []), log.ref

    def step(self) -> None:
        """A random operation, after which the archiver sometimes looks."""
        match self.chance.randrange(14):
            case 0:
                self.heal()
                self.objects.away, self.objects.stuck = self.chance.choice(
                    [(True, False), (False, True), (False, False)]
                )
            case 1:
                self.restart()
            case 2:
                self.shorten(self.chance.choice([*self.retention]))
            case 3 if len(self.logs) < 4:
                self.open()
            case choice if self.logs:
                operations = [self.append, self.end, self.redact, self.redact, self.lose, self.wait]
                operations[choice % len(operations)](self.chance.choice(self.logs))
        if self.chance.random() < 0.3:
            self.settle(1)
        self.logs = [log for log in self.logs if self.store.get_job(log.ref) or not self.is_over(log)]

    def heal(self) -> None:
        if self.objects.away or self.objects.stuck:
            self.disturbed = self.seconds
        self.objects.away = self.objects.stuck = False

    # Time

    def settle(self, seconds: float) -> None:
        """That many seconds pass, at the end of which the archiver looks often."""
        self.pass_by(seconds)
        for _ in range(12):
            self.pass_by(0.5)
            # An unavailable archive is retried.
            with contextlib.suppress(ArchiveUnavailable):
                while self.archiver.step():
                    pass

    def pass_by(self, seconds: float) -> None:
        """The server's clock cannot be set, so what it has noted becomes older."""
        self.seconds += seconds
        for log in self.logs:
            job, garbage = (self.bench.key(kind, log.ref) for kind in ("job", "garbage"))
            if seen := self.bench.ask("HGET", job, "end_seen_ms"):
                self.bench.ask("HSET", job, "end_seen_ms", round(int(seen) - 1000 * seconds))
            marks = self.bench.ask("HGETALL", garbage)
            for name, mark in zip(marks[::2], marks[1::2], strict=True):
                why, colon, at = mark.rpartition(b":")
                if at.isdigit():
                    self.bench.ask("HSET", garbage, name, why + colon + b"%d" % (int(at) - seconds))
            manifest = self.objects.directory / manifest_name(log.ref)
            with contextlib.suppress(FileNotFoundError):
                fields = orjson.loads(manifest.read_bytes())
                if ended := seconds_of(fields.get("ended_at")):
                    manifest.write_bytes(orjson.dumps({**fields, "ended_at": iso_timestamp(ended - seconds)}))

    def is_over(self, log: Log) -> bool:
        """Whether the job's retention is or may be over: on the server, the test's own seconds pass, too."""
        seconds = self.seconds + time.time() - self.began
        return log.ended_at is not None and seconds - log.ended_at >= self.retention[log.ref.workflow_id]

    # Judgement

    def judge(self) -> None:
        self.heal()
        for seconds in (SETTLED, 5):
            self.settle(seconds)
        for log in self.logs:
            self.judge_log(log)
        assert (metrics.ARCHIVE_WAITING._value.get(), metrics.ARCHIVE_LAG._value.get()) == (0, 0)

    def judge_log(self, log: Log) -> None:
        existing = {each.name for each in self.objects.list(folder(log.ref))}
        if log.ended_at is not None and self.seconds - log.ended_at > self.retention[log.ref.workflow_id] + SETTLED:
            assert (self.store.get_job(log.ref), existing) == (None, set()), log.ref
        if self.is_over(log):
            return
        entries = [each for each in all_entries(self.store, self.objects, log.ref) if isinstance(each, Line)]
        assert [(each.sequence_num, each.message) for each in entries] == [*enumerate(log.shown, 1)], log.ref
        chunks = self.store.chunks.chunks(log.ref)
        recorded, manifest = {each.name for each in chunks}, read_manifest(self.objects, log.ref)
        named = {*manifest.names, manifest_name(log.ref)} if manifest else set()
        derived = {*derived_names(log.ref, combined_sha256(chunks))} if chunks else set()
        if log.ended_at is not None and log.printed:
            assert existing >= recorded | derived | {manifest_name(log.ref)}, log.ref
        for secret in log.secrets:
            assert self.bench.keys_with(secret.encode()) == []
            assert not recorded & with_line(self.objects, log.ref, secret)
        if not log.was_lost:
            assert not named & log.tainted, log.ref
            changed_at = self.seconds if log.ended_at is None else max(log.ended_at, log.redacted_at, self.disturbed)
            if self.seconds - changed_at > 2 * ORPHAN:
                assert existing == recorded | derived | {manifest_name(log.ref)}, log.ref
                assert self.store.catalog.archive_state(log.ref).swept, log.ref


@pytest.mark.parametrize("seed", [*range(4), *(pytest.param(seed, marks=pytest.mark.long) for seed in range(4, 9))])
def test_any_order_of_operations(bench: Bench, tmp_path: Path, seed: int) -> None:
    """After each few of them, the archiver is given time to retry what failed."""
    machine = Machine(bench, tmp_path / "archive", seed)
    for number in range(60):
        machine.step()
        if number % 6 == 5:
            machine.judge()
