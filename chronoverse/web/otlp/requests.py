"""Handles requests with OpenTelemetry log records, as OTLP/HTTP specifies."""

import hashlib
from collections.abc import Callable, Mapping
from typing import Any

import orjson
from flask import Response, request
from werkzeug.exceptions import BadRequest

from chronoverse import metrics
from chronoverse.auth.rights import WRITE
from chronoverse.errors import AppendRefused, ChronoverseError, Forbidden, JobNotFound, NotALog, RecordsMissing, TooFast
from chronoverse.joblog.model import JobRef
from chronoverse.web.guards.connection import has_left
from chronoverse.web.guards.event_loop import TimeSlice
from chronoverse.web.guards.rates import bytes_of
from chronoverse.web.http.dependencies import Dependencies, principal
from chronoverse.web.otlp import decoding
from chronoverse.web.otlp.records import JobRecords, RecordSorter


def handle(deps: Dependencies) -> Response:
    """Appends the records of the current request. After an exception, the sender retries the whole request.

    After appending the other jobs' records, raises :class:`RecordsMissing` if records wait for earlier ones, or
    :class:`TooFast` if the subject cannot start more jobs. Raises :class:`TooFast` at once if the subject publishes too
    fast. Also raises :class:`StoreError` and errors of :meth:`BodyReader.read`. Stops when the client disconnects.
    """
    subject, settings = principal().subject, deps.settings
    deps.publish_throttle.check(subject)
    time_slice = TimeSlice()

    def pause() -> None:
        if time_slice.check() and has_left(request.environ):
            raise BadRequest("the client disconnected")

    sorter = RecordSorter(
        settings.otlp_workflow_attributes,
        settings.otlp_job_attributes,
        settings.max_line_bytes,
        deps.secret_forms,
        pause,
    )
    # The body counts against its limit until the lines are appended, because they take about as much memory.
    with deps.body_reader.read(request, subject, decoding.PROTOBUF, decoding.JSON) as body:
        digest = hashlib.sha256(body).hexdigest()[:32]
        for resource, found in decoding.decode(body, request.mimetype, sorter.wanted, pause):
            sorter.add(resource, found)
        waits: list[ChronoverseError] = []
        for job, records in sorter.jobs.items():
            try:
                _append(deps, job, records, digest, sorter, pause)
            except (RecordsMissing, TooFast) as error:
                waits.append(error)
    if waits:
        raise waits[0]
    refused = sorter.refused
    # Reports only five reasons, in 2,000 characters, because a client can cause thousands.
    message = "; ".join(f"{reason} ({count})" for reason, count in refused.most_common(5))[:2_000]
    answer = decoding.encode_answer(request.mimetype, refused.total(), message)
    return Response(answer, content_type=request.mimetype)


def _append(
    deps: Dependencies, job: JobRef, records: JobRecords, digest: str, sorter: RecordSorter, pause: Callable[[], None]
) -> None:
    """Appends one job's records, and counts refused ones.

    Raises :class:`RecordsMissing` if records wait for earlier ones, and :class:`TooFast` if the job may not begin yet.
    """
    subject = principal().subject
    refused, left = sorter.refused, records.count()
    if not left:
        return  # each record names another job than its resource

    def on_new() -> None:
        deps.new_job_throttle.check(subject)
        deps.new_job_throttle.take(subject, [1])

    try:
        principal().require(WRITE, job.workflow_id)
        for count, batch in records.batches(digest, pause):
            appended = deps.store.records.append(job, batch, deps.settings.otlp_idle_seconds, on_new)
            metrics.PUBLISH_ANSWERS.labels("records", "WAIT" if appended.waits else "OK").inc()
            if appended.waits:
                raise RecordsMissing(f"earlier records of {job} are missing; try again")
            if appended.left_out:
                refused[f"{job}: byte quota exceeded"] += min(count, appended.left_out)
            left -= count
            metrics.LINES_APPENDED.inc(sum(len(run.messages) for run in batch.runs) - appended.left_out)
            deps.publish_throttle.take(subject, bytes_of(message for run in batch.runs for message in run.messages))
            pause()
    except (Forbidden, JobNotFound):
        refused[f"{job}: the token may not write to this workflow"] += left
    except (AppendRefused, NotALog) as error:
        metrics.PUBLISH_ANSWERS.labels("records", error.reason or "ERROR").inc()
        refused[f"{job}: {error}"] += left


def refusal(response: Response) -> Response:
    """The answer to a request that failed as a whole, with the text of the problem document ``response``."""
    mimetype = request.mimetype if request.mimetype == decoding.JSON else decoding.PROTOBUF
    document: Mapping[str, Any] = orjson.loads(response.get_data())
    response.set_data(decoding.encode_status(mimetype, str(document.get("detail") or document["title"])))
    response.content_type = mimetype
    return response
