"""Whatever happens to archivers and to the archive, in any order: every line is had once, in order, from both tiers."""

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

from chronoverse.archive.chunk_writer import combined_sha256
from chronoverse.archive.file_store import FileObjectStore
from chronoverse.archive.object_store import ObjectStore, StoredObject
from chronoverse.archive.reader import ArchiveReader
from chronoverse.archive.s3_store import S3ObjectStore
from chronoverse.errors import ArchiveUnavailable
from chronoverse.history.tiered_log import TieredLog
from chronoverse.joblog.sse import Decoder
from chronoverse.joblog.values import JobRef, Line, Status
from chronoverse.live.replay_cache import ReplayCache
from chronoverse.store import Store
from tests.support import s3faults
from tests.support.archivers import STEPS, all_entries, archive, line_numbers
from tests.support.bench import NOW
from tests.support.examples import examples
from tests.support.s3faults import S3Faults
from tests.support.s3server import BUCKET, s3_server
from tests.support.servers import RedisServer

#: So small that every running log is too large.
HOT_BYTES: Final = 1
#: Seconds for S3's answer here, and between two tries.
READ_SECONDS: Final = 0.2
PAUSE_SECONDS: Final = 0.005
#: Runs, and the steps of one: 80 runs take a quarter of a minute. ARCHIVE_RUNS asks for more.
RUNS: Final = int(os.environ.get("ARCHIVE_RUNS", examples(80)))
STEP_COUNT: Final = 20
#: Batches of lines before which the job does not end: most of what can go wrong goes wrong while it runs.
YOUNG_BATCHES: Final = 4


class Place(Protocol):
    """The object store of a run, and the faults that may happen to its calls."""

    #: Without a way on which something goes wrong, and by that way.
    calm: ObjectStore
    disturbed: ObjectStore
    faults: list[Any]

    def fault(self, fault: Any) -> AbstractContextManager[object]:
        """One of ``faults``, or none, for as long as this lasts."""


class Killed(BaseException):
    """Raised to end an archiver at its current step."""


class CallFault(NamedTuple):
    """A call that fails every time, before or after its effect."""

    call: Literal["put", "get", "delete", "list"]
    when: Literal["before", "after"]


class Faulty:
    """``objects``, whose call that ``fault`` names fails."""

    def __init__(self, objects: ObjectStore) -> None:
        self._objects = objects
        self.fault: CallFault | None = None

    def _call(self, name: str, *args: Any) -> Any:
        if self.fault == (name, "before"):
            raise ArchiveUnavailable("the archive is away")
        answer = getattr(self._objects, name)(*args)
        if self.fault == (name, "after"):
            raise ArchiveUnavailable("the archive's answer was lost")
        return answer

    def put(self, name: str, data: bytes) -> None:
        """See :class:`ObjectStore`, as with all of these."""
        self._call("put", name, data)

    def get(self, name: str, start: int = 0, stop: int | None = None) -> bytes:
        answer: bytes = self._call("get", name, start, stop)
        return answer

    def delete(self, name: str) -> None:
        self._call("delete", name)

    def list(self, prefix: str) -> Iterator[StoredObject]:
        yield from self._call("list", prefix)


class Files:
    """An object store in files, whose calls fail."""

    def __init__(self, directory: Path) -> None:
        self.calm: ObjectStore = FileObjectStore(directory)
        self.disturbed: ObjectStore = (faulty := Faulty(self.calm))
        self._faulty = faulty
        self.faults: list[Any] = [CallFault(call, when) for call in s3faults.CALLS for when in ("before", "after")]

    @contextlib.contextmanager
    def fault(self, fault: CallFault | None) -> Iterator[None]:
        """See :class:`Topology`."""
        self._faulty.fault = fault
        try:
            yield
        finally:
            self._faulty.fault = None


class Bucket:
    """An object store in a real S3 server, with faults in the requests and the answers."""

    def __init__(self, proxy: S3Faults, calm: ObjectStore) -> None:
        self.calm = calm
        self.disturbed: ObjectStore = S3ObjectStore(BUCKET, read_seconds=READ_SECONDS, retry_seconds=PAUSE_SECONDS)
        self.faults: list[Any] = [
            s3faults.Fault(call, kind, once)
            # Few archivings list or delete.
            for call in (*s3faults.CALLS, "put", "get", "put", "get")
            for kind in s3faults.KINDS
            for once in (True, False)
        ]
        self.fault = proxy.fault


texts = st.lists(st.text(max_size=20), min_size=1, max_size=12)


class Archiving(RuleBasedStateMachine):
    """One job, its runner, several archivers one after the other, and readers."""

    def __init__(self, server: RedisServer, place: Place) -> None:
        super().__init__()
        self.prefix = f"m{secrets.token_hex(6)}"
        self.job = JobRef(self.prefix, "job_1")
        self.store = Store(server.url, prefix=self.prefix, retention_seconds=86_400)
        self.server = server
        self.place = place
        #: Reads from the first step to the last, whatever is moved meanwhile.
        self.reader = ArchiveReader(place.disturbed, self.store.chunks)
        self.said: list[str] = []
        self.batches = self.fresh = 0
        self.ended = False
        self.lost = 0

    @initialize(texts=texts)
    def begin(self, texts: list[str]) -> None:
        """The runner opens the job."""
        self.attempt = self.store.open(self.job, "token")
        self.write(texts)

    @precondition(lambda self: not self.ended)
    @rule(texts=texts)
    def write(self, texts: list[str]) -> None:
        """It appends some lines, of which no two are alike over the losses of a log."""
        first = len(self.said) + 1
        texts = [f"{self.lost} {text}".replace("\ud800", "") for text in texts]
        lines = [Line(first + at, NOW, text, "stdout") for at, text in enumerate(texts)]
        assert self.store.append(self.attempt, lines) == first + len(lines)
        self.said += texts
        self.batches += 1
        self.fresh += 1

    @precondition(lambda self: not self.ended and self.batches >= YOUNG_BATCHES)
    @rule()
    def finish(self) -> None:
        """It ends."""
        self.store.finish(self.attempt, Status.COMPLETED, 0, 0, len(self.said) + 1)
        self.ended = True

    @rule(
        texts=texts,
        step=st.sampled_from([None, None, None, None, *STEPS]),
        fault=st.data(),
        meanwhile=st.sampled_from(["nothing", "nothing", "nothing", "write", "lose"]),
    )
    def archive(self, texts: list[str], step: str | None, fault: st.DataObject, meanwhile: str) -> None:
        """An archiver does what is due, as far as it comes; the log may grow, or be lost, before it seals."""
        waits = [] if self.ended else [meanwhile]
        if not self.ended:
            self.write(texts)

        def at(name: str) -> None:
            if name == "read back" and waits:
                if waits.pop() == "lose":
                    self.lose()
                if meanwhile != "nothing":
                    self.write(["meanwhile"] * 3)
            if name == step:
                raise Killed

        with self.harm(fault), contextlib.suppress(Killed, ArchiveUnavailable):
            archive(self.store, self.place.disturbed, on_step=at, hot_bytes=HOT_BYTES)

    @precondition(lambda self: not self.ended and self.fresh > 1)
    @rule()
    def lose(self) -> None:
        """The log's key is deleted: what is not archived is gone, and will be written anew, differently."""
        self.server.ask("DEL", f"{self.prefix}:{{{self.job.workflow_id}}}:{self.job.job_id}:log")
        del self.said[self.store.catalog.archive_state(self.job).archived :]
        self.lost += 1
        self.fresh = 0

    @precondition(lambda self: self.ended)
    @rule()
    def expire(self) -> None:
        """Of a job that is archived whole the log itself goes."""
        if self.store.catalog.archive_state(self.job).complete:
            self.server.ask("DEL", f"{self.prefix}:{{{self.job.workflow_id}}}:{self.job.job_id}:log")

    @rule(
        offset=st.integers(0, 60),
        count=st.integers(1, 9),
        way=st.sampled_from(["up", "down", "stream"]),
        afresh=st.booleans(),
        fault=st.data(),
    )
    def read(self, offset: int, count: int, way: str, afresh: bool, fault: st.DataObject) -> None:
        """A page's reader or a stream's goes on from anywhere, to the end or as far as the archive lets it."""
        archive = ArchiveReader(self.place.disturbed, self.store.chunks) if afresh else self.reader
        offset = min(offset, len(self.said))
        expected = self.said[:offset][::-1] if way == "down" else self.said[offset:]
        ways = {
            "up": self.paged(archive, offset, count),
            "down": self.paged(archive, offset + 1, count, descending=True),
            "stream": self.streamed(archive, offset, count),
        }
        found: list[str] = []
        with self.harm(fault):
            try:
                found.extend(ways[way])
            except ArchiveUnavailable:
                assert found == expected[: len(found)]
                return
        assert found == expected

    def paged(self, archive: ArchiveReader, place: int, count: int, descending: bool = False) -> Iterator[str]:
        """As ``/logs`` reads: the messages after ``place``, or before it."""
        job = self.store.get_job(self.job)
        assert job is not None
        history = TieredLog(self.store, archive, job)
        last = False
        while not last:
            entries, place, _, last = history.before(place, count) if descending else history.after(place, count)
            yield from (entry.message for entry in entries if isinstance(entry, Line))

    def streamed(self, archive: ArchiveReader, cursor: int, count: int) -> Iterator[str]:
        """As ``/events`` reads."""
        pieces, decoder = ReplayCache(self.store, archive), Decoder()
        job = self.store.get_job(self.job)
        while piece := pieces.read_after(self.job, None, cursor, 1 << (count.bit_length() - 1), job):
            for event in decoder.feed(piece.frames):
                assert event.event == "log", event
                yield str(json.loads(event.data)["message"])
            cursor = piece.cursor
            if piece.closing:
                return

    def harm(self, fault: st.DataObject) -> AbstractContextManager[object]:
        """One of the place's faults, or none."""
        return self.place.fault(fault.draw(st.none() | st.sampled_from(self.place.faults)))

    @invariant()
    def upwards(self) -> None:
        """Every line once, in order, in what lies in both tiers."""
        said = all_entries(self.store, self.place.calm, self.job)
        assert [entry.message for entry in said if isinstance(entry, Line)] == self.said
        assert line_numbers(said) == list(range(1, len(self.said) + 1))

    @invariant()
    def downwards(self) -> None:
        """And from the end, as it is read."""
        archive = ArchiveReader(self.place.calm, self.store.chunks)
        assert list(self.paged(archive, len(self.said) + 1, 1000, descending=True)) == self.said[::-1]

    def teardown(self) -> None:
        """In the end an archiver that nobody disturbs has all of it, and nothing else."""
        if not self.ended:
            self.finish()
        for _ in range(2):
            assert archive(self.store, self.place.calm) == 0
        if self.said:
            state = self.store.catalog.archive_state(self.job)
            assert (state.complete, state.archived) == (True, len(self.said))
            self.expire()
            self.upwards()
            self.downwards()
            chunks = self.store.chunks.chunks(self.job)
            key = f"{self.prefix}:{{{self.job.workflow_id}}}:{self.job.job_id}:job"
            assert self.server.ask("HGET", key, "archive_sha256").decode() == combined_sha256(chunks)
            names = {chunk.name for chunk in chunks} | {f"{self.prefix}/{self.job.job_id}/job.json"}
            assert {each.name for each in self.place.calm.list(f"{self.prefix}/")} == names
        self.store.close()


def run(server: RedisServer, place: Place) -> None:
    """Random runs of the machine."""

    class Here(Archiving):
        def __init__(self) -> None:
            super().__init__(server, place)

    checks = list(HealthCheck)
    run_state_machine_as_test(
        Here,
        settings=settings(
            max_examples=RUNS, stateful_step_count=STEP_COUNT, deadline=None, suppress_health_check=checks
        ),
    )


@pytest.mark.timeout(400 + RUNS)
def test_no_line_is_lost_with_faults_in_files(server: RedisServer, tmp_path: Path) -> None:
    """The calls of the object store fail before and after their effect."""
    run(server, Files(tmp_path))


@pytest.mark.timeout(400 + RUNS)  # Hypothesis shrinks a failure for up to 300 s
@pytest.mark.long
def test_no_line_is_lost_with_faults_on_the_way_to_s3(server: RedisServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """S3 answers with errors or late. Connections are cut before a call has its effect, after that, or in an answer."""
    with s3_server() as address, S3Faults(address) as proxy:
        calm = S3ObjectStore(BUCKET)
        # A client keeps to the server that it found at first.
        assert list(calm.list("")) == []
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", proxy.url)
        run(server, Bucket(proxy, calm))
        assert proxy.struck > RUNS / 4
