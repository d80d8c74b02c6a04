"""Implements Airflow's interface for remote task logs: :class:`RemoteTaskLogs`."""

import contextlib
import itertools
import logging
import threading
import time
from collections.abc import Callable, Generator, Iterator, Mapping, MutableMapping
from functools import partial
from os import PathLike, fspath
from typing import Any, Final

import orjson
from structlog import DropEvent

from chronoverse.auth.token_file import configured_token
from chronoverse.client.client import Client
from chronoverse.errors import ChronoverseError, JobNotFound
from chronoverse.integrations.airflow.records import lines_of_record, notice, records_of_lines
from chronoverse.integrations.airflow.tries import is_of_triggerer, try_of_path
from chronoverse.joblog.model import JobRef, Status
from chronoverse.runner.api import JobLog
from chronoverse.settings import Settings
from chronoverse.settings.parse import service_url

__all__ = ["RemoteTaskLogs"]

#: Maximum seconds that a task's first line waits for its log to open, and that a task's end waits for deliveries.
OPEN_SECONDS: Final = 1.0
DELIVER_SECONDS: Final = 15.0
#: For this many seconds after an outage, the process's next tasks wait only a second at their end.
AWAY_SECONDS: Final = 30.0
#: The field of ``plugin``'s record that has the task's :class:`Status`.
END_FIELD: Final = "chronoverse_end"

_logger: Final = logging.getLogger("chronoverse.integrations.airflow")


class _RunningTry:
    """A running try. ``end`` is how it ended, as far as known. ``log`` is None if the try is not published."""

    def __init__(self, log: JobLog | None, end: Status) -> None:
        self.log = log
        self.end = end
        self.exit_code: int | None = None
        self.is_over = threading.Event()


class RemoteTaskLogs:
    """The logs of all tasks, for Airflow's ``REMOTE_TASK_LOG``. Implements Airflow's ``RemoteLogStreamIO``.

    Airflow calls this class in the processes that supervise tasks, and in the API server. It connects, and starts
    threads, only with the first line, so that Airflow can fork before. Published records are not written to Airflow's
    log file, because Airflow would show them twice.
    """

    def __init__(
        self, url: str | None = None, token: str | Callable[[], str] | None = None, *, settings: Settings | None = None
    ) -> None:
        """``url`` is the service's URL; ``token`` is as for :meth:`chronoverse.api.JobLog.open`.

        Defaults: CHRONOVERSE_URL, and CHRONOVERSE_TOKEN or CHRONOVERSE_TOKEN_FILE. Raises ValueError for an invalid
        URL, and :class:`chronoverse.errors.SettingsError`.
        """
        self._settings = settings or Settings.from_env()
        self._url = service_url(url) if url else self._settings.service_url
        self._token = token or configured_token(self._settings)
        self._lock = threading.Lock()
        self._running: dict[str, _RunningTry] = {}
        self._away_until = 0.0

    @property
    def processors(self) -> tuple[Callable[..., MutableMapping[str, Any]], ...]:
        return (self._publish,)

    def _publish(self, logger: Any, _method: str, record: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
        """Publishes a record of a task's log file. Returns records that Airflow must write to the file.

        Raises :class:`DropEvent` for published records. Raises nothing else, because an error here would end the task.
        """
        file = getattr(logger, "_file", None)
        path = getattr(file, "name", None)
        name = _name_of(path) if isinstance(path, str) else None
        try:
            if name is None or not self._publish_as(name, file, record):
                return record
        except Exception:
            _logger.exception("a record of %s is not published", name)
            return record
        raise DropEvent

    def _publish_as(self, name: str, file: Any, record: Mapping[str, Any]) -> bool:
        with self._lock:
            running = self._running.get(name)
            if running is None:
                running = self._running[name] = self._begin(name)
                threading.Thread(target=self._watch, args=(name, file, running), daemon=True).start()
        if END_FIELD in record:
            running.end = Status(record[END_FIELD])
            running.exit_code = 0 if running.end is Status.COMPLETED else 1
            return True
        if running.log is None:
            return False
        if record.get("event") == "Process exited abnormally" and running.end is Status.LOST:
            running.end, running.exit_code = Status.FAILED, record.get("exit_code")
        stream, text, seconds = lines_of_record(record)
        running.log.write(stream, text, at=seconds)
        return True

    def _watch(self, name: str, file: Any, running: _RunningTry) -> None:
        """Ends the log if Airflow closes the file without an upload, which happens if it cannot start the task."""
        while not running.is_over.wait(2.0):
            if file.closed:
                self.upload(name)

    def upload(self, path: PathLike[str] | str, ti: Any = None) -> None:
        """Ends the log that replaces this file. Airflow calls it when the task's process has ended.

        Waits a few seconds for the delivery of its lines. If lines are left, a warning names the file with these lines.
        """
        with self._lock:
            running = self._running.pop(_name_of(fspath(path)) or "", None)
        if running is None:
            return
        running.is_over.set()
        if running.log is None:
            return
        end = partial(self._end, running.log, running.end, running.exit_code)
        if is_of_triggerer(fspath(path)):
            # The triggerer must not block, because it has other triggers to run.
            threading.Thread(target=end, name="chronoverse-end").start()
        else:
            end()

    def stream(self, relative_path: str, ti: Any) -> tuple[list[str], list[Generator[str, None, None]]]:
        """Returns the source of this file's log, and its records so far, as JSON."""
        task_try = try_of_path(relative_path)
        if task_try is None:
            return [], []
        job = task_try.job
        client = Client(self._url, self._token, ca_file=self._settings.ca_file, max_attempts=2)
        try:
            lines = _lines(client, job)
            first = next(lines, None)
        except ChronoverseError as error:
            client.close()
            return ([] if isinstance(error, JobNotFound) else [f"Chronoverse: {error}"]), []
        source = f"{self._url}/ui/workflows/{job.workflow_id}/jobs/{job.job_id}"
        return [source], [_records(client, job, itertools.chain([first] if first else [], lines))]

    def read(self, relative_path: str, ti: Any) -> tuple[list[str], list[str] | None]:
        """Like :meth:`stream`, but returns one text. Part of Airflow's interface, but not called by Airflow 3.3."""
        sources, streams = self.stream(relative_path, ti)
        return sources, ["\n".join(stream) for stream in streams] or None

    def _begin(self, name: str) -> _RunningTry:
        task_try = try_of_path(name)
        assert task_try is not None
        # A trigger waits for a deferred task. The task continues afterwards.
        end = Status.PENDING if is_of_triggerer(name) else Status.LOST
        begun = time.monotonic()
        is_patient = begun >= self._away_until
        try:
            # The job may have become LOST before Airflow ran the same try again.
            log = JobLog.open_try(
                self._url,
                task_try.job,
                self._settings,
                token=self._token,
                ca_file=self._settings.ca_file,
                open_seconds=OPEN_SECONDS if is_patient else 0,
                deliver_seconds=DELIVER_SECONDS if is_patient else 1,
                labels=dict(task_try.labels),
                say=partial(_logger.warning, "%s: %s", task_try.job),
            )
        except (ChronoverseError, ValueError, OSError) as error:
            _logger.warning("%s is not published: %s", task_try.job, error)
            return _RunningTry(None, end)
        if time.monotonic() - begun >= OPEN_SECONDS:
            self._away_until = time.monotonic() + AWAY_SECONDS
        return _RunningTry(log, end)

    def _end(self, log: JobLog, status: Status, exit_code: int | None) -> None:
        if not log.finish(status, exit_code):
            self._away_until = time.monotonic() + AWAY_SECONDS


def _name_of(path: str) -> str | None:
    """The part of a log file's path that begins with ``dag_id=``. None if it is not a task's log."""
    start = path.rfind("dag_id=")
    return path[start:] if start >= 0 and try_of_path(path) else None


def _lines(client: Client, job: JobRef) -> Iterator[dict[str, Any]]:
    rest = b""
    for part in client.download(job, format="jsonl"):
        *whole, rest = (rest + part).split(b"\n")
        yield from map(orjson.loads, whole)


def _records(client: Client, job: JobRef, lines: Iterator[dict[str, Any]]) -> Generator[str, None, None]:
    """Yields the records of ``lines``, then those of JOB.2, JOB.3, … if they exist. On an error, yields a message."""
    with contextlib.closing(client):
        try:
            for number in itertools.count(2):
                yield from records_of_lines(lines)
                lines = _lines(client, job._replace(job_id=f"{job.job_id}.{number}"))
        except JobNotFound:
            return
        except ChronoverseError as error:
            yield notice(f"The rest of the log could not be read: {error}")
