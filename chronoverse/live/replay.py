"""What a viewer has not got from the tail: reads of its own, of a log's past."""

from typing import Final, NamedTuple

from chronoverse.errors import ArchiveDamaged, ArchiveUnavailable, JobNotFound, NotALog, StoreError
from chronoverse.history.tiered_log import archive_has
from chronoverse.joblog import sse
from chronoverse.joblog.values import End, Gap, Job, JobRef, OutOfSequence
from chronoverse.live.delivery_stats import store_failed
from chronoverse.live.feed import Feed, final_frames, redact_frames
from chronoverse.live.reconciler import redacted_since
from chronoverse.live.replay_cache import FIRST_LINES, ReplayCache

#: Seconds between two looks at an ended log, which no tail looks at, for what was redacted while it is replayed. A look
#: takes 0.1 ms: a thousand viewers who do so cost a worker a fiftieth of its time.
LOOK_SECONDS: Final = 5.0


class Step(NamedTuple):
    """Frames, none when there is nothing behind the cursor; the cursor behind them; why they are the last, if so."""

    frames: bytes | None
    cursor: int
    reason: str = ""


def failed(cursor: int, text: str) -> Step:
    """The last step, with one ``error``."""
    return Step(sse.frame("error", sse.fold(text)), cursor, "error")


class Replay:
    """Walks through the log of ``ref`` for a viewer of one ``stream`` or of both.

    ``finished`` is the job when it had ended before the viewer came, and nothing is to be had from a tail.
    """

    def __init__(
        self, pieces: ReplayCache, ref: JobRef, stream: str | None, finished: Job | None, lease_seconds: float
    ):
        self._pieces: Final = pieces
        self._store: Final = pieces.store
        self._ref: Final = ref
        self._stream: Final = stream
        self._finished = finished
        self._lease_seconds: Final = lease_seconds
        self._lines = FIRST_LINES
        #: Bytes of the last piece. Before the first there is nothing to rest from.
        self._size = 0
        #: The newest look at the job that came by.
        self._known = finished
        #: On the viewer's clock, when an ended log is to be looked at again.
        self._look_at: float | None = None
        #: Since when, on the viewer's clock, steps have failed, and what they failed at.
        self._failing: tuple[float, str] | None = None

    def step(self, cursor: int, channel: Feed | None, now: float) -> Step:
        """What follows ``cursor``. Raises :class:`StoreError`, and then nothing has been passed over."""
        try:
            told = self._told(now) if self._finished else b""
            step = Step(told, cursor) if told else self._step(cursor, channel)
        except (NotALog, ArchiveDamaged, JobNotFound) as error:
            return failed(cursor, str(error))
        self._failing = None
        return step

    def failed(self, now: float, error: StoreError) -> None:
        """A step raised ``error``."""
        store_failed("replay", error)
        self._failing = self._failing or (now, "archive" if isinstance(error, ArchiveUnavailable) else "store")

    def failing(self, now: float) -> tuple[float, str]:
        """For how many seconds all steps have failed, and what they failed at first."""
        return (now - self._failing[0], self._failing[1]) if self._failing else (0.0, "")

    def _step(self, cursor: int, channel: Feed | None) -> Step:
        if self._known is None and channel is not None:
            self._known = channel.job
        if self._size:
            self._pieces.rest(self._size)
            self._size = 0
        piece = self._pieces.after(self._ref, self._stream, cursor, self._lines, self._known)
        if piece is None:
            return self._nothing_behind(cursor, channel)
        self._known = piece.job or self._known
        self._size = len(piece.frames)
        step = Step(piece.frames, piece.cursor)
        if isinstance(piece.closing, OutOfSequence):
            step = Step(piece.frames + piece.closing.to_frame(), piece.cursor, "error")
        elif piece.closing and not (channel and channel.seek(piece.cursor) is not None):
            step = self._end(step, piece.closing)
        self._lines = piece.next_count
        return step

    def _told(self, now: float) -> bytes:
        """What an ended log's viewer is to be told between two pieces of it."""
        if self._look_at is None:
            self._look_at = now + LOOK_SECONDS
        elif now >= self._look_at:
            self._look_at = now + LOOK_SECONDS
            return self._redactions()
        return b""

    def _redactions(self) -> bytes:
        """A ``redact`` for all that was taken out of the ended log since it was last looked at."""
        job = self._look()
        if self._finished is None or job.end is None:
            return b""
        ranges = redacted_since(self._store, self._finished, job)
        self._finished = job
        if ranges:
            self._pieces.forget(self._ref)
        return b"".join(redact_frames(ranges))

    def _look(self) -> Job:
        """The job as it is now. Raises: :class:`JobNotFound`."""
        job = self._store.get_job(self._ref)
        if job is None:
            raise JobNotFound("the log is gone from the store: it expired or was deleted")
        return job

    def _nothing_behind(self, cursor: int, channel: Feed | None) -> Step:
        """What it means that the store holds nothing behind the cursor although more was there once."""
        # Looked at first, read again second: what the look knows of and the read does not find is gone.
        final = channel.final if channel else None
        job = self._look()
        if self._finished and job.end is None:
            return failed(cursor, "the store has lost the end of this log")
        if archive_has(job, cursor) and self._known and archive_has(self._known, cursor):
            raise ArchiveDamaged(f"the archive has no line {cursor + 1}, which it ought to have")
        self._known = job
        if archive_has(job, cursor) or (job.last > cursor and self._store.read(self._ref, cursor, 1)):
            return Step(b"", cursor)
        step = Step(None, cursor)
        # A closed channel knows how far the log went, whatever the store has lost of it since.
        last = channel.cursor if channel and final is not None else job.last
        if last > cursor:
            gap = Gap(cursor + 1, last, "trimmed" if job.first > cursor + 1 else "missing")
            step = Step(gap.to_frame(), last)
        if self._finished and job.end:
            return self._end(step, job.end)
        if final is not None:
            # The tail has closed a log that ends before the ring begins: the store went back.
            return Step((step.frames or b"") + final, step.cursor, "error")
        return step

    def _end(self, step: Step, end: End) -> Step:
        told = self._redactions() if self._finished else b""
        job = self._finished or self._look()
        return Step((step.frames or b"") + told + final_frames(job, end, self._lease_seconds), step.cursor, "end")
