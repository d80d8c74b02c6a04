"""One run of a container: reads its log files, publishes the lines as a job, and ends the job like the container.

    LogFiles ──> CriReader ──> Spool ──> Publisher ──> the store, or the service

The files keep the lines until they are safe in the store, so the spool only holds lines in flight.
"""

import contextlib
import re
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

from chronoverse.collect.checkpoints import Checkpoints
from chronoverse.collect.cri import CriReader
from chronoverse.collect.files import READ_BYTES, LogFiles, Position
from chronoverse.collect.pods import ContainerEnd
from chronoverse.errors import ChronoverseError, Closed, Deleted, ForeignLines
from chronoverse.joblog.labels import read_labels
from chronoverse.joblog.line_splitter import LineBatch
from chronoverse.joblog.model import REDACTED_MESSAGE, JobRef, Line, Status, iso_timestamp, seconds_of
from chronoverse.joblog.secret_forms import SecretForms
from chronoverse.runner.publisher import JobResult, LogWriter, Publisher
from chronoverse.runner.spool.spool import Spool
from chronoverse.runner.spool.spool_file import SpoolRoom
from chronoverse.settings import Settings

#: Once the container has ended, the job's end is published after this many seconds without new bytes.
QUIET_SECONDS: Final = 1.0
#: Seconds before a failed operation is retried.
RETRY_SECONDS: Final = 30.0
#: Number of a job's last lines to search for in the files, to find out where to continue.
COMPARED_LINES: Final = 100

_CONTINUED: Final = re.compile(r"-from-([0-9]{1,15})\Z", re.ASCII)


class RunKey(NamedTuple):
    """Identifies a run of a container. ``restart`` is -1 for a container that never started."""

    uid: str
    container: str
    restart: int

    def __str__(self) -> str:
        return f"{self.uid}_{self.container}_{self.restart}"


class Surroundings(NamedTuple):
    """What all logs share. ``connect`` makes a writer; ``read_end`` reads a job's status and last lines."""

    connect: Callable[[], LogWriter]
    read_end: Callable[[JobRef, int], tuple[str, Sequence[Line]]]
    checkpoints: Checkpoints
    say: Callable[[str], None]
    settings: Settings
    forms: SecretForms


class ContainerLog:
    """Publishes a run. Call :meth:`step` repeatedly; it never waits.

    ``saved`` is a checkpoint. For a new log, it has the ``job``, the ``path`` of the log's file, ``labels``, and when
    the container ``started``, if known. If ``failure`` is given, there is no file, and its message is the only line.
    """

    def __init__(self, key: RunKey, around: Surroundings, saved: dict[str, Any], failure: ContainerEnd | None) -> None:
        self.key, self.around, self.failure = key, around, failure
        #: Whether nothing is left to do: the job has ended, or this object cannot end it.
        self.is_done = False
        #: How the container ended, once known.
        self.end = failure
        self._files = LogFiles(Path(saved["path"]), Position(*(saved.get("position") or (0, "", 0))).order)
        self._begin(saved)

    def _begin(self, saved: dict[str, Any]) -> None:
        """Starts a publisher, whose thread opens the job."""
        #: Checkpoints to save: the spool's index below which lines must be safe, the values, and the first line's time.
        self._marks: deque[tuple[int, dict[str, Any], str]] = deque()
        self._saved, self.job, self.labels = saved, JobRef(*saved["job"]), read_labels(saved["labels"])
        self._rewind(saved)
        self._spool = Spool(SpoolRoom(name=self.job.job_id, memory_bytes=2**30, keep_bytes=0))
        self._spool.save_state(token=saved.get("token"))
        # Without a checkpoint, an earlier agent may still hold the lease.
        options: dict[str, Any] = {"wait_for_lease": True, "labels": self.labels, "gap_reason": "missing"}
        options["lease_seconds"] = self.around.settings.lease_seconds
        self._publisher = Publisher(self.around.connect, self.job, self._spool, self.around.say, **options)
        #: Number of lines still to be read from the files that are already published.
        self._skip = 0
        self._is_ending = self._is_refused = False
        #: The rest of the work. Yields whether there is more to do now. Another call of ``_begin`` replaces it.
        self._work = self._publish()
        saved["token"] = self._spool.state["token"]
        self.around.checkpoints[str(self.key)] = saved
        self.around.checkpoints.write()
        with contextlib.suppress(ChronoverseError):  # step() handles publisher.refusal
            self._publisher.start(0)

    def _rewind(self, saved: dict[str, Any]) -> None:
        """Continues at a checkpoint's position, or at the beginning of the files if they do not have that position."""
        position = saved.get("position")
        self._has_position = self._files.go_to(Position(*position) if position else None)
        state = saved.get("reader") if self._has_position else None
        self._reader = CriReader(self.around.settings.max_line_bytes, self.around.forms, state)

    def step(self, most_bytes: int) -> bool:
        """Does one step, with up to ``most_bytes`` in flight. Returns whether there is more to do now."""
        if self._publisher.ended:
            self._finish()
            return False
        if self._publisher.refusal is not None and not self._is_refused:
            self._is_refused, self._work = True, self._handle(self._publisher.refusal)
        self._most_bytes = most_bytes
        try:
            is_busy = next(self._work)
            if not self.is_done:  # opens new files now, because rotation may soon remove them
                self._files.find_newer()
            return is_busy
        except OSError as error:
            self.around.say(f"{self.job}: {error}")
            self._is_refused, self._work = True, self._begin_later()
            return False

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
        began = seconds_of(self._marks[0][2]) if self._marks else None
        return max(0.0, time.time() - began) if began else 0.0

    def suspend(self) -> None:
        """Begins to end this attempt as PENDING, so that the job waits for the next agent instead of becoming LOST."""
        if not (self._is_ending or self._publisher.base is None):
            self._is_ending = True
            self._publisher.end(JobResult(Status.PENDING, None))

    def close(self, seconds: float) -> None:
        """Stops. If :meth:`suspend` was called, waits up to ``seconds`` for deliveries."""
        if self._is_ending:
            self._publisher.join(seconds)
        self._note_safe()
        self._stop()

    # Where to continue

    def _resume(self, base: int) -> Iterator[bool]:
        """Finds out how many lines in the files are already published. ``base`` is the log's next number."""
        known, lacks = self._saved.get("next"), self._saved.get("lacks", False)
        if self._has_position and known is not None and base == max(known, 1):
            self._skip = base - known
        elif base == 1 or self.failure:
            self._rewind({})
            self._skip, lacks = min(base - 1, 1), not self.failure and self._lacks_beginning()
        else:
            point = yield from self._search()
            if point.last_number >= base:  # an earlier agent's request arrived late
                self._publisher.stop()
                self._begin(self._saved)
                yield False
            if not point.is_found and known is None and not self._files.order:
                self._begin_as(f"-{self.key.uid[:8]}")
                yield False
            self._skip, lacks = point.published, not point.is_found
        if lacks:  # an unknown number of lines is missing: makes a gap of one
            self._spool.skip(1)
        self._put([])

    def _lacks_beginning(self) -> bool:
        """Whether the beginning may be lost: no file has lines, or rotated files begin after the container's start."""
        head = self._files.head
        if head is None or not self._files.order:
            return head is None
        began, started = seconds_of(head.partition(b" ")[0].decode("latin-1")), seconds_of(self._saved["started"])
        return began is None or started is None or began >= started + 2.0  # the start is rounded to seconds

    def _search(self) -> Generator[bool, None, "_ResumePoint"]:
        """Searches the files for the log's last lines: after the checkpoint, if any, then from the beginning."""
        found: list[tuple[str, Sequence[Line]]] = []
        threading.Thread(target=self._ask, args=(self.job, found), name="chronoverse-search", daemon=True).start()
        while not found:
            yield False
        for start in [self._saved, {}] if self._has_position and "next" in self._saved else [{}]:
            self._rewind(start)
            point = _ResumePoint(*found[0], start)
            while not point.is_exact:
                if self._files.take_gap():
                    point.compare(self._reader.close(is_torn=True))
                    point.note_gap()
                data = self._files.read()
                point.compare(self._feed(data))
                if data == b"" and not self._files.unread:
                    break
                yield data != b""
            point.compare_end(self._reader.close(), self._files.unread)
            if point.is_found:
                break
        self._rewind(start)
        return point

    def _ask(self, job: JobRef, found: list[tuple[str, Sequence[Line]]]) -> None:
        while not (found or self.is_done):
            try:
                found.append(self.around.read_end(job, COMPARED_LINES))
            except ChronoverseError as error:
                self.around.say(f"{job}: cannot compare its files with its log, retrying: {error}")
                time.sleep(RETRY_SECONDS)

    def _begin_as(self, ending: str, **changes: Any) -> None:
        """Starts again under the job's id with ``ending`` appended, with changes to the checkpoint."""
        job = self.job._replace(job_id=f"{self.job.job_id[: 128 - len(ending)]}{ending}")
        self.around.say(f"{self.job} is another pod's, or LOST: continuing as {job.job_id}")
        self._publisher.stop()
        self._begin({**self._saved, "token": None, "job": job, **changes})

    def _handle(self, refusal: ChronoverseError) -> Iterator[bool]:
        is_published = False
        if isinstance(refusal, Closed) and not isinstance(refusal, ForeignLines):
            point, own = (yield from self._search()), f"-{self.key.uid[:8]}"
            if not point.is_found and not ("next" in self._saved or self.failure or self.job.job_id.endswith(own)):
                self._begin_as(own)
                yield False
            if point.status == Status.LOST:
                while not (self.end or self._files.unread):
                    yield False
                if self._files.unread or (self.end and self.end.status != Status.LOST):
                    self._continue(point)
                    yield False
            is_published = point.is_whole
        elif not isinstance(refusal, Deleted):
            yield from self._begin_later()
        if self._files.unread and not is_published:
            self.around.say(f"{self.job}: {refusal}; {self._files.unread} bytes of its files are not published")
        self._finish()
        yield False

    def _begin_later(self) -> Iterator[bool]:
        retry_at = time.monotonic() + RETRY_SECONDS
        while time.monotonic() < retry_at:
            yield False
        self._publisher.stop()
        self._begin(self._saved)
        yield False

    def _continue(self, point: "_ResumePoint") -> None:
        """Publishes a LOST job's remaining lines as another job, whose id ends with its first line's number."""
        changes = {"position": self._files.position(), "reader": self._reader.state(), "next": 1 - point.published}
        changes["labels"] = {**dict(self.labels), "continues": self.job.job_id}
        changes["lacks"] = not point.is_found and point.last_number > 0
        before = _CONTINUED.search(self.job.job_id)
        self.job = self.job._replace(job_id=_CONTINUED.sub("", self.job.job_id))
        # A job that was LOST before its first line keeps its id.
        first = int(before[1]) + max(point.last_number, 1) if before else point.last_number + 1
        self._begin_as(f"-from-{first}", **changes)

    # Reading

    def _publish(self) -> Iterator[bool]:
        while self._publisher.base is None:
            yield False
        yield from self._resume(self._publisher.base)
        while True:
            self._note_safe()
            yield not self._is_ending and self.cost <= self._most_bytes and self._read()

    def _read(self) -> bool:
        """Reads the next bytes, or ends the job. Returns whether there may be more to read now."""
        files, end = self._files, self.end
        if files.take_gap():
            self._put(self._reader.close(is_torn=True))
            if not self._skip:  # a gap between lines that are already published is published, too
                self._spool.skip(1)
        data = files.read()
        if data != b"":
            self._put(self._feed(data))
            return data is None or len(data) == READ_BYTES
        if end and not files.unread and (self.failure or time.monotonic() - files.changed_at > QUIET_SECONDS):
            self._put(self._reader.close())
            if end.message and self._number == 1:
                line = f"{iso_timestamp(time.time())} stderr F {' '.join(end.message.split())}\n"
                self._put(self._reader.feed(line.encode()))
            labels = read_labels({"reason": end.reason} if end.reason else {})
            self._publisher.end(JobResult(end.status, end.exit_code), labels)
            self._is_ending = True
        return False

    def _feed(self, data: bytes | None) -> list[LineBatch]:
        """The lines that ``data`` completes. None is the end of a file."""
        return self._reader.end_file(is_torn=self._files.has_gap) if data is None else self._reader.feed(data)

    @property
    def _number(self) -> int:
        """The number of the next line in the files."""
        return (self._publisher.base or 1) + self._spool.end - self._skip

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
        saved = {"next": self._number, "position": position, "reader": self._reader.state(), "lacks": False}
        self._marks.append((self._spool.end, saved, batches[0].timestamp if batches else ""))

    def _note_safe(self) -> None:
        """Records which lines are safe. Writes checkpoints once these lines reach another file; the agent does, too."""
        before = self._saved.get("position") or [0]
        while self._marks and self._marks[0][0] <= self._spool.safe:
            self._saved |= self._marks.popleft()[1]
        position = self._saved.get("position") or before
        if position[0] != before[0]:
            self._files.release(position[0])
            self.around.checkpoints.write()

    def _finish(self) -> None:
        self._saved["ended"] = True
        self._stop()

    def _stop(self) -> None:
        self.is_done = True
        self._marks.clear()
        self._publisher.stop()
        self._files.close()


class _ResumePoint:
    """Where to continue a job in its files, found by comparing their lines with the job's ``last`` published lines.

    The place is ``published`` lines after ``start``, which is a checkpoint, or empty for the beginning of the files.
    ``is_found``: the files contain the last published line. Otherwise timestamps decide, and lines are lost.
    """

    def __init__(self, status: str, last: Sequence[Line], start: dict[str, Any]) -> None:
        self.status = status
        self.last_number = last[-1].sequence_num if last else 0
        #: Number of lines published since ``start``. If the files contain the last lines several times, selects those
        #: that end after this number of lines.
        self._expected = self.last_number + 1 - start.get("next", 1)
        #: If no lines were published since the checkpoint, there is nothing to compare.
        self.is_found = bool(start) and self.last_number + 1 == max(start["next"], 1)
        self.published = self._expected if self.is_found else 0
        self._count, self._has_gap = 0, False
        #: Whether all lines of the files are published.
        self.is_whole = False
        self._wanted = [(line.timestamp, line.stream, line.message) for line in last]
        self._recent: deque[tuple[str, str, str]] = deque(maxlen=COMPARED_LINES)

    @property
    def is_exact(self) -> bool:
        """Whether further lines cannot change the result."""
        return self.is_found and self.published == self._expected

    def note_gap(self) -> None:
        """Records a gap in the files. From here, timestamps prove nothing, as the clock may have been set back."""
        self._has_gap = True
        if not self.is_found:
            self.published = self._count

    def compare(self, batches: Sequence[LineBatch]) -> None:
        """Compares the next lines of the files."""
        wanted, recent = self._wanted, self._recent
        for batch in batches if wanted else ():
            for message in batch.messages():
                self._count += 1
                recent.append((batch.timestamp, batch.stream, message.decode()))
                if _is_same(recent[-1], wanted[-1]) and not self.is_exact:
                    count = min(len(recent), len(wanted))
                    if all(map(_is_same, [*recent][-count:], wanted[-count:])):
                        self.published, self.is_found = self._count, True
            if batch.timestamp <= wanted[-1][0] and not (self.is_found or self._has_gap):
                self.published = self._count

    def compare_end(self, batches: Sequence[LineBatch], unread: int) -> None:
        """Compares unfinished lines, which only a job's end publishes. ``unread``: bytes that were not compared."""
        published, had_found = self.published, self.is_found
        self.compare(batches)
        if had_found or not self.is_found:  # unfinished lines can still become longer
            self.published = published
        self.is_whole = self.is_found and self.published == self._count and not unread


def _is_same(printed: tuple[str, str, str], published: tuple[str, str, str]) -> bool:
    """Whether a line in the files is the same as a line in the log, which may have been redacted since."""
    return printed[:2] == published[:2] and published[2] in (printed[2], REDACTED_MESSAGE)
