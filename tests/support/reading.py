"""Helpers for tests of reading: a fake clock, a controlled store, and checks of the bytes that a viewer sends."""

import json
from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from typing import Any, Final

from chronoverse.errors import StoreError
from chronoverse.joblog.entries import RawEntry
from chronoverse.joblog.line_filter import LineFilter
from chronoverse.joblog.matcher import Matcher
from chronoverse.joblog.model import Job, JobRef, Line, Status
from chronoverse.joblog.sse import Decoder, ServerSentEvent
from chronoverse.live.viewer import Viewer
from chronoverse.store import Store
from chronoverse.store.live_reader import Found, LiveReader
from chronoverse.store.sequential_reader import SequentialReader

#: Seconds that a read blocks. Short, so that a read without new entries returns immediately.
BLOCK_SECONDS: Final = 0.001
#: Limits of a ring of a few lines: viewers often need older lines than it has.
SMALL_RING: Final = (700, 700)
#: Size of a small replay cache, in bytes.
SMALL_CACHE_BYTES: Final = 3000
#: Consecutive polls without output after which a viewer counts as spinning.
SPIN_POLLS: Final = 20
#: The start of an out-of-sequence error. Any other error ends the response.
OUT_OF_SEQUENCE_PREFIX: Final = "entry "


class Clock:
    """A monotonic clock that moves only when a test sets ``now``."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Bystander:
    """A waiter that does nothing when woken."""

    due = float("inf")
    line_filter = None
    is_replaying = False

    def wake(self) -> None: ...


class _Hooks:
    """Hooks before and after the calls of a :class:`ControlledStore`, and call counts."""

    def __init__(self) -> None:
        self.fault: StoreError | None = None
        self.before: dict[str, Callable[[], object]] = {}
        self.late: dict[str, Callable[[Any], Any]] = {}
        #: Number of calls by method.
        self.calls: Counter[str] = Counter()

    def _check(self, method: str) -> None:
        self.calls[method] += 1
        if action := self.before.pop(method, None):
            action()
        if self.fault:
            raise self.fault

    def _deliver(self, method: str, answer: Any) -> Any:
        action = self.late.pop(method, None)
        return action(answer) if action else answer


class ControlledStore(_Hooks, Store):
    """A store whose readers hardly block, and which returns at most ``most`` entries of a job at a time.

    While ``fault`` is set, every call raises it. ``before`` maps a method to an action that runs once, just before the
    next call: what another process could do between two calls. ``late`` maps ``get_job``, ``get_jobs``, ``read`` or
    ``block`` (a live reader's read) to a function that receives the next call's answer, once, and returns what the
    caller gets. Live readers come from the store ``reading``, if given.
    """

    def __init__(self, store: Store, most: int = 2048, reading: Store | None = None) -> None:
        super().__init__()
        self._store = store
        self._most = most
        self._reading = reading or store

    @property
    def single_server(self) -> bool:
        return self._store.single_server

    def server_of(self, job: JobRef) -> Hashable:
        return self._store.server_of(job)

    def get_job(self, job: JobRef) -> Job | None:
        self._check("get_job")
        found: Job | None = self._deliver("get_job", self._store.get_job(job))
        return found

    def get_jobs(self, jobs: Sequence[JobRef]) -> list[Job | StoreError | None]:
        self._check("get_jobs")
        found: list[Job | StoreError | None] = self._deliver("get_jobs", self._store.get_jobs(jobs))
        return found

    def read(self, job: JobRef, after: int, count: int) -> Sequence[RawEntry]:
        self._check("read")
        found: Sequence[RawEntry] = self._deliver("read", self._store.read(job, after, min(count, self._most)))
        return found

    def page(self, job: JobRef, **options: Any) -> Sequence[RawEntry]:
        return self._store.page(job, **options)

    def sequential_reader(self, server: Hashable) -> SequentialReader:
        return _PlainReader(self.read)

    def redactions(self, job: JobRef, count: int) -> list[tuple[int, int]]:
        self._check("redactions")
        return self._store.redactions(job, count)

    def live_reader(self, block_seconds: float, poll_seconds: float = 0) -> LiveReader:
        reader = self._reading.live_reader(BLOCK_SECONDS, poll_seconds)
        return _ControlledReader(reader, self._most, self._check, self._deliver)


class _PlainReader(SequentialReader):
    """Never reads ahead, so that a test's clock and faults determine each read."""

    def __init__(self, read: Callable[[JobRef, int, int], Sequence[RawEntry]]) -> None:
        self.read = read  # type: ignore[method-assign, assignment]

    def discard(self) -> None:
        pass


class _ControlledReader(LiveReader):
    def __init__(
        self, reader: LiveReader, most: int, check: Callable[[str], None], deliver: Callable[[str, Any], Any]
    ) -> None:
        self._reader = reader
        self._most = most
        self._check = check
        self._deliver = deliver

    def read(self, count: int) -> list[Found]:
        self._check("block")
        found: list[Found] = self._deliver("block", self._reader.read(min(count, self._most)))
        return found

    def watch(self, job: JobRef, cursor: int, *, again: bool = False) -> None:
        self._reader.watch(job, cursor, again=again)

    def unwatch(self, job: JobRef) -> None:
        self._reader.unwatch(job)

    def silent_seconds(self, job: JobRef) -> float:
        return self._reader.silent_seconds(job)

    def close(self) -> None:
        self._reader.close()


def redis_fields(line: Line) -> list[str]:
    """The fields of a line's entry, as a runner writes them to Redis: field, value, field, value, …"""
    fields = ["timestamp", line.timestamp, "message", line.message, "stream", line.stream]
    return [*fields, "partial", "1"] if line.partial else fields


def drain(viewer: Viewer) -> Iterator[bytes]:
    """The viewer's chunks until it would wait.

    Fails if the viewer repeatedly asks to be polled again without returning a chunk.
    """
    idle = 0
    while not viewer.done and (chunk := viewer.next()) is not None:
        idle = 0 if chunk else idle + 1
        assert idle < SPIN_POLLS, "the viewer spins"
        yield chunk


def drained(viewer: Viewer) -> bytes:
    """The chunks of :func:`drain`, joined."""
    return b"".join(drain(viewer))


def blocks(chunk: bytes) -> list[bytes]:
    """The chunk, split after each blank line, as a client dispatches it."""
    *whole, rest = chunk.split(b"\n\n")
    return [block + b"\n\n" for block in whole] + ([rest] if rest else [])


def events(chunk: bytes) -> list[ServerSentEvent]:
    """The events in a chunk of whole blocks."""
    return list(Decoder().feed(chunk))


def passes(line_filter: LineFilter | None, line: Line) -> bool:
    """Whether a line passes the filter, decided by its message instead of its frame."""
    if line_filter is None:
        return True
    matcher = Matcher(line_filter.q, regex=line_filter.regex) if line_filter.q is not None else None
    return line_filter.stream in (None, line.stream) and (matcher is None or matcher.matches(line.message))


class StreamCheck:
    """Checks a response as it arrives: each number comes once and in order, or is in a gap.

    ``written`` has every line ever written, by number. ``gone(first, last)``: whether the store has none of these lines
    any more. ``rewound()``: whether the store was restored to an older state; then numbers can repeat, and a log can
    end before lines that were already sent.
    """

    def __init__(
        self,
        after: int,
        line_filter: LineFilter | None,
        written: Mapping[int, Line],
        gone: Callable[[int, int], bool],
        rewound: Callable[[], bool] = lambda: False,
    ) -> None:
        self.line_filter = line_filter
        self.cursor = after
        self.lines: list[int] = []
        self.jobs: list[dict[str, Any]] = []
        self.closing: ServerSentEvent | None = None
        self.out_of_sequence = 0
        self._written = written
        self._gone = gone
        self._rewound = rewound
        self._decoder = Decoder(str(after))
        self._previous = ""
        self._repeated = False

    @property
    def last_event_id(self) -> int:
        """The id with which a client reconnects."""
        return int(self._decoder.last_event_id)

    def feed(self, chunk: bytes) -> None:
        """Checks all events in ``chunk``."""
        for block in blocks(chunk):
            before = self.last_event_id
            arrived = list(self._decoder.feed(block))
            for event in arrived:
                self._event(event, self.last_event_id if self.last_event_id != before else None)
            if not arrived and self.last_event_id != before:
                self._moved(self.last_event_id)

    def _event(self, event: ServerSentEvent, id: int | None) -> None:
        assert self.closing is None, f"{event} after {self.closing}"
        assert bool(self._previous) == (event.event != "connected"), "connected comes first, and once"
        out_of_sequence = event.event == "error" and event.data.startswith(OUT_OF_SEQUENCE_PREFIX)
        if event.event == "job":
            self._job(json.loads(event.data))
        elif event.event == "end" or (event.event == "error" and not out_of_sequence):
            self._close(event, id)
        else:
            assert not self._repeated, f"the job was repeated without a change: {self.jobs[-1]}"
        if event.event == "log":
            self._line(json.loads(event.data), id)
        elif event.event == "gap":
            self._gap(json.loads(event.data), id)
        self.out_of_sequence += out_of_sequence
        self._previous = event.event

    def _job(self, job: dict[str, Any]) -> None:
        if self.jobs:
            old, new = _progress(self.jobs[-1]), _progress(job)
            assert self._previous != "job" or not self._repeated, f"the job came three times: {job}"
            assert new >= old or self._rewound(), f"the job went back: {self.jobs[-1]}, {job}"
            self._repeated = new == old and not self._rewound()
        self.jobs.append(job)

    def _line(self, line: dict[str, Any], id: int | None) -> None:
        assert self.jobs, "a line came before its job"
        number = line["sequence_num"]
        self._pass_over(number)
        expected = self._written.get(number)
        assert expected is not None, f"a line that was never written: {line}"
        assert Line.from_json(line) == expected
        assert passes(self.line_filter, expected), f"{number} does not pass the filter"
        assert id == number
        self.lines.append(number)
        self.cursor = number

    def _gap(self, gap: dict[str, Any], id: int | None) -> None:
        assert id is None
        assert gap["to"] >= gap["from"]
        self._pass_over(gap["from"])
        assert self._gone(gap["from"], gap["to"]), f"lines of {gap} are still stored"
        self.cursor = gap["to"]

    def _moved(self, id: int) -> None:
        assert self.line_filter, "an id without an event, in a stream without a filter"
        self._pass_over(id + 1)
        self.cursor = id

    def _pass_over(self, number: int) -> None:
        """Checks that the filter excludes all lines between the cursor and ``number``."""
        assert number > self.cursor, f"{number} came after {self.cursor}"
        for passed in range(self.cursor + 1, number):
            line = self._written.get(passed)
            assert line is not None, f"{passed} is missing, and no gap names it"
            assert not passes(self.line_filter, line), f"{passed} was lost"

    def _close(self, event: ServerSentEvent, id: int | None) -> None:
        self.closing = event
        if event.event == "error" and id is None:
            return
        assert self._previous == "job", "the job comes last before the end"
        lost = self.jobs[-1]["status"] == Status.LOST
        assert lost == (event.event == "error"), (self.jobs[-1], event)
        if self.cursor < self.last_event_id:
            self._pass_over(self.last_event_id)


def _progress(job: dict[str, Any]) -> tuple[int, int]:
    return job["attempt"], ("PENDING", "RUNNING").index(job["status"]) if not Status(job["status"]).terminal else 2
