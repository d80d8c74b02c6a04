"""An adversary plays runners, foreign writers, trims, power losses and slow clients against the reading side."""

import contextlib
import itertools
from collections.abc import Iterator
from typing import Any, ClassVar, Final

import pytest
import redis
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from chronoverse.errors import AppendRefused, SequenceGap
from chronoverse.history.pages import PageBudget
from chronoverse.history.scans.scan import ReplayScan
from chronoverse.joblog.line_filter import LineFilter
from chronoverse.joblog.model import Attempt, JobRef, Line, Status
from chronoverse.live.replay_cache import ReplayCache, read_frames
from chronoverse.live.tail import Tail
from chronoverse.live.viewer import Viewer
from chronoverse.store import Store
from tests.support.examples import examples
from tests.support.reading import (
    SMALL_CACHE_BYTES,
    SMALL_RING,
    SPIN_POLLS,
    Clock,
    ControlledStore,
    StreamCheck,
    redis_fields,
)
from tests.support.servers import RedisServer
from tests.support.waiting import wait_until

#: Seconds of a lease, longer than any test: leases end only when the adversary ends them.
LEASE_SECONDS: Final = 3600.0
#: The lease as readers know it. One look, which waits for a part of it, finds that a runner is lost.
LOOK_LEASE_SECONDS: Final = 0.003
#: Entries per read: far fewer than a log has, so that every batch has neighbors.
MOST: Final = 7
#: The maximum seconds of silence for the tail: after 30, viewers get an error.
SILENCE_SECONDS: Final = 25.0
#: Steps before which no job ends: most failures need a log that has grown.
YOUNG_STEPS: Final = 15
#: Rounds at the end in which every viewer must reach the end of its log.
ROUNDS: Final = 60

STAMP: Final = "2026-03-03T10:00:05.123Z"

streams = st.sampled_from(["stdout", "stderr"])
messages = st.sampled_from(["", "ok", "data: x", "event: end", "\r\u2028\x00", "ü" * 40, "long " * 50])
filters = st.sampled_from(
    [
        *(None, None, LineFilter("stdout"), LineFilter("stderr"), LineFilter(None, "o"), LineFilter(None, "nowhere")),
        *(LineFilter("stderr", "e"), LineFilter(None, "^(ok|line)$", True)),
    ]
)
picks = st.integers(0, 5)


class Client:
    """A client that reconnects with the last id received, and what all its connections received."""

    def __init__(self, after: int, line_filter: LineFilter | None) -> None:
        self.after = after
        self.line_filter = line_filter
        self.seen: list[int] = []
        self.viewer: Viewer | None = None
        self.wakes = 0
        self.check: StreamCheck | None = None
        self.finished = False
        self.quiet_since: int | None = None

    def count_wake(self) -> None:
        self.wakes += 1

    def over(self) -> bool:
        """Whether the service has closed its current connection, if any."""
        return self.viewer is None or self.viewer.done


class Reading(RuleBasedStateMachine):
    """One job, its writers, the tail and the clients. ``written`` is the truth: every text that each number has had."""

    #: The same connections serve all examples. Each example deletes what it wrote.
    redis: ClassVar[redis.Redis]
    runner: ClassVar[Store]
    reader: ClassVar[Store]
    poller: ClassVar[Store]
    prefix: ClassVar[str]
    runs: ClassVar[Iterator[int]]

    def __init__(self) -> None:
        super().__init__()
        run = next(self.runs)
        self.ref = JobRef("wf", f"job-{run}")
        # In every other run, the server does not report changes.
        self.source = ControlledStore(self.reader, MOST, self.reader if run % 2 else self.poller)
        # In half of all runs, a scan server filters stored lines.
        self.scans = run % 4 > 1
        self.clock = Clock()
        self.cache = self._cache()
        self.tail = self._tail()
        self.written: dict[int, Line] = {}
        self.clients: list[Client] = []
        self.attempt: Attempt | None = None
        self.tokens = 0
        self.rewound = False
        self.saved: tuple[Any, Any, Attempt | None] | None = None
        self.steps, self.last, self.ended, self.kept = 0, 0, False, False

    # What is true

    def key(self, kind: str) -> str:
        return f"{self.prefix}:{{{self.ref.workflow_id}}}:{self.ref.job_id}:{kind}"

    @invariant()
    def look_behind_the_scenes(self) -> None:
        """Learns what the store holds, without any of our code."""
        self.steps += 1
        pipeline = self.redis.pipeline(transaction=False)
        pipeline.execute_command("XREVRANGE", self.key("log"), "+", "-", "COUNT", 1)
        pipeline.execute_command("HGET", self.key("job"), "status")
        pipeline.execute_command("XINFO", "STREAM", self.key("log"))
        entries, status, info = pipeline.execute(raise_on_error=False)
        self.kept = status in (b"COMPLETED", b"FAILED", b"CANCELED", b"LOST")
        self.ended = self.kept or bool(entries and entries[0][1][:2] == [b"event", b"end"])
        no_log = isinstance(info, redis.ResponseError)
        self.last = 0 if no_log else int(info[info.index(b"last-generated-id") + 1].partition(b"-")[0])

    def may_end(self) -> bool:
        return not self.ended and self.steps > YOUNG_STEPS

    def gone(self, first: int, last: int) -> bool:
        """Whether none of these numbers can still be shown."""
        entries = self.redis.execute_command("XRANGE", self.key("log"), f"{first}-0", f"{last}-0")
        return self.rewound or not any(b"message" in fields[::2] for id, fields in entries if id.endswith(b"-0"))

    def _tail(self) -> Tail:
        return Tail(self.source, ring_bytes=SMALL_RING, lease_seconds=LOOK_LEASE_SECONDS, clock=self.clock)

    def _cache(self) -> ReplayCache:
        """With segments of at most four lines."""
        scans = ReplayCache(self.source, most_lines=4, most_bytes=SMALL_CACHE_BYTES, clock=self.clock)

        def scan(scan: ReplayScan, subject: str) -> tuple[bytes, int]:
            """The scan server's answer. It has its own cache."""
            return read_frames(scans, scan, PageBudget(page_bytes=300, clock=self.clock))

        return ReplayCache(
            self.source, most_lines=4, most_bytes=SMALL_CACHE_BYTES, clock=self.clock, scan=scan if self.scans else None
        )

    # Writers

    @initialize(owner=st.sampled_from(["nobody", "registered", "ours", "foreign"]), lines=st.integers(0, 30))
    def begin(self, owner: str, lines: int) -> None:
        if owner == "registered":
            self.runner.register(self.ref)
        if owner == "ours":
            self._open()
            self._append(1, [("line", "stdout", False)] * (lines + 1))
        if owner == "foreign":
            for number in range(1, lines + 2):
                self._foreign_line(number, b"line", "stdout")

    @rule()
    @precondition(lambda self: self.last == 0 and not self.ended)
    def register(self) -> None:
        self.runner.register(self.ref)

    @rule(crashed=st.booleans())
    @precondition(lambda self: not self.ended)
    def open(self, crashed: bool) -> None:
        if crashed:
            self.redis.execute_command("DEL", self.key("lease"))
        self._open()

    def _open(self) -> None:
        self.tokens += 1
        try:
            self.attempt = self.runner.open(self.ref, f"token-{self.tokens}")
        except AppendRefused:
            return

    @rule(batch=st.lists(st.tuples(messages, streams, st.booleans()), min_size=1, max_size=20))
    @precondition(lambda self: self.attempt is not None and not self.ended)
    def append(self, batch: list[tuple[str, str, bool]]) -> None:
        self._append(self.last + 1, batch)

    def _append(self, start: int, batch: list[tuple[str, str, bool]]) -> None:
        """Appends like a runner: rewritten lines are the same as before."""
        assert self.attempt
        fresh = [Line(start + at, STAMP, *one) for at, one in enumerate(batch)]
        lines = [self.written.get(line.sequence_num, line) for line in fresh]
        try:
            self.runner.append(self.attempt, lines)
        except AppendRefused:
            return
        self.written |= {line.sequence_num: line for line in lines}

    def _refill(self, start: int) -> None:
        """What the runner does if the log's next line is one that it has already written."""
        while (line := self.written.get(start)) is not None:
            self._append(start, [(line.message, line.stream, line.partial)])
            start += 1

    @rule(
        status=st.sampled_from([Status.COMPLETED, Status.FAILED, Status.CANCELED]), code=st.sampled_from([None, 0, 7])
    )
    @precondition(lambda self: self.attempt is not None and self.may_end())
    def finish(self, status: Status, code: int | None) -> None:
        self._finish(status, code)

    def _finish(self, status: Status, code: int | None) -> None:
        assert self.attempt
        following = max(self.written, default=0) + 1
        try:
            self.runner.finish(self.attempt, status, code, 0, following)
        except SequenceGap as gap:
            self._refill(gap.expected)
        except AppendRefused:
            return

    @rule(skip=st.sampled_from([0, 0, 0, 1, 3]), message=st.sampled_from([b"plain", b"\xff\xfe", b""]), stream=streams)
    @precondition(lambda self: not self.ended)
    def foreign_line(self, skip: int, message: bytes, stream: str) -> None:
        self._foreign_line(self.last + 1 + skip, message, stream)

    def _foreign_line(self, number: int, message: bytes, stream: str) -> None:
        known = self.written.get(number)
        fields = redis_fields(known) if known else ("timestamp", STAMP, "message", message, "stream", stream)
        self._xadd(f"{number}-0", *fields)
        self.written.setdefault(number, Line(number, STAMP, message.decode("utf-8", "replace"), stream))

    @rule(
        fields=st.sampled_from([("message",), ("stream", "message"), ("timestamp", "message"), ("message", "partial")])
    )
    @precondition(lambda self: not self.ended and self.last + 1 not in self.written)
    def foreign_line_without_all_its_fields(self, fields: tuple[str, ...]) -> None:
        values = {"timestamp": STAMP, "message": "part", "stream": "stderr", "partial": "1"}
        self._xadd(f"{self.last + 1}-0", *(text for name in fields for text in (name, values[name])))
        stream = "stderr" if "stream" in fields else "stdout"
        stamp = STAMP if "timestamp" in fields else "1970-01-01T00:00:00.000Z"
        self.written[self.last + 1] = Line(self.last + 1, stamp, "part", stream, "partial" in fields)

    @rule(id=st.sampled_from(["{next}-0", "{last}-1"]), field=st.sampled_from(["note", "event"]))
    @precondition(lambda self: not self.ended and self.last + 1 not in self.written and self.last > 0)
    def foreign_nonsense(self, id: str, field: str) -> None:
        self._xadd(id.format(next=self.last + 1, last=self.last), field, "nonsense")

    @rule(skip=st.sampled_from([0, 0, 2]), status=st.sampled_from(["COMPLETED", "FAILED", "LOST", "SHRUG", ""]))
    @precondition(lambda self: self.may_end())
    def foreign_end(self, skip: int, status: str) -> None:
        self._foreign_end(skip, status)

    def _foreign_end(self, skip: int, status: str) -> None:
        self._xadd(f"{self.last + 1 + skip}-0", "event", "end", *(("status", status) if status else ()))

    def _xadd(self, id: str, *fields: str | bytes) -> None:
        with contextlib.suppress(redis.ResponseError):
            self.redis.execute_command("XADD", self.key("log"), id, *fields)

    @rule()
    @precondition(lambda self: self.attempt is not None and self.may_end())
    def lose_the_runner(self) -> None:
        """Its lease ends, and a reader looks. The end of the grace period depends on the server's clock."""
        self.redis.execute_command("DEL", self.key("lease"))
        for _ in range(3):
            self.reader.get_job(self.ref)

    # Losses

    @rule(keep=st.integers(0, 12))
    @precondition(lambda self: self.last > 0)
    def trim(self, keep: int) -> None:
        """Down to ``keep`` entries, or to none. A foreign job's end stays, because nothing else records it."""
        self.redis.execute_command("XTRIM", self.key("log"), "MAXLEN", max(keep, int(self.ended and not self.kept)))

    @rule(picks=st.lists(st.integers(1, 60), min_size=1, max_size=4))
    @precondition(lambda self: self.last > 0)
    def delete_lines(self, picks: list[int]) -> None:
        if last := self.last - self.ended:
            self.redis.execute_command("XDEL", self.key("log"), *(f"{pick % last + 1}-0" for pick in picks))

    @rule()
    def checkpoint(self) -> None:
        dumps = [self.redis.execute_command("DUMP", self.key(kind)) for kind in ("log", "job")]
        self.saved = (dumps[0], dumps[1], self.attempt)

    @rule()
    @precondition(lambda self: self.saved is not None)
    def power_loss(self) -> None:
        """The server restarts with its state at the checkpoint. That time's runner still holds the lease."""
        assert self.saved
        for kind, dump in zip(("log", "job"), self.saved[:2], strict=True):
            if dump is None:
                self.redis.execute_command("DEL", self.key(kind))
            else:
                self.redis.execute_command("RESTORE", self.key(kind), 0, dump, "REPLACE")
        self.attempt = self.saved[2]
        if self.attempt:
            self.redis.execute_command("SET", self.key("lease"), self.attempt.token)
        self.rewound = True

    # The tail

    @rule(lines=st.lists(streams, min_size=3, max_size=8), reads=st.integers(0, 3), quick=st.integers(0, 5))
    def live(self, lines: list[str], reads: int, quick: int) -> None:
        """The usual case: lines arrive and are read, and ``quick`` of the clients receive them immediately."""
        for number, stream in enumerate(lines if not self.ended else [], start=self.last + 1):
            self._foreign_line(number, b"live", stream)
        for _ in range(reads):
            self.tail.read_once()
        for client in self.clients[:quick]:
            self._drain(client)

    @rule()
    def read(self) -> None:
        self.tail.read_once()

    @rule(due=st.booleans())
    def attend(self, due: bool) -> None:
        self.clock.now += 1.125 if due else 0
        self.tail.housekeep_once()

    @rule(seconds=st.sampled_from([0.25, 1.125, 2.5, 8.0]))
    def advance(self, seconds: float) -> None:
        if self.tail.silent_seconds() + seconds > SILENCE_SECONDS:
            self.tail.read_once()
        self.clock.now += seconds

    @rule()
    def restart_the_worker(self) -> None:
        for client in self.clients:
            self._disconnect(client)
        self.tail.stop()
        self.tail = self._tail()
        self.cache = self._cache()

    # Clients

    @rule(after=st.one_of(st.integers(0, 12), st.integers(0, 80)), line_filter=filters)
    @precondition(lambda self: len(self.clients) < 5)
    def connect(self, after: int, line_filter: LineFilter | None) -> None:
        self._add(Client(after, line_filter))

    @rule(back=st.integers(0, 9), line_filter=filters)
    @precondition(lambda self: len(self.clients) < 5)
    def connect_near_the_latest(self, back: int, line_filter: LineFilter | None) -> None:
        """Where the ring begins."""
        job = self.source.get_job(self.ref)
        self._add(Client(max(job.last - back, 0) if job else 0, line_filter))

    def _add(self, client: Client) -> None:
        self.clients.append(client)
        self._connect(client)

    def _connect(self, client: Client) -> None:
        """Like the events route."""
        resumed = client.check is not None
        after = client.check.last_event_id if client.check else client.after
        job = self.source.get_job(self.ref)
        if resumed and job and job.end and after >= job.end.sequence_num:
            client.finished = True
            return
        client.check = StreamCheck(after, client.line_filter, self.written, self.gone, lambda: self.rewound)
        line_filter = client.line_filter
        client.viewer = Viewer(self.cache, self.tail, self.ref, job, after=after, line_filter=line_filter, wait=1e9)
        client.viewer.on_wake = client.count_wake
        client.quiet_since = None

    def _disconnect(self, client: Client) -> None:
        if client.viewer and client.check:
            client.viewer.close()
            client.seen += client.check.lines
            client.viewer = None

    @rule(pick=picks)
    @precondition(lambda self: self.clients)
    def cut(self, pick: int) -> None:
        self._disconnect(self.clients[pick % len(self.clients)])

    @rule(pick=picks)
    @precondition(lambda self: self.clients)
    def come_back(self, pick: int) -> None:
        client = self.clients[pick % len(self.clients)]
        self._disconnect(client)
        if not client.finished:
            self._connect(client)

    @rule(pick=picks)
    @precondition(lambda self: self.clients)
    def poll(self, pick: int) -> None:
        self._poll(self.clients[pick % len(self.clients)])

    @rule(pick=picks)
    @precondition(lambda self: self.clients)
    def poll_until_quiet(self, pick: int) -> None:
        self._drain(self.clients[pick % len(self.clients)])

    @rule()
    def poll_all_until_quiet(self) -> None:
        for client in self.clients:
            self._drain(client)

    def _poll(self, client: Client) -> bytes | None:
        viewer, account = client.viewer, client.check
        if viewer is None or account is None or client.over():
            return None
        woken = client.quiet_since is None or client.wakes > client.quiet_since or viewer.due <= self.clock.now
        chunk = viewer.next()
        if chunk:
            assert woken or self.rewound, f"nobody woke the viewer for {chunk!r}"
            account.feed(chunk)
        is_behind = viewer.has_skipped and account.cursor < viewer.cursor
        stands = account.cursor == viewer.cursor or is_behind or account.out_of_sequence
        assert stands, f"the viewer stands at {viewer.cursor} and has said {account.cursor}"
        client.quiet_since = client.wakes if chunk is None else None
        if client.over():
            self._done(client)
        return chunk

    def _done(self, client: Client) -> None:
        assert client.check
        closing = client.check.closing
        assert closing, "done, and nothing said so"
        if closing.event == "error" and client.check.jobs[-1]["status"] != Status.LOST:
            assert self.rewound, closing
        else:
            client.finished = True

    def _drain(self, client: Client) -> None:
        idle = 0
        while (chunk := self._poll(client)) is not None:
            idle = 0 if chunk else idle + 1
            assert idle < SPIN_POLLS, "the viewer spins"

    # The end

    def teardown(self) -> None:
        try:
            self._end_the_job()
            for _ in range(ROUNDS):
                if all(client.finished for client in self.clients):
                    break
                self.tail.read_once()
                self.tail.housekeep_once()
                self.clock.now += 1.125
                for client in self.clients:
                    self._drain(client)
                    if not client.finished and client.over():
                        self._disconnect(client)
                        self._connect(client)
            for client in self.clients:
                self._disconnect(client)
                assert client.finished, "a viewer did not come to the end"
                assert len(set(client.seen)) == len(client.seen), f"doubled: {client.seen}"
        finally:
            self.redis.execute_command("DEL", *(self.key(kind) for kind in ("log", "job", "lease")))
            self.tail.stop()

    def _end_the_job(self) -> None:
        self.source.get_job(self.ref)
        self.look_behind_the_scenes()
        for _ in range(3):
            if self.attempt and not self.ended:
                self._finish(Status.COMPLETED, 0)
                self.look_behind_the_scenes()
        if not self.ended:
            self._foreign_end(0, "COMPLETED")


@pytest.fixture
def reading(server: RedisServer, prefix: str) -> Iterator[type[Reading]]:
    """The machine with its connections, on a server that has been up for long enough to declare a job LOST."""
    wait_until(lambda: b"uptime_in_seconds:0\r" not in server.ask("INFO", "server"), 5, "the server is a second old")
    with redis.Redis.from_url(server.url, protocol=2) as Reading.redis:
        Reading.redis.response_callbacks.clear()
        Reading.runner = Store(server.url, prefix=prefix, lease_seconds=LEASE_SECONDS)
        Reading.reader = Store(server.url, prefix=prefix, lease_seconds=LOOK_LEASE_SECONDS)
        Reading.poller = Store(f"{server.url}?protocol=2", prefix=prefix)
        Reading.prefix, Reading.runs = prefix, itertools.count()
        yield Reading
        Reading.runner.close()
        Reading.reader.close()
        Reading.poller.close()


@pytest.mark.timeout(400)  # Hypothesis shrinks a failure for up to 300 s; a passing run takes a twentieth of that
def test_every_number_once_in_order_or_named_by_a_gap(reading: type[Reading]) -> None:
    """Whatever happens to a log and its readers, each reader can account for every number."""
    run_state_machine_as_test(
        reading,
        settings=settings(
            max_examples=examples(60),
            stateful_step_count=50,
            deadline=None,
            derandomize=False,
            print_blob=True,
            report_multiple_bugs=False,
            suppress_health_check=list(HealthCheck),
        ),
    )


def test_a_viewer_of_a_lost_end_does_not_spin(reading: type[Reading]) -> None:
    """The store lost the end; the job continued before it, and ended again later."""
    state = reading()
    state.begin(owner="ours", lines=0)
    state.look_behind_the_scenes()
    state.checkpoint()
    state.lose_the_runner()
    state.look_behind_the_scenes()
    state.connect(after=4, line_filter=None)
    state.power_loss()
    state.look_behind_the_scenes()
    state.live(lines=["stdout"] * 5, reads=0, quick=0)
    state.look_behind_the_scenes()
    state.teardown()
