"""One run of a container: reads its log's files, publishes its lines as a job, and ends the job as the container ended.

    LogFiles ──> CriReader ──> Spool ──> Publisher ──> the store, or the service

The files keep the lines until the store has them safely, so the spool has only what is on its way.
"""

import contextlib
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
from chronoverse.runner.spool.spool import OVERHEAD_BYTES, Spool
from chronoverse.runner.spool.spool_file import SpoolRoom

#: Bytes of a log that may be on their way, whatever other logs have; and at most.
LEAST_BYTES: Final = 262_144
MOST_BYTES: Final = 8_388_608
#: Seconds for which a log must be silent, once its container has ended, until its end is published.
QUIET_SECONDS: Final = 1.0
#: Seconds between two checkpoints, and until something that has failed is tried again.
CHECKPOINT_SECONDS: Final = 1.0
RETRY_SECONDS: Final = 30.0
#: Lines of a log's end that are looked for in the files when there is no checkpoint.
COMPARED_LINES: Final = 100


class RunKey(NamedTuple):
    """Which run of which container. ``restart`` is -1 for a container that never started."""

    uid: str
    container: str
    restart: int

    def __str__(self) -> str:
        return f"{self.uid}_{self.container}_{self.restart}"


class Surroundings(NamedTuple):
    """What all logs share.

    ``connect`` makes a writer for a log, ``read_last`` reads the last lines of a job's log, ``has_room``
    says whether a log may have more than :data:`LEAST_BYTES` on their way, and ``say`` shows a message.
    """

    connect: Callable[[], LogWriter]
    read_last: Callable[[JobRef, int], Sequence[Line]]
    has_room: Callable[[], bool]
    checkpoints: Checkpoints
    say: Callable[[str], None]
    max_line_bytes: int
    lease_seconds: float
    forms: SecretForms


class _Mark(NamedTuple):
    """How far the files were read when the spool had lines up to the index ``end``: ``saved``, for a checkpoint.

    ``cost`` was put into the spool since the mark before, from a line of the time ``timestamp`` on.
    """

    end: int
    saved: dict[str, Any]
    cost: int
    timestamp: str


@dataclass(eq=False)
class ContainerLog:
    """Call :meth:`step` again and again. It never waits.

    ``path`` is the log's file. With ``failure`` there is none, and the only line is the failure's.
    """

    key: RunKey
    job: JobRef
    path: Path
    labels: Labels
    around: Surroundings
    failure: ContainerEnd | None = None

    def __post_init__(self) -> None:
        #: Whether nothing is left to do: the job has its end, or will not get one from us.
        self.is_done = False
        self._begin(self.around.checkpoints.load(str(self.key)))

    def _begin(self, saved: dict[str, Any]) -> None:
        """Opens the job, in the publisher's thread."""
        #: Bytes that are on their way.
        self.cost = 0
        self._marks: deque[_Mark] = deque()
        self._saved, self.job = saved, JobRef(*saved.get("job", self.job))
        self.is_done = bool(saved.get("ended"))
        if self.is_done:
            return
        self._open_files(saved)
        self._spool = Spool(SpoolRoom(name=self.job.job_id, memory_bytes=2**30, keep_bytes=0))
        self._spool.save_state(token=saved.get("token"))
        # Without a checkpoint the lease may be that of the agent before.
        options: dict[str, Any] = {"wait_for_lease": True, "labels": self.labels, "gap_reason": "missing"}
        options["lease_seconds"] = self.around.lease_seconds
        self._publisher = Publisher(self.around.connect, self.job, self._spool, self.around.say, **options)
        #: Lines of the files that the log has already. None until that is known.
        self._skip: int | None = None
        self._search: _Search | None = None
        self._is_ending = False
        self._checkpoint_at = self._retry_at = 0.0
        self._save(token=self._spool.state["token"])
        with contextlib.suppress(ChronoverseError):  # the publisher knows its refusal
            self._publisher.start(0)

    def _open_files(self, saved: dict[str, Any]) -> None:
        position = saved.get("position")
        self._files = LogFiles(self.path, Position(*position) if position else None)
        self._reader = CriReader(self.around.max_line_bytes, saved.get("reader"), self.around.forms)

    def step(self, end: ContainerEnd | None, is_gone: bool) -> bool:
        """Does what can be done now. ``end`` is how the container ended. ``is_gone``: nobody will ever tell that.

        Returns whether there is more to do at once.
        """
        now = time.monotonic()
        if self._publisher.ended:
            self._finish()
        elif self._publisher.refusal is not None:
            self._handle(self._publisher.refusal, now)
        elif self._skip is None:
            if self._publisher.base is not None:
                self._find_place(self._publisher.base, now)
        else:
            self._note_safe(now)
            if not self._is_ending and self.cost <= (MOST_BYTES if self.around.has_room() else LEAST_BYTES):
                return self._read(end, is_gone, now)
        return False

    @property
    def lag_bytes(self) -> int:
        """Bytes that are not safe in the store yet, about."""
        return 0 if self.is_done else self._files.unread + self.cost

    @property
    def lag_seconds(self) -> float:
        """The age of the oldest line that was read and is not safe in the store yet."""
        began = seconds_of(self._marks[0].timestamp) if self._marks else None
        return max(0.0, time.time() - began) if began else 0.0

    def suspend(self) -> None:
        """Begins to end this attempt, so that the job waits for the next agent, and is not LOST."""
        if not (self.is_done or self._is_ending or self._publisher.base is None):
            self._is_ending = True
            self._publisher.end(JobResult(Status.PENDING, None))

    def close(self, seconds: float) -> None:
        """Stops, after waiting up to ``seconds`` for what is on its way."""
        if not self.is_done:
            if self._is_ending:
                self._publisher.join(seconds)
            self._note_safe(float("inf"))
            self._stop()

    # Where to begin

    def _find_place(self, base: int, now: float) -> None:
        """Finds out which lines of the files the log has already. Its next line has the number ``base``."""
        known = self._saved.get("next")
        if known is not None and base >= known and self._files.found:
            self._skip = base - known
        elif base == 1 or self.failure:
            self._skip = min(base - 1, 1)
        elif search := self._searched(now):
            if search.is_foreign and known is None:
                self._publisher.end(JobResult(Status.PENDING, None))
                self._use_other_id()
                return
            self._skip = search.lines or 0
            if search.lines is None:
                # The files in between are gone, and with them lines whose number nobody knows.
                self._spool.skip(1)
        else:
            return
        if not self._files.found:
            self._files.close()
            self._open_files({})
        self._put([])

    def _searched(self, now: float) -> "_Search | None":
        """The result of the search for the log's last lines in the files. None while there is none yet."""
        if self._search is None or (self._search.error and now >= self._retry_at):
            self._search, self._retry_at = _Search(self.path, self.job, self.around), now + RETRY_SECONDS
        return self._search if self._search.is_done and self._search.error is None else None

    def _use_other_id(self) -> None:
        """Begins again under an id that no other pod of the same name has."""
        job = self.job._replace(job_id=f"{self.job.job_id[:119]}-{self.key.uid[:8]}")
        self.around.say(f"{self.job} is of another pod of this name: this one's job is {job.job_id}")
        self._files.close()
        self._begin({"job": job})

    def _handle(self, refusal: ChronoverseError, now: float) -> None:
        """Does what follows from the store's refusal."""
        if isinstance(refusal, Closed) and not isinstance(refusal, ForeignLines):
            has_own_id = self.job.job_id.endswith(f"-{self.key.uid[:8]}")
            if not ("next" in self._saved or self.failure or has_own_id):
                if (search := self._searched(now)) is None:
                    return
                if search.lines is None:
                    self._use_other_id()
                    return
        elif not isinstance(refusal, Deleted):
            self._retry_at = self._retry_at or now + RETRY_SECONDS
            if now >= self._retry_at:
                self._stop()
                self._begin(self._saved)
            return
        if self._files.unread:
            self.around.say(f"{self.job}: {refusal}; {self._files.unread} bytes of its files are not published")
        self._finish()

    # Reading

    def _read(self, end: ContainerEnd | None, is_gone: bool, now: float) -> bool:
        files, end = self._files, self.failure or end
        if files.has_dropped:
            files.has_dropped = False
            self._put(self._reader.end_file())
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
        """The number of the next line of the files."""
        return (self._publisher.base or 1) + self._spool.end - (self._skip or 0)

    def _put(self, batches: Sequence[LineBatch]) -> None:
        cost = 0
        for batch in batches:
            if self._skip:
                skipped = min(self._skip, batch.lines)
                self._skip -= skipped
                text = b"\n".join(batch.text.split(b"\n")[skipped:])
                batch = batch._replace(text=text, lines=batch.lines - skipped)
            if batch.lines:
                self._spool.put(batch)
                cost += OVERHEAD_BYTES + len(batch.text)
        self.cost += cost
        position = self._files.position(len(self._reader.rest))
        saved = {"next": self._number, "position": position, "reader": self._reader.state()}
        self._marks.append(_Mark(self._spool.end, saved, cost, batches[0].timestamp if batches else ""))

    def _note_safe(self, now: float) -> None:
        """Notes how far all lines are safe, at times in a checkpoint; at once when another file has begun."""
        before = (self._saved.get("position") or [None])[0]
        while self._marks and self._marks[0].end <= self._spool.safe:
            mark = self._marks.popleft()
            self.cost -= mark.cost
            self._saved |= mark.saved
            self._checkpoint_at = self._checkpoint_at or now + CHECKPOINT_SECONDS
        after = (self._saved.get("position") or [None])[0]
        if self._checkpoint_at and (now >= self._checkpoint_at or before != after):
            self._save()

    def _save(self, **changes: Any) -> None:
        self._checkpoint_at = 0.0
        self._saved |= {"job": self.job, "path": str(self.path), "labels": dict(self.labels), **changes}
        self.around.checkpoints.save(str(self.key), self._saved)

    def _finish(self) -> None:
        self._save(ended=True)
        self._stop()

    def _stop(self) -> None:
        self.is_done, self.cost = True, 0
        self._marks.clear()
        self._publisher.stop()
        self._files.close()


class _Search:
    """Looks in the files for the last lines of a job's log, in a thread."""

    def __init__(self, path: Path, job: JobRef, around: Surroundings) -> None:
        #: How many lines the files have up to the log's last one. None if it is not in them.
        self.lines: int | None = None
        #: Whether the log is not of these files, which are all that the container has printed.
        self.is_foreign = self.is_done = False
        self.error: ChronoverseError | None = None
        threading.Thread(target=self._run, args=(path, job, around), name="chronoverse-search", daemon=True).start()

    def _run(self, path: Path, job: JobRef, around: Surroundings) -> None:
        try:
            last = around.read_last(job, COMPARED_LINES)
            files = LogFiles(path)
            with contextlib.closing(files):
                self.lines = find_lines(files, last, around.max_line_bytes, around.forms)
            self.is_foreign = self.lines is None and not files.is_rotated
        except ChronoverseError as error:
            self.error = error
            around.say(f"{job}: cannot compare its files with its log, retrying: {error}")
        self.is_done = True


def find_lines(
    files: LogFiles, last: Sequence[Line], max_line_bytes: int, forms: SecretForms | None = None
) -> int | None:
    """How many lines the files have up to the ``last`` ones of a log. None if these are not in them."""
    reader, count, found = CriReader(max_line_bytes, None, forms), 0, None
    wanted = [(line.timestamp, line.stream, line.message) for line in last]
    recent: deque[tuple[str, str, str]] = deque(maxlen=max(1, len(wanted)))
    while (data := files.read()) != b"" or files.unread:
        if data == b"":
            time.sleep(0.05)  # until a file counts as complete
        for batch in reader.end_file() if data is None else reader.feed(data):
            for message in batch.messages():
                count += 1
                recent.append((batch.timestamp, batch.stream, message.decode()))
                # Where several places of the files have what the log has, the number tells.
                is_found = bool(wanted) and recent[-1] == wanted[-1] and [*recent] == wanted[-len(recent) :]
                if is_found and found != last[-1].sequence_num:
                    found = count
    return found if wanted or count else 0
