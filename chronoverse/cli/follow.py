"""``logs -f`` without a job: prints the lines of all running jobs of a workflow."""

import queue
import sys
import threading
import zlib
from collections.abc import Iterable, Iterator
from typing import Any, Final

import click

from chronoverse.cli import common
from chronoverse.client.client import Client
from chronoverse.client.follower import JobChange, Notice, RedactedLines, UpToDate
from chronoverse.errors import ChronoverseError, JobNotFound
from chronoverse.joblog.model import Gap, JobRef, Line, Status
from chronoverse.joblog.terminal import LineRenderer, gap_notice, plain_text, redaction_notice

#: Colors of jobs, as SGR parameters: all except black, white and grey.
_COLORS: Final = ("31", "32", "33", "34", "35", "36", "91", "92", "93", "94", "95", "96")


def follow_jobs(
    client: Client, workflow: str, status: str, label: list[str], *, until_idle: bool, **start: Any
) -> Iterator[tuple[str, Any]]:
    """Follows the jobs of a workflow that have ``status``, one thread per job. Yields events with their job's id.

    For each job, yields the job as JSON unless it has ended, the events of :meth:`Client.follow`, then the job or the
    error that ended it. Notices about the workflow's stream have the id "". With ``until_idle``, ends when no job runs.
    """
    # The jobs' threads wait while the queue is full.
    events: queue.Queue[tuple[str, Any]] = queue.Queue(2_000)
    stop, is_current = threading.Event(), False
    followed, seen = set[str](), set[tuple[str, int]]()

    def collect(job_id: str, following: Iterator[Any]) -> None:
        """Queues the events of a job, or of the workflow (id ""), then None or the error that ended them."""
        end: Exception | None = None
        try:
            for event in following:
                events.put((job_id, event))
            if job_id and not stop.is_set():
                events.put((job_id, client.job(JobRef(workflow, job_id))))
        except ChronoverseError as error:
            end = JobNotFound("the job was deleted") if job_id and isinstance(error, JobNotFound) else error
        events.put((job_id, end))

    def spawn(job_id: str, following: Iterator[Any]) -> None:
        threading.Thread(target=collect, args=(job_id, following), daemon=True).start()

    def runs() -> bool:
        """Whether any job still runs, including jobs not reported yet."""
        pages = client.pages("/workflows/{}/jobs", workflow, status=Status.RUNNING, label=label, limit=1)
        return any(page["jobs"] for page in pages)

    spawn("", client.follow_workflow(workflow, jobs=1_000, status=status, label=label, stop=stop))
    try:
        while True:
            try:
                job_id, event = events.get(timeout=1.0)
            except queue.Empty:
                job_id, event = "", None
            if isinstance(event, JobChange):
                key = event.job_id, event.job["attempt"]
                if event.status != "DELETED" and event.job_id not in followed and key not in seen:
                    followed.add(event.job_id)
                    seen.add(key)
                    if not Status(event.status).terminal:
                        yield event.job_id, event.job
                    # ``tail`` does not apply to jobs that start later: these are printed from their first line.
                    own = {**start, "tail": None} if is_current else start
                    spawn(event.job_id, client.follow(JobRef(workflow, event.job_id), stop=stop, **own))
            elif isinstance(event, UpToDate):
                is_current = True
            elif isinstance(event, Exception) and not job_id:
                raise event
            else:
                if event is None or isinstance(event, Exception):
                    followed.discard(job_id)
                yield job_id, event
            if until_idle and is_current and not followed and events.empty() and not runs():
                return
    finally:
        stop.set()


def print_jobs(events: Iterable[tuple[str, Any]], renderer: LineRenderer, output: str) -> None:
    """Prints the output of :func:`follow_jobs`, each line prefixed with its job. Messages go to stderr."""
    width, said = 0, ""
    for job_id, event in events:
        width = max(width, min(len(job_id), 32))
        prefix, color = f"{plain_text(job_id):<{width}} | ", _COLORS[zlib.crc32(job_id.encode()) % len(_COLORS)]
        prefix = f"\x1b[{color}m{prefix}\x1b[0m" if renderer.colour else prefix
        text = notice = ""
        match event:
            case Line() | dict() if output != "text":
                text = common.json_text(event if isinstance(event, dict) else {"id": job_id, **event.to_json()}) + "\n"
            case Line():
                # The next line may be from another job, so each part of a long line is printed as a separate line.
                text = prefix + renderer.render(event._replace(partial=False))
            case Notice(reason) if reason != said:
                said = reason
                common.print_message(reason)
            case Gap():
                notice = gap_notice(event)
            case RedactedLines(first, last):
                notice = redaction_notice(first, last)
            case Exception():
                notice = f"--- {event} ---"
            case dict():
                code = event.get("exit_code")
                notice = f"--- {event['status']}{'' if code is None else f', exit code {code}'} ---"
        if notice:
            said = ""
            click.echo(prefix + plain_text(notice), err=True)
        sys.stdout.buffer.write(text.encode("utf-8", "replace"))
        sys.stdout.buffer.flush()
