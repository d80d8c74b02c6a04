"""Publishes a job's log from a Python program, which can write lines directly, to a stream, or through ``logging``.

    with JobLog.open("http://127.0.0.1:8000", "wf_1", "job_1", token=token) as log:
        log.write("stdout", "Starting")

Writing never waits for the store: lines go to a spool, and the log's own thread delivers them. Once the log is open,
errors of the store are reported at the end.
"""

import io
import logging
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from chronoverse.errors import Closed
from chronoverse.joblog.labels import check_labels
from chronoverse.joblog.line_splitter import LineSplitter
from chronoverse.joblog.model import IDENTIFIER, MAX_LINE_BYTES, STREAMS, JobRef, Status, iso_timestamp
from chronoverse.joblog.secret_forms import SecretForms
from chronoverse.runner.http_log_writer import READ_SECONDS, HttpLogWriter
from chronoverse.runner.publisher import JobResult, LogWriter, Publisher
from chronoverse.runner.run import DELIVER_SECONDS, MEMORY_ONLY, OPEN_SECONDS, close_and_report
from chronoverse.runner.spool.spool import Spool
from chronoverse.runner.spool.spool_file import SpoolRoom
from chronoverse.settings import Settings, ca_file_or_setting, mask_forms_setting
from chronoverse.store import Store

__all__ = ["JobLog", "JobLogHandler", "JobLogStream"]

#: Maximum characters of an unfinished line, after which :class:`JobLogStream` publishes it.
_MAX_UNFINISHED: Final = 65_536


@dataclass(eq=False, kw_only=True)
class JobLog:
    """The log of a running job, created by :meth:`open`. Any thread can write to it.

    As a context manager, it ends the job when the block exits: COMPLETED with 0; FAILED with 1 after an exception,
    whose traceback goes to stderr; CANCELED with 130 after KeyboardInterrupt; with SystemExit's code after SystemExit.
    """

    _publisher: Publisher
    _splitters: Mapping[str, LineSplitter]
    _deliver_seconds: float
    _clock: Callable[[], float]
    #: The service's URL, for messages to the user.
    _service_url: str | None
    #: Closed when the log is finished.
    _resources: ExitStack
    #: Written texts, on their way to the spool.
    _texts: "_Funnel" = field(default_factory=lambda: _Funnel())
    #: Whether :meth:`finish` was called. Nothing can be written afterwards.
    finished: bool = False

    @classmethod
    def open(
        cls,
        store: "LogWriter | str",
        workflow: str,
        job: str,
        *,
        token: str | Callable[[], str] | None = None,
        ca_file: Path | str | None = None,
        max_line_bytes: int = MAX_LINE_BYTES,
        lease_seconds: float = 30,
        open_seconds: float = OPEN_SECONDS,
        deliver_seconds: float = DELIVER_SECONDS,
        room: SpoolRoom = MEMORY_ONLY,
        retry: bool = False,
        wait_for_lease: bool = False,
        lease_token: str | None = None,
        labels: Mapping[str, str] | None = None,
        say: Callable[[str], None] | None = None,
        clock: Callable[[], float] = time.time,
    ) -> Self:
        """Opens a new attempt of a job. Waits up to ``open_seconds`` for the store.

        ``store`` can be the URL of a store or service. ``docs/python-api.md`` describes the options.

        Raises ValueError and ``SettingsError``. If the store refuses the job, raises ``Held``, ``Closed``, ``Deleted``,
        ``CorruptLog``, ``NotALog``, ``Unauthorized``, ``Forbidden`` or ``JobNotFound``. Raises ``Unreachable`` if the
        service's certificate is not trusted. Raises nothing during an outage: lines wait in the spool.
        """
        if not (IDENTIFIER.fullmatch(workflow) and IDENTIFIER.fullmatch(job)):
            raise ValueError("invalid id: expected 1 to 128 of A-Z a-z 0-9 . _ - beginning with a letter or digit")
        if not lease_seconds > 0:
            raise ValueError(f"invalid lease_seconds {lease_seconds}: expected more than 0")
        forms = SecretForms(mask_forms_setting())
        with ExitStack() as stack:
            writer: LogWriter
            if isinstance(store, str):
                writer = connect_writer(store, token, ca_file_or_setting(ca_file), lease_seconds=lease_seconds)
                stack.callback(writer.close)
            else:
                writer = store
            publisher = Publisher(
                lambda: writer,
                JobRef(workflow, job),
                Spool(replace(room, name=job)),
                say or (lambda text: print(f"chronoverse: {text}", file=sys.stderr)),
                lease_seconds=lease_seconds,
                find_free_id=retry,
                wait_for_lease=wait_for_lease,
                lease_token=lease_token,
                labels=check_labels(labels or {}),
            )
            stack.callback(publisher.stop)
            publisher.start(open_seconds)
            service_url = store if isinstance(writer, HttpLogWriter) and isinstance(store, str) else None
            return cls(
                _publisher=publisher,
                _splitters={stream: LineSplitter(stream, max_line_bytes, forms) for stream in STREAMS},
                _deliver_seconds=deliver_seconds,
                _clock=clock,
                _service_url=service_url,
                _resources=stack.pop_all(),
            )

    @classmethod
    def open_try(cls, store: "LogWriter | str", job: JobRef, settings: Settings, **options: Any) -> Self:
        """Opens a try of a framework's task: as the job's next attempt, or as JOB.2, JOB.3, … if the job has ended.

        ``settings`` provide the line limit, the lease and the spool. Options and errors are as in :meth:`open`.
        """
        options |= {"max_line_bytes": settings.max_line_bytes, "lease_seconds": settings.lease_seconds}
        options["room"] = SpoolRoom(settings.data_dir / "spool", file_bytes=settings.spool_max_bytes)
        try:
            return cls.open(store, *job, wait_for_lease=True, **options)
        except Closed:
            return cls.open(store, *job, retry=True, **options)

    @property
    def undelivered(self) -> int:
        """Lines that the store has not acknowledged."""
        return self._publisher.spool.undelivered

    @property
    def dropped(self) -> int:
        """Lines dropped because the spool was full."""
        return self._publisher.spool.dropped

    def write(self, stream: str, text: str | bytes, *, at: float | None = None) -> None:
        """Publishes the lines of ``text`` on ``stream``, ``stdout`` or ``stderr``. Never waits for the store.

        Only newlines end lines; the last line needs none. A line that is too long becomes several ``partial`` lines.
        ``at`` is Unix time. Invalid UTF-8 is replaced. Raises ValueError for another stream, and after :meth:`finish`.
        """
        if stream not in STREAMS:
            raise ValueError(f"the stream must be stdout or stderr, not {stream!r}")
        data = text.encode("utf-8", "replace") if isinstance(text, str) else bytes(memoryview(text))
        if not data.endswith(b"\n"):
            data += b"\n"
        if self.finished:
            raise ValueError("the log is finished")
        self._texts.put((stream, data, iso_timestamp(self._clock() if at is None else at)), self._put)

    def _put(self, text: tuple[str, bytes, str]) -> None:
        if self.finished:  # since write() began
            raise ValueError("the log is finished")
        stream, data, timestamp = text
        # Splits up to 256 KiB at once, because the spool accepts only batches of up to 2 MiB.
        for start in range(0, len(data), 262_144):
            for batch in self._splitters[stream].feed(data[start : start + 262_144], timestamp):
                self._publisher.spool.put(batch)

    def finish(self, status: Status | str = Status.COMPLETED, exit_code: int | None = 0) -> bool:
        """Ends the job as ``COMPLETED``, ``FAILED``, ``CANCELED`` or ``LOST``. Waits up to ``deliver_seconds`` for its
        lines.

        ``PENDING`` ends only this attempt: the next :meth:`open`, by any process within a week, continues the log.
        Returns whether the store has all lines and the end. Can be called again. Raises ValueError for another status.
        """
        if status not in (Status.PENDING, Status.COMPLETED, Status.FAILED, Status.CANCELED, Status.LOST):
            raise ValueError(f"a job ends COMPLETED, FAILED, CANCELED or LOST, and an attempt PENDING, not {status}")
        with self._texts.lock:
            if self.finished:
                return self._publisher.ended
            self._texts.empty(self._put)
            self.finished = True
        # If another attempt follows, this one's exit code is not the job's. A killed attempt has no exit code.
        has_code = status not in (Status.PENDING, Status.LOST)
        self._publisher.end(JobResult(Status(status), exit_code if has_code else None))
        with self._resources:
            try:
                self._publisher.join(self._deliver_seconds)
            finally:  # also after Ctrl-C
                self._publisher.stop()
                ended, refusal = self._publisher.ended, self._publisher.refusal
                close_and_report(self._publisher, self._service_url, delivered=ended, refusal=refusal)
        return self._publisher.ended

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self.finished:
            return
        if error is None:
            self.finish()
        elif isinstance(error, KeyboardInterrupt):
            self.finish(Status.CANCELED, 130)  # as a shell reports Ctrl-C
        elif isinstance(error, SystemExit) and (error.code is None or isinstance(error.code, int)):
            code = error.code or 0
            self.finish(Status.FAILED if code else Status.COMPLETED, code)
        else:
            text = [str(error.code)] if isinstance(error, SystemExit) else traceback.format_exception(error)
            self.write("stderr", "".join(text))
            self.finish(Status.FAILED, 1)


class _Funnel:
    """Passes texts on, in order and one at a time, from any thread, signal handler or finalizer.

    A call that interrupts another one leaves its text to that call. Threads wait for each other, so that few texts are
    held here, but only for ``patience`` seconds, as a finalizer can run in the very thread that another one waits for.
    In the publisher's threads, a finalizer can run while the spool is locked, so texts wait for the next call.
    """

    def __init__(self, patience: float = 5.0) -> None:
        self.lock: Final = threading.RLock()
        self.patience = patience
        self._waiting = deque[Any]()
        #: The thread that passes texts on.
        self._owner: int | None = None

    def put(self, text: Any, pass_on: Callable[[Any], object]) -> None:
        self._waiting.append(text)
        if not _is_our_thread():
            self.empty(pass_on)

    def empty(self, pass_on: Callable[[Any], object]) -> None:
        me = threading.get_ident()
        # Loops, because a text may have been added after the last one was passed on, but before the lock was released.
        while self._waiting and self._owner != me and self.lock.acquire(timeout=self.patience):
            self._owner = me
            try:
                while self._waiting:
                    pass_on(self._waiting.popleft())
            finally:
                self._owner = None
                self.lock.release()


def _is_our_thread() -> bool:
    return threading.current_thread().name in ("chronoverse-publisher", "chronoverse-durability")


class JobLogStream(io.TextIOBase):
    """A text stream that publishes what is written to it, for ``contextlib.redirect_stdout`` and ``print(file=…)``.

    Publishes a line when it ends, when it reaches :data:`_MAX_UNFINISHED` characters, or when :meth:`close` is called.
    Any thread can write. Text written after :meth:`close`, or after the log has finished, is ignored.
    """

    def __init__(self, log: JobLog, stream: str) -> None:
        """``stream`` is ``stdout`` or ``stderr``."""
        self._log = log
        self._stream = stream
        self._unfinished = ""
        #: Whether the last line was published before its end.
        self._is_cut = False
        self._texts = _Funnel()

    def writable(self) -> bool:
        return True

    def write(self, text: str) -> int:
        """Publishes the lines that ``text`` completes. Returns the length of ``text``. Never waits for the store."""
        self._texts.put(text, self._add)
        return len(text)

    def _add(self, text: str) -> None:
        # print() writes the newline separately. If its line was already published, it does not make another line.
        new = text.removeprefix("\n") if self._is_cut else text
        self._is_cut = self._is_cut and not text
        lines, newline, rest = (self._unfinished + new).rpartition("\n")
        if len(rest) > _MAX_UNFINISHED:
            lines, newline, rest = lines + newline + rest, "\n", ""
            self._is_cut = True
        self._unfinished = rest
        if newline and not self.closed:
            try:
                self._log.write(self._stream, lines + newline)
            except ValueError:
                if not self._log.finished:
                    raise

    def close(self) -> None:
        """Publishes the unfinished line. Idempotent."""
        with self._texts.lock:
            self._texts.empty(self._add)
            if self._unfinished:
                self._texts.put("\n", self._add)
                self._texts.empty(self._add)
        super().close()


class JobLogHandler(logging.Handler):
    """Publishes log records as lines, with their time: on stderr from level ``stderr_level``, else on stdout.

    Ignores records of Chronoverse's own threads, because publishing these would cause an endless loop. ``log`` can be a
    function that returns the log for the calling thread.
    """

    def __init__(
        self,
        log: JobLog | Callable[[], JobLog | None],
        level: int | str = logging.NOTSET,
        stderr_level: int = logging.WARNING,
    ) -> None:
        super().__init__(level)
        self._log = log
        self._stderr_level = stderr_level

    def emit(self, record: logging.LogRecord) -> None:
        log = self._log if isinstance(self._log, JobLog) else self._log()
        if log is None or log.finished or _is_our_thread():
            return
        try:
            stream = "stderr" if record.levelno >= self._stderr_level else "stdout"
            log.write(stream, self.format(record), at=record.created)
        except Exception:
            self.handleError(record)


def connect_writer(
    url: str,
    token: str | Callable[[], str] | None,
    ca_file: Path | None,
    *,
    read_seconds: float = READ_SECONDS,
    **store_options: Any,
) -> Store | HttpLogWriter:
    """The store or service at ``url``. A store uses only ``store_options``; a service uses only the other arguments."""
    if url.startswith(("http://", "https://")):
        return HttpLogWriter(url, token, ca_file=ca_file, read_seconds=read_seconds)
    try:
        return Store(url, **store_options)
    except ValueError as error:
        raise ValueError(f"invalid URL of a store or service: {error}") from None
