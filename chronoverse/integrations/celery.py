"""Publishes each Celery task as a job: its output, log records and end. A retry is an attempt.

    from chronoverse.integrations.celery import install

    app = Celery("shop")
    install(app)

The job's id is the task's id; its workflow is the task's name, unless one is given. Connections and threads start with
the first task, so that a pool can fork beforehand.
"""

import contextlib
import hashlib
import hmac
import logging
import math
import os
import re
import secrets
import signal
import sys
import threading
import time
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

from celery import Celery, signals, states
from celery.utils.log import task_logger

from chronoverse.auth.token_file import configured_token
from chronoverse.errors import ChronoverseError, SequenceGap, StoreError
from chronoverse.joblog.labels import Labels, read_labels
from chronoverse.joblog.model import STREAMS, JobRef, Status
from chronoverse.runner.api import JobLog, JobLogHandler, JobLogStream, connect_writer
from chronoverse.runner.http_log_writer import HttpLogWriter
from chronoverse.settings import Settings
from chronoverse.store import Store

__all__ = ["TaskLogs", "install"]

OPEN_SECONDS: Final = 1.0
DELIVER_SECONDS: Final = 5.0
#: For this many seconds after a failed delivery, the next tasks wait only a quarter of a second.
AWAY_SECONDS: Final = 30.0

_LOGGERS: Final = (logging.getLogger(), task_logger)
_logger: Final = logging.getLogger("chronoverse.integrations.celery")


def install(
    app: Celery,
    workflow: str | None = None,
    *,
    store: str | None = None,
    token: str | Callable[[], str] | None = None,
    formatter: logging.Formatter | None = None,
    settings: Settings | None = None,
) -> "TaskLogs":
    """Publishes all tasks of ``app``, except Celery's own (``celery.…``). Call it where the app is created.

    ``workflow`` is the workflow of all tasks; by default, each task's name is its workflow. ``store`` is the URL of a
    store or a service; ``token`` is as for :meth:`chronoverse.api.JobLog.open`. ``formatter`` formats log records.
    Raises ValueError for an invalid URL, and :class:`chronoverse.errors.SettingsError`.
    """
    settings = settings or Settings.from_env()
    url = store or settings.redis_url or settings.service_url
    if token is None:
        token = configured_token(settings)
    connect = partial(
        connect_writer,
        url,
        token,
        settings.ca_file,
        prefix=settings.key_prefix,
        lease_seconds=settings.lease_seconds,
        retention_seconds=settings.retention_seconds,
    )
    connect().close()  # raises for an invalid URL
    logs = TaskLogs(app, workflow, connect, settings, formatter)
    logs.install()
    return logs


@dataclass(eq=False)
class TaskLogs:
    """The logs of this process's tasks. Created by :func:`install`."""

    app: Celery
    workflow: str | None
    connect: Callable[..., Store | HttpLogWriter]
    settings: Settings
    formatter: logging.Formatter | None = None

    def __post_init__(self) -> None:
        #: Lease tokens are derived from this secret, so the main process can end the attempt of a process it killed.
        self._secret = secrets.token_bytes(32)
        self._lock = threading.Lock()
        self._running: dict[str, _TaskOutput] = {}
        self._context: ContextVar[_TaskOutput | None] = ContextVar("chronoverse_task", default=None)
        #: Whether this is a pool process: all its output belongs to its one task, whatever the thread.
        self._is_pool_process = False
        self._writer: Store | HttpLogWriter | None = None
        self._writer_pid = 0
        self._away_until = 0.0
        #: The worker's hard time limit.
        self._time_limit: float | None = None
        self._handler = JobLogHandler(lambda: output.log if (output := self._current()) else None)
        self._handler.addFilter(_is_of_task)
        self._handler.setFormatter(self.formatter)
        self._task_streams: list[_TaskStream] = []
        self._receivers: dict[Any, Callable[..., None]] = {
            signals.worker_init: self._begin_worker,
            signals.worker_process_init: self._begin_process,
            signals.task_prerun: self._begin,
            signals.task_failure: self._write_traceback,
            signals.task_retry: self._write_traceback,
            signals.task_postrun: self._end,
            signals.task_revoked: self._cancel,
        }

    def install(self) -> None:
        for event, receiver in self._receivers.items():
            event.connect(receiver, weak=False)

    def uninstall(self) -> None:
        for event, receiver in self._receivers.items():
            event.disconnect(receiver)

    def _begin_worker(self, sender: Any, **_: Any) -> None:
        self._time_limit = sender.time_limit

    def _begin_process(self, **_: Any) -> None:
        self._is_pool_process = True

    def _begin(self, sender: Any, task_id: str, **_: Any) -> None:
        if not self._is_published(sender):
            return
        limit = (sender.request.timelimit or [None])[0] or sender.time_limit or self._time_limit
        overdue_at = time.monotonic() + (limit or math.inf)
        log = self._open_log(sender, sender.request)
        if log is None:
            return
        output = _TaskOutput(log, self._context.get(), overdue_at)
        with self._lock:
            self._running[task_id] = output
            if len(self._running) == 1:
                for logger in _LOGGERS:
                    logger.addHandler(self._handler)
                self._task_streams = [_TaskStream(name, getattr(sys, name), self._current) for name in STREAMS]
                sys.stdout, sys.stderr = self._task_streams
        self._context.set(output)

    def _write_traceback(self, sender: Any, einfo: Any, task_id: str = "", request: Any = None, **_: Any) -> None:
        output = self._running.get(task_id or request.id)
        if output is not None and einfo is not None:
            output.streams["stderr"].write(f"{einfo.traceback.rstrip()}\n")

    def _end(self, task_id: str, retval: Any, state: str | None, **_: Any) -> None:
        with self._lock:
            output = self._running.pop(task_id, None)
            if output is not None and not self._running:
                for logger in _LOGGERS:
                    logger.removeHandler(self._handler)
                for each in self._task_streams:
                    if getattr(sys, each.name) is each:
                        setattr(sys, each.name, each.wrapped)
        if output is None:
            return
        self._context.set(output.outer)
        error = sys.exc_info()[1] if state is None else None
        signum = _signal_of(error)
        # The worker's main process started its timer a few milliseconds before ours.
        is_overdue = signum == signal.SIGTERM and time.monotonic() > output.overdue_at - 0.1
        if is_overdue:
            output.streams["stderr"].write("hard time limit exceeded\n")
        for stream in output.streams.values():
            stream.close()
        result: tuple[Status, int | None]
        if signum is not None:
            result = Status.FAILED if is_overdue else Status.CANCELED, 128 + signum
        elif type(error).__name__ == "GreenletExit":  # the task was revoked in a pool of greenlets
            result = Status.CANCELED, None
        elif state is None:  # the task raised an exception that Celery does not catch, such as SystemExit
            output.log.__exit__(*sys.exc_info())
            return
        else:
            result = _result(state, retval)
        if output.log.finish(*result):
            self._away_until = 0.0
        else:
            self._away_until = time.monotonic() + AWAY_SECONDS
            self._shared_writer().close()  # its connections are broken, and the next task has little time

    def _cancel(self, sender: Any, request: Any, terminated: bool, signum: Any, **_: Any) -> None:
        """Ends the log of a task whose process was killed, or that will not run.

        Runs in the worker's main process, which has other work and forks, so it tries only once, without a thread.
        """
        if terminated and signum != signal.SIGKILL:
            return  # the signal raises an exception in the task's process, where it ends the log
        if not self._is_published(sender) or time.monotonic() < self._away_until:
            return
        job = self._job(sender, request)
        try:
            with contextlib.closing(self.connect(read_seconds=2.0)) as writer:
                if isinstance(writer, Store):
                    writer.ping()  # which gives up sooner than other commands
                for _attempt in range(3):
                    attempt = writer.open(job, self._lease_token(request), labels=_labels(sender))
                    # Lines of the killed process may still arrive.
                    with contextlib.suppress(SequenceGap):
                        writer.finish(attempt, Status.CANCELED, None, 0, attempt.next)
                        return
        except StoreError as error:
            self._away_until = time.monotonic() + AWAY_SECONDS
            _logger.warning("the log of the revoked task %s is not ended: %s", job, error)
        except ChronoverseError as error:
            _logger.info("the log of the revoked task %s is not ended: %s", job, error)

    def _is_published(self, task: Any) -> bool:
        # Compared with ==, because either may be a proxy of the app, such as celery.current_app.
        return task.app == self.app and not task.name.startswith("celery.")

    def _open_log(self, task: Any, request: Any) -> JobLog | None:
        job, settings = self._job(task, request), self.settings
        is_patient = time.monotonic() >= self._away_until
        deliver_seconds = DELIVER_SECONDS if is_patient else 0.25
        if is_patient and _is_redelivered(request):
            # The process that ran the task was killed. Its lease must expire before this attempt can begin.
            deliver_seconds += settings.lease_seconds
        try:
            # The job may have become LOST before the broker redelivered the task, or two tasks may have the same id.
            return JobLog.open_try(
                self._shared_writer(),
                job,
                settings,
                open_seconds=OPEN_SECONDS if is_patient else 0,
                deliver_seconds=deliver_seconds,
                lease_token=self._lease_token(request),
                labels=dict(_labels(task)),
                say=partial(_logger.warning, "%s: %s", job),
            )
        except ChronoverseError as error:
            _logger.warning("%s is not published: %s", job, error)
            return None

    def _job(self, task: Any, request: Any) -> JobRef:
        return JobRef(_identifier(self.workflow or task.name), _identifier(request.id))

    def _lease_token(self, request: Any) -> str:
        """The lease token: the same in the pool process and the main process, and unique to this attempt."""
        name = f"{request.id} {request.retries} {_is_redelivered(request)}"
        return hmac.new(self._secret, name.encode(), hashlib.sha256).hexdigest()

    def _shared_writer(self) -> Store | HttpLogWriter:
        with self._lock:
            if self._writer is None or self._writer_pid != os.getpid():
                self._writer, self._writer_pid = self.connect(), os.getpid()
            return self._writer

    def _current(self) -> "_TaskOutput | None":
        output = self._context.get()
        if output is None and self._is_pool_process:
            output = next(iter(list(self._running.values())), None)
        return output if output is not None and output.pid == os.getpid() else None


class _TaskOutput:
    """A running task's log and streams. ``outer`` is the task that called it in the same thread, or None."""

    def __init__(self, log: JobLog, outer: "_TaskOutput | None", overdue_at: float) -> None:
        self.log = log
        self.outer = outer
        #: The monotonic time of the hard time limit.
        self.overdue_at = overdue_at
        self.pid = os.getpid()
        self.streams = {name: JobLogStream(log, name) for name in STREAMS}


@dataclass(eq=False)
class _TaskStream:
    name: str
    wrapped: Any
    current: Callable[[], _TaskOutput | None]

    def write(self, text: str) -> Any:
        written = self.wrapped.write(text)
        output = self.current()
        if output is not None:
            output.streams[self.name].write(text)
        return written

    def writelines(self, lines: Any) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.wrapped, name)


def _signal_of(error: BaseException | None) -> int | None:
    """The signal that ended a pool process: billiard raises SystemExit with its number minus 256."""
    code = error.code if isinstance(error, SystemExit) else None
    return code + 256 if isinstance(code, int) and -256 < code < -128 else None


def _result(state: str, retval: Any) -> tuple[Status, int | None]:
    """The status and exit code for a task in ``state``. PENDING ends only the attempt."""
    if state == states.RETRY or (state == states.REJECTED and getattr(retval, "requeue", False)):
        return Status.PENDING, None
    if state in (states.FAILURE, states.REJECTED):
        return Status.FAILED, 1
    if state == states.REVOKED:
        return Status.CANCELED, None
    return Status.COMPLETED, 0


def _is_redelivered(request: Any) -> bool:
    return bool((request.delivery_info or {}).get("redelivered"))


def _is_of_task(record: logging.LogRecord) -> bool:
    is_ours = record.name.startswith(("celery.", "chronoverse.")) and not record.name.startswith(task_logger.name)
    is_new = not hasattr(record, "chronoverse_seen")
    record.chronoverse_seen = True
    return is_new and not is_ours


def _labels(task: Any) -> Labels:
    return read_labels({"task": task.name})


def _identifier(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]", "-", text).lstrip("._-")[:128] or "task"
