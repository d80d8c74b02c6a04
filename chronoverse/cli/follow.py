"""``logs -f`` without a job: prints the lines of all running jobs of a workflow."""

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
#: Maximum number of queued events, which are printed at once. When the queue is full, jobs wait.
_MOST_EVENTS: Final = 2_000

_Item = tuple[str, Any]


class WorkflowPrinter:
    """Prints the events of many jobs, each line prefixed with its job. Messages go to stderr."""

    def __init__(self, output: str, colour: bool, **printing: Any) -> None:
        self._is_json = output != "text"
        self._colored = colour
        self._printing = printing
        self._renderers: dict[str, LineRenderer] = {}
        self._width = 0
        self._text: list[str] = []
        self._said = ""

    def line(self, job_id: str, line: Line) -> None:
        if self._is_json:
            self._text.append(common.json_text({"id": job_id, **line.to_json()}) + "\n")
            return
        renderer = self._renderers.get(job_id)
        if renderer is None:
            renderer = self._renderers[job_id] = LineRenderer(colour=self._colored, **self._printing)
        # The next line may be another job's, so each part of a long line gets a line.
        self._text.append(self._prefix(job_id) + renderer.render(line._replace(partial=False)))

    def job(self, job: dict[str, Any]) -> None:
        if self._is_json:
            self._text.append(common.json_text(job) + "\n")
            return
        code = f", exit code {job['exit_code']}" if job.get("exit_code") is not None else ""
        self.message(f"{job['status']}{code}", job["id"])

    def message(self, text: str, job_id: str = "") -> None:
        self.flush()
        if job_id or text != self._said:
            click.echo(f"{self._prefix(job_id)}--- {text} ---", err=True) if job_id else common.print_message(text)
        self._said = "" if job_id else text

    def flush(self) -> None:
        sys.stdout.buffer.write("".join(self._text).encode("utf-8", "replace"))
        sys.stdout.buffer.flush()
        self._text.clear()

    def forget(self, job_id: str) -> None:
        self._renderers.pop(job_id, None)

    def _prefix(self, job_id: str) -> str:
        self._width = max(self._width, min(len(job_id), 32))
        text = f"{job_id:<{self._width}} | "
        return f"\x1b[{_COLORS[zlib.crc32(job_id.encode()) % len(_COLORS)]}m{text}\x1b[0m" if self._colored else text


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
        self._queue: queue.Queue[_Item] = queue.Queue(_MOST_EVENTS)
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
                for job_id, event in self._next_events():
                    if job_id:
                        self._print(job_id, event)
                    elif isinstance(event, Exception):
                        raise event
                    elif isinstance(event, JobChange):
                        self._follow(event)
                    elif isinstance(event, Notice):
                        self._printer.message(event.reason)
                    elif isinstance(event, UpToDate):
                        self._is_current = True
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

    def _next_events(self) -> Iterator[_Item]:
        try:
            yield self._queue.get(timeout=0.2)
        except queue.Empty:
            return
        for _ in range(min(self._queue.qsize(), _MOST_EVENTS)):
            yield self._queue.get_nowait()

    def _follow(self, change: JobChange) -> None:
        key = change.job_id, change.job["attempt"]
        if change.status == "DELETED" or change.job_id in self._followed or key in self._seen:
            return
        self._followed.add(change.job_id)
        self._seen.add(key)
        self._printer.job(change.job)
        ref = JobRef(self._workflow, change.job_id)
        # A job that starts while we follow is printed from its first line.
        start = {**self._start, "tail": None} if self._is_current else self._start
        self._spawn(change.job_id, partial(self._client.follow, ref, stop=self._stop, **start))

    def _print(self, job_id: str, event: Any) -> None:
        if isinstance(event, Line):
            self._printer.line(job_id, event)
        elif isinstance(event, Gap):
            self._printer.message(gap_notice(event).strip("- "), job_id)
        elif isinstance(event, RedactedLines):
            self._printer.message(redaction_notice(event.first, event.last).strip("- "), job_id)
        elif isinstance(event, Notice):
            self._printer.message(event.reason)
        elif isinstance(event, dict):
            self._printer.job(event)
        elif event is None or isinstance(event, Exception):
            self._followed.discard(job_id)
            self._printer.forget(job_id)
            if event is not None:
                self._printer.message(str(event), job_id)

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
        except JobNotFound:
            end = JobNotFound("the job was deleted") if job_id else None
        except ChronoverseError as error:
            end = error
        self._queue.put((job_id, end))
