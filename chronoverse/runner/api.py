"""Publishing from a Python program: a job's log to write to, and a ``logging`` handler on top of it.

    from chronoverse.api import JobLog

    with JobLog.open("http://127.0.0.1:8000", "wf_1", "job_1", token=token) as log:
        log.write("stdout", "Starting")

Writing never waits for the store: lines go to a spool, and a thread of the log's own delivers them. The program's
life is its own, as that of a command under ``chronoverse run``: once the log is open, nothing that happens to the
store raises here; what cannot be delivered is said in the end.
"""

import logging
import sys
import threading
import time
import traceback
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from types import TracebackType
from typing import Final, Self

from chronoverse.joblog.values import IDENTIFIER, MAX_LINE_BYTES, JobRef, Status, iso_timestamp
from chronoverse.runner.capture.line_splitter import LineSplitter
from chronoverse.runner.http_log_writer import HttpLogWriter
from chronoverse.runner.log_writer import JobResult, LogWriter
from chronoverse.runner.publisher import Publisher
from chronoverse.runner.run import DELIVER_SECONDS, MEMORY_ONLY, OPEN_SECONDS, close_and_report
from chronoverse.runner.spool.spool import Spool
from chronoverse.runner.spool.spool_file import SpoolRoom
from chronoverse.store import Store

__all__ = ["JobLog", "JobLogHandler"]

#: The streams that a line may be on.
STREAMS: Final = ("stdout", "stderr")
#: Bytes of one write that are cut into lines at a time: a block of lines must fit the spool's slots.
CHUNK_BYTES: Final = 262_144
#: What the names of our own threads begin with.
_OWN_THREADS: Final = "chronoverse-"
#: How a job ends that was interrupted from the terminal, as a shell reports it.
_BY_SIGINT: Final = 130


class JobLog:
    """A job's log while the job runs. Made by :meth:`open`; safe to write to from any thread.

    As a context manager it ends the job: COMPLETED with 0; FAILED with 1, and the traceback as lines of stderr, when
    an exception leaves the block; CANCELED with 130 for a KeyboardInterrupt; with its own code for a SystemExit.
    """

    def __init__(
        self,
        publisher: Publisher,
        spool: Spool,
        say: Callable[[str], None],
        *,
        max_line_bytes: int = MAX_LINE_BYTES,
        deliver_seconds: float = DELIVER_SECONDS,
        clock: Callable[[], float] = time.time,
        service_url: str | None = None,
        resources: ExitStack | None = None,
    ) -> None:
        """For :meth:`open`. ``through`` is the service's URL; ``owned`` is closed when the log is finished."""
        self._publisher = publisher
        self._spool = spool
        self._say = say
        self._cutters = {stream: LineSplitter(stream, max_line_bytes) for stream in STREAMS}
        self._deliver_seconds = deliver_seconds
        self._clock = clock
        self._through = service_url
        self._owned = resources or ExitStack()
        self._lock = threading.Lock()
        self._finished = False

    @classmethod
    def open(
        cls,
        store: LogWriter | str,
        workflow: str,
        job: str,
        *,
        token: str | Callable[[], str] | None = None,
        max_line_bytes: int = MAX_LINE_BYTES,
        lease_seconds: float = 30,
        open_seconds: float = OPEN_SECONDS,
        deliver_seconds: float = DELIVER_SECONDS,
        room: SpoolRoom = MEMORY_ONLY,
        say: Callable[[str], None] | None = None,
        clock: Callable[[], float] = time.time,
    ) -> Self:
        """Opens a new attempt at a job, and waits up to ``open_seconds`` for the store to let us in.

        ``store`` is a :class:`chronoverse.store.Store`, a :class:`chronoverse.runner.http_log_writer.HttpLogWriter`, or
        the URL of either: that of a store as ``CHRONOVERSE_REDIS_URL`` has it, or ``http://`` or ``https://`` for a
        service, which needs a ``token`` with ``logs:write`` (a function makes one for each request). What was given as
        a URL is closed with the log. ``lease_seconds`` must not be longer than the service's own. ``room`` says where
        lines wait while the store is away, by default in 64 MiB of memory. ``say`` gets our words to a person, by
        default on stderr.

        Raises ValueError for ids and URLs that are none; :class:`chronoverse.errors.Held`, ``Closed``, ``Deleted``,
        ``CorruptLog``, ``NotALog``, ``Unauthorized``, ``Forbidden`` or ``JobNotFound`` when we are turned away. A store
        that is away raises nothing: lines wait for it.
        """
        if not (IDENTIFIER.fullmatch(workflow) and IDENTIFIER.fullmatch(job)):
            raise ValueError("ids are 1 to 128 of A-Z a-z 0-9 . _ - and start with a letter or digit")
        say = say or _to_stderr
        with ExitStack() as stack:
            ledger = _connect(store, token, lease_seconds, stack) if isinstance(store, str) else store
            spool = Spool(replace(room, name=job))
            publisher = Publisher(lambda: ledger, JobRef(workflow, job), spool, say, lease_seconds=lease_seconds)
            stack.callback(publisher.stop)
            publisher.start(open_seconds)
            service_url = store if isinstance(ledger, HttpLogWriter) and isinstance(store, str) else None
            return cls(
                publisher,
                spool,
                say,
                max_line_bytes=max_line_bytes,
                deliver_seconds=deliver_seconds,
                clock=clock,
                service_url=service_url,
                resources=stack.pop_all(),
            )

    @property
    def finished(self) -> bool:
        """Whether :meth:`finish` was called: nothing can be written any more."""
        return self._finished

    @property
    def undelivered(self) -> int:
        """Lines that are not in the store, as far as we know."""
        return self._publisher.undelivered

    @property
    def dropped(self) -> int:
        """Lines that found no room while the store was away."""
        return self._spool.dropped

    def write(self, stream: str, text: str | bytes, *, at: float | None = None) -> None:
        """Publishes the lines of ``text`` on ``stream``, ``stdout`` or ``stderr``. Never waits for the store.

        Lines end at newlines only; one at the very end of ``text`` begins no further line, and the last line needs
        none. A line over the limit is published in ``partial`` pieces. ``at`` is Unix time in seconds, by default
        now. What is no UTF-8 is replaced.

        Raises ValueError for another stream, and once the log is finished.
        """
        if stream not in STREAMS:
            raise ValueError(f"the stream must be stdout or stderr, not {stream!r}")
        data = text.encode("utf-8", "replace") if isinstance(text, str) else bytes(text)
        if not data.endswith(b"\n"):
            data += b"\n"
        with self._lock:
            if self._finished:
                raise ValueError("the log is finished")
            timestamp = iso_timestamp(self._clock() if at is None else at)
            for start in range(0, len(data), CHUNK_BYTES):
                for block in self._cutters[stream].feed(data[start : start + CHUNK_BYTES], timestamp):
                    self._spool.put(block)

    def finish(self, status: Status | str = Status.COMPLETED, exit_code: int | None = 0) -> bool:
        """Ends the job: ``COMPLETED``, ``FAILED`` or ``CANCELED``. Waits up to ``deliver_seconds`` for the last lines.

        Whether the store has all of it. A second call changes nothing. Raises ValueError for another status.
        """
        if status not in (Status.COMPLETED, Status.FAILED, Status.CANCELED):
            raise ValueError(f"a job ends COMPLETED, FAILED or CANCELED, not {status}")
        with self._lock:
            if self._finished:
                return self._publisher.ended
            self._finished = True
        self._publisher.end(JobResult(Status(status), exit_code), iso_timestamp(self._clock()))
        with self._owned:
            self._publisher.join(self._deliver_seconds)
            self._publisher.stop()
            ended, refusal = self._publisher.ended, self._publisher.refusal
            close_and_report(self._publisher, self._say, self._through, delivered=ended, refusal=refusal)
        return self._publisher.ended

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._finished:
            return
        if error is None:
            self.finish()
        elif isinstance(error, KeyboardInterrupt):
            self.finish(Status.CANCELED, _BY_SIGINT)
        elif isinstance(error, SystemExit) and (error.code is None or isinstance(error.code, int)):
            code = error.code or 0
            self.finish(Status.FAILED if code else Status.COMPLETED, code)
        else:
            said = [str(error.code)] if isinstance(error, SystemExit) else traceback.format_exception(error)
            self.write("stderr", "".join(said))
            self.finish(Status.FAILED, 1)


class JobLogHandler(logging.Handler):
    """Publishes log records as lines: those of ``stderr_level`` and above on stderr, the others on stdout.

    A record of several lines becomes as many. The lines' time is the record's. What our own threads log is left out
    (a line for each request that publishes a line would never end), and so is everything after the log's end.
    """

    def __init__(self, log: JobLog, level: int | str = logging.NOTSET, stderr_level: int = logging.WARNING) -> None:
        super().__init__(level)
        self._log = log
        self._stderr_level = stderr_level

    def emit(self, record: logging.LogRecord) -> None:
        """Publishes ``record``. Never waits for the store; errors go to :meth:`handleError`, as in any handler."""
        if self._log.finished or threading.current_thread().name.startswith(_OWN_THREADS):
            return
        try:
            stream = "stderr" if record.levelno >= self._stderr_level else "stdout"
            self._log.write(stream, self.format(record), at=record.created)
        except Exception:
            self.handleError(record)


def _connect(url: str, token: str | Callable[[], str] | None, lease_seconds: float, stack: ExitStack) -> LogWriter:
    is_service = url.startswith(("http://", "https://"))
    ledger = HttpLogWriter(url, token) if is_service else Store(url, lease_seconds=lease_seconds)
    stack.callback(ledger.close)
    return ledger


def _to_stderr(text: str) -> None:
    print(f"chronoverse: {text}", file=sys.stderr)
