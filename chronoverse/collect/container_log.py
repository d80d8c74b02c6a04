"""One run of a container: reads its log files, publishes the lines as a job, and ends the job as the container ended.

    LogFiles ──> CriReader ──> Spool ──> Publisher ──> the store, or the service

The files keep the lines until they are safe in the store, so the spool only holds lines in flight.
"""

import contextlib
import re
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple

from chronoverse.collect.checkpoints import Checkpoints
from chronoverse.collect.cri import CriReader
from chronoverse.collect.files import READ_BYTES, LogFiles, Position
from chronoverse.collect.pods import ContainerEnd
from chronoverse.errors import ChronoverseError, Closed, Deleted, ForeignLines
from chronoverse.joblog.labels import Labels, read_labels
from chronoverse.joblog.line_splitter import LineBatch
from chronoverse.joblog.model import JobRef, Line, Status, iso_timestamp, seconds_of
from chronoverse.joblog.secret_forms import SecretForms
from chronoverse.runner.publisher import JobResult, LogWriter, Publisher
from chronoverse.runner.spool.spool import Spool
from chronoverse.runner.spool.spool_file import SpoolRoom

#: Bytes that a log may always have in flight, and the most that it may ever have.
LEAST_BYTES: Final = 262_144
MOST_BYTES: Final = 8_388_608
#: Seconds without new bytes after the container's end until the job's end is published.
QUIET_SECONDS: Final = 1.0
#: Seconds between two checkpoints, and before a failed operation is retried.
CHECKPOINT_SECONDS: Final = 1.0
RETRY_SECONDS: Final = 30.0
#: Number of last published lines to search for in the files when there is no checkpoint.
COMPARED_LINES: Final = 100
#: If files begin this many seconds after the container's start (known in whole seconds), earlier lines may be lost.
START_SECONDS: Final = 2.0

_CONTINUED: Final = re.compile(r"-from-([0-9]{1,15})\Z", re.ASCII)


class RunKey(NamedTuple):
    """Identifies a run of a container. ``restart`` is -1 for a container that never started."""

    uid: str
    container: str
    restart: int

    def __str__(self) -> str:
        return f"{self.uid}_{self.container}_{self.restart}"


class Surroundings(NamedTuple):
    """Objects shared by all logs.

    ``connect`` makes a writer. ``read_end`` reads a job's status and its last lines. ``has_room`` returns whether a log
    may have more than :data:`LEAST_BYTES` in flight. ``say`` shows a message.
    """

    connect: Callable[[], LogWriter]
    read_end: Callable[[JobRef, int], tuple[str, Sequence[Line]]]
    has_room: Callable[[], bool]
    checkpoints: Checkpoints
    say: Callable[[str], None]
    max_line_bytes: int
    lease_seconds: float
    forms: SecretForms


class _Mark(NamedTuple):
    """The checkpoint to save once the spool's lines up to index ``end`` are safe.

    ``timestamp`` is that of the first line after the previous mark.
    """

    end: int
    saved: dict[str, Any]
    timestamp: str


@dataclass(eq=False)
class ContainerLog:
    """Publishes a run. Call :meth:`step` repeatedly; it never waits.

    ``path`` is the log's file. With ``failure`` there is no file, and the failure's message is the only line.
    ``started`` is when the container started, if known.
    """

    key: RunKey
    job: JobRef
    path: Path
    labels: Labels
    around: Surroundings
    failure: ContainerEnd | None = None
    started: str | None = None

    def __post_init__(self) -> None:
        saved = self.around.checkpoints.load(str(self.key))
        #: Whether the job has ended, or this object cannot end it.
        self.is_done = False
        #: Whether lines that preceded those in the files are known to be lost.
        self._lacks = False
        self._files = LogFiles(self.path, Position(*(saved.get("position") or (0, "", 0))).order)
        self._begin(saved)

    def _begin(self, saved: dict[str, Any]) -> None:
        """Starts a publisher, whose thread opens the job."""
        self._marks: deque[_Mark] = deque()
        self._saved, self.job = saved, JobRef(*saved.get("job", self.job))
        self._rewind(saved)
        self._spool = Spool(SpoolRoom(name=self.job.job_id, memory_bytes=2**30, keep_bytes=0))
        self._spool.save_state(token=saved.get("token"))
        # Without a checkpoint, an earlier agent may still hold the lease.
        options: dict[str, Any] = {"wait_for_lease": True, "labels": self.labels, "gap_reason": "missing"}
        options["lease_seconds"] = self.around.lease_seconds
        self._publisher = Publisher(self.around.connect, self.job, self._spool, self.around.say, **options)
        #: Number of lines in the files that are already published. None until known.
        self._skip: int | None = None
        self._search: _PlaceSearch | None = None
        self._is_ending = False
        self._checkpoint_at = self._retry_at = 0.0
        self._save(token=self._spool.state["token"])
        with contextlib.suppress(ChronoverseError):  # step() reads publisher.refusal
            self._publisher.start(0)

    def _rewind(self, saved: dict[str, Any]) -> None:
        """Continues at a checkpoint's position, or at the beginning of the files if they do not have that position."""
        position = saved.get("position")
        self._is_found = self._files.go_to(Position(*position) if position else None)
        state = saved.get("reader") if self._is_found else None
        self._reader = CriReader(self.around.max_line_bytes, state, self.around.forms)

    def step(self, end: ContainerEnd | None, is_gone: bool) -> bool:
        """Does one step. ``end`` is how the container ended; ``is_gone`` means that its end will never be known.

        Returns whether there is more to do now.
        """
        now, is_busy, end = time.monotonic(), False, self.failure or end
        if self._publisher.ended:
            self._finish()
        elif self._publisher.refusal is not None:
            is_busy = self._handle(self._publisher.refusal, end, is_gone, now)
        elif self._skip is None:
            is_busy = self._publisher.base is not None and self._find_place(self._publisher.base, now)
        else:
            self._note_safe(now)
            if not self._is_ending and self.cost <= (MOST_BYTES if self.around.has_room() else LEAST_BYTES):
                return self._read(end, is_gone, now)
        if not self.is_done:  # a file that is rotated now may be removed soon
            self._files.find_newer()
        return is_busy

    @property
    def cost(self) -> int:
        """Bytes in flight."""
        return self._spool.memory_bytes

    @property
    def lag_bytes(self) -> int:
        """Approximate number of bytes not yet safe in the store."""
        return 0 if self.is_done else self._files.unread + self.cost

    @property
    def lag_seconds(self) -> float:
        """Age of the oldest line that was read but is not yet safe in the store."""
        began = seconds_of(self._marks[0].timestamp) if self._marks else None
        return max(0.0, time.time() - began) if began else 0.0

    def suspend(self) -> None:
        """Starts to end this attempt as PENDING, so that the job waits for the next agent instead of becoming LOST."""
        if not (self.is_done or self._is_ending or self._publisher.base is None):
            self._is_ending = True
            self._publisher.end(JobResult(Status.PENDING, None))

    def close(self, seconds: float) -> None:
        """Stops. If :meth:`suspend` was called, waits up to ``seconds`` for deliveries."""
        if not self.is_done:
            if self._is_ending:
                self._publisher.join(seconds)
            self._note_safe(float("inf"))
            self._stop()

    # Where to begin

    def _find_place(self, base: int, now: float) -> bool:
        """Finds out how many lines in the files are already published. ``base`` is the log's next number.

        Returns whether there is more to compare now.
        """
        known, lacks = self._saved.get("next"), self._lacks
        if self._is_found and known is not None and base == max(known, 1):
            self._skip = base - known
        elif base == 1 or self.failure:
            self._rewind({})
            self._skip, lacks = min(base - 1, 1), not self.failure and self._lacks_beginning()
        elif (search := self._searched(now)) and search.is_done:
            if search.last and search.last[-1].sequence_num >= base:  # an earlier agent's request arrived late
                self._publisher.stop()
                self._begin(self._saved)
                return False
            if not search.found and known is None and not self._files.is_rotated:
                self._publisher.end(JobResult(Status.PENDING, None))
                self._begin_as(f"-{self.key.uid[:8]}")
                return False
            self._skip, lacks = search.published, not search.found
        else:
            return search is not None
        if lacks:  # at least one line; the number is unknown
            self._spool.skip(1)
        self._lacks = False
        self._put([])
        return False

    def _lacks_beginning(self) -> bool:
        """Whether the first lines may be lost: no file has any, or rotated files begin after the container's start."""
        head = self._files.head
        if head is None or not self._files.is_rotated:
            return head is None
        began, started = seconds_of(head.partition(b" ")[0].decode("latin-1")), seconds_of(self.started)
        return began is None or started is None or began >= started + START_SECONDS

    def _searched(self, now: float) -> "_PlaceSearch | None":
        """Continues to search the files for the log's last lines. Returns None while the search must wait."""
        if self._search is None or (self._search.error and now >= self._retry_at):
            start = self._saved if self._is_found and "next" in self._saved else {}
            self._search, self._retry_at = _PlaceSearch(self.job, self.around, start), now + RETRY_SECONDS
            self._rewind(start)
        search = self._search
        if search.last is None or search.is_done:
            return search if search.is_done else None
        if self._files.take_gap():
            search.compare(self._reader.close())
            search.note_gap()
        data = self._files.read()
        search.compare(self._reader.end_file() if data is None else self._reader.feed(data))
        if data == b"" and self._files.unread:
            return None  # wait until the file counts as complete
        if data == b"":
            search.finish()
            self._rewind(search.start)
        return search

    def _begin_as(self, ending: str, saved: dict[str, Any] | None = None) -> None:
        """Starts again under the job's id with ``ending`` appended."""
        job = self.job._replace(job_id=f"{self.job.job_id[: 128 - len(ending)]}{ending}")
        self.around.say(f"{self.job} is another pod's, or LOST: continuing as {job.job_id}")
        self._publisher.stop()
        self._begin({**(saved or {}), "job": job})

    def _handle(self, refusal: ChronoverseError, end: ContainerEnd | None, is_gone: bool, now: float) -> bool:
        """Handles a refusal by the store. Returns whether there is more to do now."""
        is_closed = isinstance(refusal, Closed) and not isinstance(refusal, ForeignLines)
        if not is_closed and not isinstance(refusal, Deleted):
            self._retry_at = self._retry_at or now + RETRY_SECONDS
            if now >= self._retry_at:
                self._publisher.stop()
                self._begin(self._saved)
            return False
        if is_closed:
            search, own = self._searched(now), f"-{self.key.uid[:8]}"
            if search is None or not search.is_done:
                return search is not None
            if not search.found and not ("next" in self._saved or self.failure or self.job.job_id.endswith(own)):
                self._begin_as(own)
                return False
            if search.status == Status.LOST and (end or self._files.unread or not is_gone):
                if end or self._files.unread:  # otherwise wait for lines or the end
                    self._continue(search)
                return False
        if self._files.unread:
            self.around.say(f"{self.job}: {refusal}; {self._files.unread} bytes of its files are not published")
        self._finish()
        return False

    def _continue(self, search: "_PlaceSearch") -> None:
        """Publishes the remaining lines of a LOST job as another job, whose id ends with its first line's number."""
        last = search.last[-1].sequence_num if search.last else 0
        saved = {"position": self._files.position(), **search.start, "next": 1 - search.published}
        self._lacks = not search.found and bool(search.last)
        self.labels = read_labels({**dict(self.labels), "continues": self.job.job_id})
        before = _CONTINUED.search(self.job.job_id)
        self.job = self.job._replace(job_id=_CONTINUED.sub("", self.job.job_id))
        self._begin_as(f"-from-{last + (int(before[1]) if before else 1)}", saved)

    # Reading

    def _read(self, end: ContainerEnd | None, is_gone: bool, now: float) -> bool:
        files = self._files
        if files.take_gap():
            self._put(self._reader.close())
            if not self._skip:  # skipped lines are already published, and so is a gap between them
                self._spool.skip(1)
        data = files.read()
        if data != b"":
            self._put(self._reader.end_file() if data is None else self._reader.feed(data))
            return data is None or len(data) == READ_BYTES
        if (end or is_gone) and not files.unread and (self.failure or now - files.changed_at > QUIET_SECONDS):
            self._put(self._reader.close())
            if end and end.message and self._number == 1:
                self._put([LineBatch("stderr", iso_timestamp(time.time()), end.message.encode(), 1)])
            status = Status.LOST if end is None else Status.FAILED if end.exit_code != 0 else Status.COMPLETED
            labels = read_labels({"reason": end.reason} if end else {})
            self._publisher.end(JobResult(status, end.exit_code if end else None), labels)
            self._is_ending = True
        return False

    @property
    def _number(self) -> int:
        """The number of the next line in the files."""
        return (self._publisher.base or 1) + self._spool.end - (self._skip or 0)

    def _put(self, batches: Sequence[LineBatch]) -> None:
        for batch in batches:
            if self._skip:
                skipped = min(self._skip, batch.lines)
                self._skip -= skipped
                text = b"\n".join(batch.text.split(b"\n")[skipped:])
                batch = batch._replace(text=text, lines=batch.lines - skipped)
            if batch.lines:
                self._spool.put(batch)
        position = self._files.position(len(self._reader.rest))
        saved = {"next": self._number, "position": position, "reader": self._reader.state()}
        self._marks.append(_Mark(self._spool.end, saved, batches[0].timestamp if batches else ""))

    def _note_safe(self, now: float) -> None:
        """Records which lines are safe. Saves a checkpoint every second, and at once when they reach another file."""
        is_other = False
        while self._marks and self._marks[0].end <= self._spool.safe:
            mark = self._marks.popleft()
            is_other |= (mark.saved["position"] or [0])[0] != (self._saved.get("position") or [0])[0]
            self._saved |= mark.saved
            self._checkpoint_at = self._checkpoint_at or now + CHECKPOINT_SECONDS
        if is_other and self._saved["position"]:
            self._files.release(self._saved["position"])
        if is_other or (self._checkpoint_at and now >= self._checkpoint_at):
            self._save()

    def _save(self, **changes: Any) -> None:
        self._checkpoint_at = 0.0
        self._saved |= {"job": self.job, "path": str(self.path), "labels": dict(self.labels)}
        self._saved |= {"started": self.started, **changes}
        self.around.checkpoints.save(str(self.key), self._saved)

    def _finish(self) -> None:
        self._save(ended=True)
        self._stop()

    def _stop(self) -> None:
        self.is_done = True
        self._marks.clear()
        self._publisher.stop()
        self._files.close()


class _PlaceSearch:
    """Compares lines in the files with a job's last published lines, which a thread reads.

    ``start`` is a checkpoint, or empty for the beginning of the files. ``published`` is the number of published
    lines after ``start``, and ``found`` whether the last published line is in the files. If it is not, ``published`` is
    based on timestamps, and lines are lost.
    """

    def __init__(self, job: JobRef, around: Surroundings, start: dict[str, Any]) -> None:
        self.status = ""
        self.last: Sequence[Line] | None = None
        self.error: ChronoverseError | None = None
        self.is_done = False
        self._begin(start)
        threading.Thread(target=self._ask, args=(job, around), name="chronoverse-search", daemon=True).start()

    def _begin(self, start: dict[str, Any]) -> None:
        self.start = start
        self.published = self._count = 0
        self.found = self._has_gap = False
        self._recent: deque[tuple[str, str, str]] = deque(maxlen=COMPARED_LINES)

    def _ask(self, job: JobRef, around: Surroundings) -> None:
        try:
            self.status, last = around.read_end(job, COMPARED_LINES)
            self._wanted = [(line.timestamp, line.stream, line.message) for line in last]
            self.last = last
        except ChronoverseError as error:
            self.error = error
            around.say(f"{job}: cannot compare its files with its log, retrying: {error}")

    def note_gap(self) -> None:
        """Records a gap in the files. The clock may have been set back there, so later timestamps prove nothing."""
        self._has_gap = True
        if not self.found:
            self.published = self._count

    def compare(self, batches: Sequence[LineBatch]) -> None:
        """Compares the next lines of the files. Call it once ``last`` is known."""
        if not self.last:
            return
        wanted, recent = self._wanted, self._recent
        # If several places in the files match, the one with the right number counts.
        likely = self.last[-1].sequence_num + 1 - self.start.get("next", 1)
        for batch in batches:
            for message in batch.messages():
                self._count += 1
                recent.append((batch.timestamp, batch.stream, message.decode()))
                if recent[-1] == wanted[-1] and not (self.found and self.published == likely):
                    count = min(len(recent), len(wanted))
                    if [*recent][-count:] == wanted[-count:]:
                        self.published, self.found = self._count, True
            if batch.timestamp <= wanted[-1][0] and not (self.found or self._has_gap):
                self.published = self._count

    def finish(self) -> None:
        """Call this at the end of the files. If no line after the checkpoint matched, searches the lines before it."""
        if not self.found and self.start:
            last, first = self.last[-1].sequence_num if self.last else 0, self.start["next"]
            if last + 1 != max(first, 1):
                self._begin({})
                return
            self.published, self.found = last + 1 - first, True  # nothing was published since
        self.is_done = True
