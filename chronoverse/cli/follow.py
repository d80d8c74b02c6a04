"""``logs -f`` without a job: prints the lines of all running jobs of a workflow."""

import contextlib
import queue
import sys
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, Final

import click

from chronoverse.cli import common
from chronoverse.client.client import Client
from chronoverse.client.follower import JobChange, Notice, RedactedLines, UpToDate
from chronoverse.errors import ChronoverseError, JobNotFound
from chronoverse.joblog.model import Gap, JobRef, Line, Status
from chronoverse.joblog.terminal import LineRenderer, gap_notice, redaction_notice

#: Colors of jobs, as SGR parameters: all except black, white and grey.
_COLORS: Final = ("31", "32", "33", "34", "35", "36", "91", "92", "93", "94", "95", "96")
#: Maximum number of queued events. They are printed together. When the queue is full, the jobs' threads wait.
_MOST_EVENTS: Final = 2_000


class WorkflowPrinter:
    """Prints the events of many jobs, each line prefixed with its job. Messages go to stderr."""

    def __init__(self, output: str, renderer: LineRenderer) -> None:
        self._is_json = output != "text"
        self._renderer = renderer
        self._width = 0
        self._text: list[str] = []
        self._said = ""

    def show(self, job_id: str, event: Any) -> None:
        """Prints an event of :meth:`Client.follow`, a job as JSON, or why a job is no longer followed."""
        match event:
            case Line() if not self._is_json:
                # The next line may be another job's, so each part of a long line is printed on a line of its own.
                self._text.append(self._prefix(job_id) + self._renderer.render(event._replace(partial=False)))
            case Line():
                self._text.append(common.json_text({"id": job_id, **event.to_json()}) + "\n")
            case dict() if self._is_json:
                self._text.append(common.json_text(event) + "\n")
            case dict():
                code = f", exit code {event['exit_code']}" if event.get("exit_code") is not None else ""
                self._say(f"--- {event['status']}{code} ---", job_id)
            case Gap():
                self._say(gap_notice(event), job_id)
            case RedactedLines():
                self._say(redaction_notice(event.first, event.last), job_id)
            case Exception():
                self._say(f"--- {event} ---", job_id)
            case Notice() if event.reason != self._said:
                self._say(event.reason)

    def flush(self) -> None:
        sys.stdout.buffer.write("".join(self._text).encode("utf-8", "replace"))
        sys.stdout.buffer.flush()
        self._text.clear()

    def _say(self, text: str, job_id: str = "") -> None:
        self.flush()
        click.echo(self._prefix(job_id) + text, err=True) if job_id else common.print_message(text)
        self._said = "" if job_id else text

    def _prefix(self, job_id: str) -> str:
        self._width = max(self._width, min(len(job_id), 32))
        text, color = f"{job_id:<{self._width}} | ", _COLORS[zlib.crc32(job_id.encode()) % len(_COLORS)]
        return f"\x1b[{color}m{text}\x1b[0m" if self._renderer.colour else text


class WorkflowLogs:
    """Follows all jobs of a workflow with ``status``, one thread per job, and prints their lines."""

    def __init__(
        self, client: Client, workflow: str, status: str, label: list[str], printer: WorkflowPrinter, **start: Any
    ) -> None:
        self._client = client
        self._workflow = workflow
        self._status = status
        self._label = label
        self._printer = printer
        self._start = start
        self._queue: queue.Queue[tuple[str, Any]] = queue.Queue(_MOST_EVENTS)
        self._stop = threading.Event()
        self._followed: set[str] = set()
        self._seen: set[tuple[str, int]] = set()
        self._is_current = False
        self._asked_at = 0.0

    def run(self, until_idle: bool) -> None:
        """Prints until interrupted. With ``until_idle``, returns when no job runs."""
        wanted: dict[str, Any] = {"jobs": 1_000, "status": self._status, "label": self._label}
        self._spawn("", partial(self._client.follow_workflow, self._workflow, **wanted, stop=self._stop))
        try:
            while True:
                with contextlib.suppress(queue.Empty):
                    self._take(*self._queue.get(timeout=0.2))
                    for _ in range(_MOST_EVENTS):
                        self._take(*self._queue.get_nowait())
                self._printer.flush()
                if until_idle and self._is_current and not self._followed and self._queue.empty() and not self._runs():
                    return
        finally:
            self._stop.set()

    def _runs(self) -> bool:
        """Whether a job runs, even an unreported one. Asks the service once a second, and returns True in between."""
        if time.monotonic() < self._asked_at + 1.0:
            return True
        self._asked_at = time.monotonic()
        query = {"status": Status.RUNNING, "label": self._label, "limit": 1}
        return any(page["jobs"] for page in self._client.pages("/workflows/{}/jobs", self._workflow, **query))

    def _take(self, job_id: str, event: Any) -> None:
        """Takes an event of a job, or of the workflow (job id ""). A job's last event is None or an exception."""
        if isinstance(event, JobChange):
            self._follow(event)
        elif isinstance(event, UpToDate):
            self._is_current = True
        elif isinstance(event, Exception) and not job_id:
            raise event
        else:
            if event is None or isinstance(event, Exception):
                self._followed.discard(job_id)
            self._printer.show(job_id, event)

    def _follow(self, change: JobChange) -> None:
        key = change.job_id, change.job["attempt"]
        if change.status == "DELETED" or change.job_id in self._followed or key in self._seen:
            return
        self._followed.add(change.job_id)
        self._seen.add(key)
        self._printer.show(change.job_id, change.job)
        ref = JobRef(self._workflow, change.job_id)
        # A job that starts while we follow is printed from its first line.
        start = {**self._start, "tail": None} if self._is_current else self._start
        self._spawn(change.job_id, partial(self._client.follow, ref, stop=self._stop, **start))

    def _spawn(self, job_id: str, events: Callable[[], Iterator[Any]]) -> None:
        threading.Thread(target=self._collect, args=(job_id, events), daemon=True).start()

    def _collect(self, job_id: str, events: Callable[[], Iterator[Any]]) -> None:
        """The thread of a job, or of the workflow's stream: queues the events, then the end."""
        end: Exception | None = None
        try:
            for event in events():
                self._queue.put((job_id, event))
            if job_id and not self._stop.is_set():
                self._queue.put((job_id, self._client.job(JobRef(self._workflow, job_id))))
        except ChronoverseError as error:
            end = JobNotFound("the job was deleted") if job_id and isinstance(error, JobNotFound) else error
        self._queue.put((job_id, end))
