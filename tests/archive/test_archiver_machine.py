"""Archivers with random faults: readers of both tiers always get every line once and in order."""

import contextlib
import json
import os
import secrets
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple, Protocol

import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from chronoverse.archive.derived import derived_names
from chronoverse.archive.object_store import FileObjectStore, ObjectStore, StoredObject
from chronoverse.archive.reader import ArchiveReader
from chronoverse.archive.s3_store import S3ObjectStore
from chronoverse.errors import ArchiveUnavailable
from chronoverse.history.tiered_log import TieredLog
from chronoverse.joblog.chunk import combined_sha256
from chronoverse.joblog.model import JobRef, Line, Status
from chronoverse.joblog.sse import Decoder
from chronoverse.live.replay_cache import ReplayCache
from chronoverse.store import Store
from tests.archive import s3faults
from tests.archive.s3faults import S3Faults
from tests.archive.s3server import BUCKET, s3_server
from tests.support.archivers import STEPS, all_entries, archive, line_numbers
from tests.support.bench import NOW
from tests.support.examples import CHARACTERS, examples
from tests.support.servers import RedisServer
from tests.support.waiting import deadline

#: Size limit of a running log, so small that every log exceeds it.
HOT_BYTES: Final = 1
#: Timeout of S3 calls in these tests, and delay between two attempts, in seconds.
READ_SECONDS: Final = 0.2
PAUSE_SECONDS: Final = 0.005
#: Random runs, and steps of each. 25 runs take 15 seconds with files, and a minute with S3. The environment variable
#: ARCHIVE_RUNS overrides the number of runs.
RUNS: Final = int(os.environ.get("ARCHIVE_RUNS", examples(4)))
STEP_COUNT: Final = 20
#: Batches of lines before the job can end, since most faults require a running job.
MIN_BATCHES: Final = 4


class StoreUnderTest(Protocol):
    """A run's object store, and the possible faults of its calls."""

    #: The same store, without faults and with them.
    reliable: ObjectStore
    faulty: ObjectStore
    faults: list[Any]

    def fault(self, fault: Any) -> AbstractContextManager[object]:
        """Causes one of ``faults`` within the ``with`` block, or none."""


class Killed(BaseException):
    """Raised to end an archiver at its current step."""


class CallFault(NamedTuple):
    """A call that always fails, before or after its effect."""

    call: Literal["put", "get", "delete", "list"]
    when: Literal["before", "after"]


class FailingStore:
    """An object store whose call named by ``fault`` fails, and whose other calls go to ``objects``."""

    def __init__(self, objects: ObjectStore) -> None:
        self._objects = objects
        self.fault: CallFault | None = None

    def _call(self, name: str, *args: Any) -> Any:
        if self.fault == (name, "before"):
            raise ArchiveUnavailable("the archive is unavailable")
        answer = getattr(self._objects, name)(*args)
        if self.fault == (name, "after"):
            raise ArchiveUnavailable("the archive's answer was lost")
        return answer

    def put(self, name: str, data: bytes) -> None:
        """See :class:`ObjectStore`, as for the other methods."""
        self._call("put", name, data)

    def get(self, name: str, start: int = 0, stop: int | None = None) -> bytes:
        answer: bytes = self._call("get", name, start, stop)
        return answer

    def delete(self, name: str) -> None:
        self._call("delete", name)

    def list(self, prefix: str) -> Iterator[StoredObject]:
        yield from self._call("list", prefix)


class Files:
    """A file-based object store whose calls can fail."""

    def __init__(self, directory: Path) -> None:
        self.reliable: ObjectStore = FileObjectStore(directory)
        self._failing = FailingStore(self.reliable)
        self.faulty: ObjectStore = self._failing
        self.faults: list[Any] = [CallFault(call, when) for call in s3faults.CALLS for when in ("before", "after")]

    @contextlib.contextmanager
    def fault(self, fault: CallFault | None) -> Iterator[None]:
        """See :class:`StoreUnderTest`."""
        self._failing.fault = fault
        try:
            yield
        finally:
            self._failing.fault = None


class Bucket:
    """A real S3 server, with faults in requests and answers."""

    def __init__(self, proxy: S3Faults, reliable: ObjectStore) -> None:
        self.reliable = reliable
        self.faulty: ObjectStore = S3ObjectStore(BUCKET, read_seconds=READ_SECONDS, retry_seconds=PAUSE_SECONDS)
        self.faults: list[Any] = [
            s3faults.Fault(call, kind, once)
            # Archivers seldom list or delete, so faults of other calls are more likely.
            for call in (*s3faults.CALLS, "put", "get", "put", "get")
            for kind in s3faults.KINDS
            for once in (True, False)
        ]
        self.fault = proxy.fault


texts = st.lists(st.text(CHARACTERS, max_size=20), min_size=1, max_size=12)


class Archiving(RuleBasedStateMachine):
    """A job, its runner, several consecutive archivers, and readers."""

    def __init__(self, server: RedisServer, objects: StoreUnderTest) -> None:
        super().__init__()
        self.prefix = f"m{secrets.token_hex(6)}"
        self.job = JobRef(self.prefix, "job_1")
        self.store = Store(server.url, prefix=self.prefix, retention_seconds=86_400)
        self.server = server
        self.objects = objects
        #: A reader used from the first step to the last, while lines are archived.
        self.reader = ArchiveReader(objects.faulty, self.store.chunks.chunk)
        #: The log's messages.
        self.messages: list[str] = []
        #: Number of batches, in total and since the last loss.
        self.batches = self.fresh = 0
        self.ended = False
        self.lost = 0
        #: Whether anything has changed since the log was last read completely. Reading changes nothing.
        self.changed = True

    @initialize(texts=texts)
    def begin(self, texts: list[str]) -> None:
        """The runner opens the job."""
        self.attempt = self.store.open(self.job, "token")
        self.write(texts)

    @precondition(lambda self: not self.ended)
    @rule(texts=texts)
    def write(self, texts: list[str]) -> None:
        """The runner appends lines. After a loss of the log, they differ from the lost ones."""
        first = len(self.messages) + 1
        texts = [f"{self.lost} {text}".replace("\ud800", "") for text in texts]
        lines = [Line(first + at, NOW, text, "stdout") for at, text in enumerate(texts)]
        assert self.store.append(self.attempt, lines) == first + len(lines)
        self.messages += texts
        self.batches += 1
        self.fresh += 1
        self.changed = True

    @precondition(lambda self: not self.ended and self.batches >= MIN_BATCHES)
    @rule()
    def finish(self) -> None:
        """The job ends."""
        self.store.finish(self.attempt, Status.COMPLETED, 0, 0, len(self.messages) + 1)
        self.ended = self.changed = True

    @rule(
        texts=texts,
        step=st.sampled_from([None, None, None, None, *STEPS]),
        fault=st.data(),
        meanwhile=st.sampled_from(["nothing", "nothing", "nothing", "write", "lose"]),
    )
    def archive(self, texts: list[str], step: str | None, fault: st.DataObject, meanwhile: str) -> None:
        """Runs an archiver, possibly with a fault or until it is killed. Meanwhile the log may grow or be lost."""
        pending = [] if self.ended else [meanwhile]
        self.changed = True
        if not self.ended:
            self.write(texts)

        def at(name: str) -> None:
            if name == "read back" and pending:
                if pending.pop() == "lose":
                    self.lose()
                if meanwhile != "nothing":
                    self.write(["meanwhile"] * 3)
            if name == step:
                raise Killed

        with self.random_fault(fault), contextlib.suppress(Killed, ArchiveUnavailable):
            archive(self.store, self.objects.faulty, on_step=at, hot_bytes=HOT_BYTES)

    @precondition(lambda self: not self.ended and self.fresh > 1)
    @rule()
    def lose(self) -> None:
        """Deletes the log's key. Lines that are not archived are gone, and the runner writes different ones."""
        self.server.ask("DEL", f"{self.prefix}:{{{self.job.workflow_id}}}:{self.job.job_id}:log")
        del self.messages[self.store.catalog.archive_state(self.job).archived :]
        self.lost += 1
        self.fresh = 0
        self.changed = True

    @precondition(lambda self: self.ended)
    @rule()
    def expire(self) -> None:
        """Expires the log's key, if the job is archived completely."""
        if self.store.catalog.archive_state(self.job).complete:
            self.server.ask("DEL", f"{self.prefix}:{{{self.job.workflow_id}}}:{self.job.job_id}:log")
            self.changed = True

    @rule(
        offset=st.integers(0, 60),
        count=st.integers(1, 9),
        way=st.sampled_from(["up", "down", "stream"]),
        new_reader=st.booleans(),
        fault=st.data(),
    )
    def read(self, offset: int, count: int, way: str, new_reader: bool, fault: st.DataObject) -> None:
        """Reads pages or a stream from any position to the end, or until the archive is unavailable."""
        archive = ArchiveReader(self.objects.faulty, self.store.chunks.chunk) if new_reader else self.reader
        offset = min(offset, len(self.messages))
        expected = self.messages[:offset][::-1] if way == "down" else self.messages[offset:]
        ways = {
            "up": self.paged(archive, offset, count),
            "down": self.paged(archive, offset + 1, count, descending=True),
            "stream": self.streamed(archive, offset, count),
        }
        found: list[str] = []
        with self.random_fault(fault):
            try:
                found.extend(ways[way])
            except ArchiveUnavailable:
                assert found == expected[: len(found)]
                return
        assert found == expected

    def paged(self, archive: ArchiveReader, position: int, count: int, descending: bool = False) -> Iterator[str]:
        """The messages after or before ``position``, as ``/logs`` reads them."""
        job = self.store.require_job(self.job)
        log = TieredLog(self.store, archive, job)
        last = False
        in_time = deadline(30, "the last page")
        while not last and in_time():
            read = log.before(position, count) if descending else log.after(position, count)
            position, last = read.position, read.is_last
            yield from (line.message for line in read.lines)

    def streamed(self, archive: ArchiveReader, cursor: int, count: int) -> Iterator[str]:
        """The messages after ``cursor``, as ``/events`` reads them."""
        cache, decoder = ReplayCache(self.store, archive), Decoder()
        job = self.store.get_job(self.job)
        in_time = deadline(30, "the last chunk")
        while in_time() and (segment := cache.read_after(self.job, None, cursor, 1 << (count.bit_length() - 1), job)):
            for event in decoder.feed(segment.frames):
                assert event.event == "log", event
                yield str(json.loads(event.data)["message"])
            cursor = segment.cursor
            if segment.closing:
                return

    def random_fault(self, fault: st.DataObject) -> AbstractContextManager[object]:
        """One of the object store's faults, or none."""
        return self.objects.fault(fault.draw(st.none() | st.sampled_from(self.objects.faults)))

    @precondition(lambda self: self.changed)
    @invariant()
    def the_log_is_complete(self) -> None:
        """In both directions."""
        self.upwards()
        self.downwards()
        self.changed = False

    def upwards(self) -> None:
        """Every line is in one of the two tiers, once and in order."""
        entries = all_entries(self.store, self.objects.reliable, self.job)
        assert [entry.message for entry in entries if isinstance(entry, Line)] == self.messages
        assert line_numbers(entries) == list(range(1, len(self.messages) + 1))

    def downwards(self) -> None:
        """Reading backwards from the end also returns every line once."""
        archive = ArchiveReader(self.objects.reliable, self.store.chunks.chunk)
        assert list(self.paged(archive, len(self.messages) + 1, 1000, descending=True)) == self.messages[::-1]

    def teardown(self) -> None:
        """Finally, an archiver without faults archives the whole log. No other objects are left."""
        if not self.ended:
            self.finish()
        for _ in range(2):
            assert archive(self.store, self.objects.reliable) == 0
        if self.messages:
            state = self.store.catalog.archive_state(self.job)
            assert (state.complete, state.archived) == (True, len(self.messages))
            self.expire()
            self.upwards()
            self.downwards()
            chunks = self.store.chunks.chunks(self.job)
            key = f"{self.prefix}:{{{self.job.workflow_id}}}:{self.job.job_id}:job"
            assert self.server.ask("HGET", key, "archive_sha256").decode() == combined_sha256(chunks)
            names = {chunk.name for chunk in chunks} | {f"{self.prefix}/{self.job.job_id}/job.json"}
            names.update(derived_names(self.job, combined_sha256(chunks)))
            assert {each.name for each in self.objects.reliable.list(f"{self.prefix}/")} == names
        self.store.close()


def run(server: RedisServer, objects: StoreUnderTest) -> None:
    """Runs the state machine with random steps."""

    class Machine(Archiving):
        def __init__(self) -> None:
            super().__init__(server, objects)

    checks = list(HealthCheck)
    run_state_machine_as_test(
        Machine,
        settings=settings(
            max_examples=RUNS, stateful_step_count=STEP_COUNT, deadline=None, suppress_health_check=checks
        ),
    )


@pytest.mark.timeout(400 + RUNS)
def test_no_line_is_lost_with_faults_in_files(server: RedisServer, tmp_path: Path) -> None:
    """Object store calls fail before or after their effect."""
    run(server, Files(tmp_path))


@pytest.mark.timeout(400 + RUNS)  # Hypothesis shrinks a failure for up to 300 s.
@pytest.mark.long
def test_no_line_is_lost_with_faults_of_s3_and_the_network(
    server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """S3 answers late or with errors. Connections are cut before a call has its effect, after it, or in an answer."""
    with s3_server() as address, S3Faults(address) as proxy:
        reliable = S3ObjectStore(BUCKET)
        # The first call fixes this client's address, before the variable changes.
        assert list(reliable.list("")) == []
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", proxy.url)
        run(server, Bucket(proxy, reliable))
        # A single run may draw no fault.
        assert proxy.applied >= RUNS // 3
