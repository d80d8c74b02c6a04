"""Routes for runners that cannot reach the store: open an attempt, append lines, end the job.

The store decides every answer except 429. Requests are idempotent: a runner can retry any whose answer was lost.
"""

import contextlib
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any, Final

from flask import Response, request
from werkzeug.exceptions import UnsupportedMediaType

from chronoverse import metrics
from chronoverse.errors import (
    AppendRefused,
    Fenced,
    NotALog,
    NotDurable,
    QuotaReached,
    StoreError,
    StoreRefused,
    StoreUnavailable,
    TooFast,
)
from chronoverse.joblog.comparing import compare_lines
from chronoverse.joblog.line_splitter import LineBatch, LineSplitter
from chronoverse.joblog.model import Attempt, JobRef, LineRun, Status, count_lines, iso_timestamp
from chronoverse.joblog.secret_forms import UNMASKED
from chronoverse.store import Store
from chronoverse.web.guards.event_loop import TimeSlice
from chronoverse.web.guards.rates import bytes_of
from chronoverse.web.http.bodies import SLICE_BYTES, load
from chronoverse.web.http.dependencies import Dependencies, principal
from chronoverse.web.http.paging import page_response, read_log
from chronoverse.web.http.publish_schemas import (
    MAX_RUN_LINES,
    TEXT_PARAMETERS,
    AttemptBody,
    AttemptSchema,
    CompareBody,
    ComparedSchema,
    EndBody,
    LinesBody,
    LostBody,
    NextSchema,
    TextForm,
    require_few_lines,
)
from chronoverse.web.http.schemas import JOB_ROUTE, SHARE_USED, Blueprint, JobSchema

_APPEND_REFUSED: Final = (
    "`reason` is GAP (`expected` is the next number), FENCED, CLOSED, DELETED or TAINTED; or"
    " `quota`: the log has all numbers below `expected`, and a `gap` names the lines dropped"
    " by the quota."
)


def blueprint(deps: Dependencies) -> Blueprint:
    routes = deps.blueprint("publish", "For runners.")
    bodies = deps.body_reader

    @routes.route(f"{JOB_ROUTE}/attempts", methods=["POST"])
    @routes.response(200, AttemptSchema, description="The runner holds the lease.")
    @routes.problem(409, "`reason` is HELD, CLOSED, DELETED, TAINTED, NOT_A_LOG, label-set or, with `first`, GAP.")
    @routes.takes_body(bodies, AttemptBody())
    def open_attempt(workflow_id: str, job_id: str, body: Mapping[str, Any]) -> Response:
        """Open a new attempt of a job."""
        with _count_answer("open"):
            opened = deps.store.open(JobRef(workflow_id, job_id), body["token"], body["first"], body["labels"])
        return page_response({"attempt": opened.attempt, "token": opened.token, "next": opened.next})

    @routes.route(f"{JOB_ROUTE}/logs", methods=["POST"])
    @routes.response(200, NextSchema, description="The log has all of these lines.")
    @routes.problem(409, _APPEND_REFUSED)
    @routes.problem(413, f"More than CHRONOVERSE_MAX_BODY_BYTES, as sent or as inflated, or {MAX_RUN_LINES} lines.")
    @routes.problem(415, "Not JSON or UTF-8 plain text, or a content encoding other than gzip.")
    @routes.takes_body(
        bodies,
        LinesBody(deps.settings.max_line_bytes),
        f"Publish rate exceeded; a body without lines is always accepted. Or: {SHARE_USED}",
        load_text=partial(_load_text, deps),
    )
    @routes.doc(parameters=TEXT_PARAMETERS)
    def append_lines(workflow_id: str, job_id: str, body: Mapping[str, Any]) -> Response:
        """Append lines, or renew the lease."""
        attempt = Attempt(JobRef(workflow_id, job_id), body["token"], body["attempt"], body["first"])
        runs = body["runs"]
        if not runs and body["safe"]:
            with _count_answer("confirm"):
                return page_response(_safe_below(deps.store.durability_probe(), attempt))
        if not runs:
            with _count_answer("renew"):
                deps.store.renew(attempt)
            return page_response({"next": None})
        with _count_answer("append"):
            deps.publish_throttle.check(principal().subject)
            lists = ((run.stream, run.partial, run.messages) for run in runs)
            deps.secret_forms.mask_lists(lists, TimeSlice().check)
            sizes = bytes_of(message for run in runs for message in run.messages)
            spend = partial(deps.publish_throttle.take, principal().subject, sizes)
            try:
                next_number = deps.store.append_runs(attempt, attempt.next, runs)
            except QuotaReached:
                spend()
                raise
        spend()
        metrics.LINES_APPENDED.inc(count_lines(runs))
        return page_response({"next": next_number})

    @routes.route(f"{JOB_ROUTE}/logs/lost", methods=["POST"])
    @routes.response(200, NextSchema, description="Readers get these numbers as a gap with this reason.")
    @routes.problem(409, _APPEND_REFUSED)
    @routes.takes_body(bodies, LostBody(), f"Publish rate exceeded. Or: {SHARE_USED}")
    def declare_lost(workflow_id: str, job_id: str, body: Mapping[str, Any]) -> Response:
        """Declare lines as lost, and continue the log after them."""
        first, last = body["first"], body["first"] + body["count"] - 1
        attempt = Attempt(JobRef(workflow_id, job_id), body["token"], body["attempt"], first)
        with _count_answer("lose"):
            deps.publish_throttle.check(principal().subject)
            next_number = deps.store.append_lost(attempt, first, last, body["reason"])
        # A range of any length needs as much of the store as an empty line.
        deps.publish_throttle.take(principal().subject, bytes_of([b""]))
        return page_response({"next": next_number})

    @routes.route(f"{JOB_ROUTE}/logs/compare", methods=["POST"])
    @routes.response(200, ComparedSchema, description="The first lines were compared, as many as one read returns.")
    @routes.takes_body(bodies, CompareBody())
    def compare_log(workflow_id: str, job_id: str, body: Mapping[str, Any]) -> Response:
        """Compare lines with the log by their hashes."""
        first, digests = body["first"], body["lines"]
        job = deps.store.require_job(JobRef(workflow_id, job_id))
        batches = read_log(deps, job, first - 1, limit=len(digests))
        compared = compare_lines((line for batch in batches for line in batch.lines), first, digests)
        return page_response({"next": compared.next_number, "differs": compared.differs})

    @routes.route(f"{JOB_ROUTE}/end", methods=["POST"])
    @routes.response(204, description="The end is safe, by the service's CHRONOVERSE_DURABILITY.")
    @routes.alt_response(200, schema=JobSchema, description="Without `token`: the ended job.")
    @routes.problem(
        409, "`reason` is GAP, FENCED or DELETED. Without `token`: DELETED, HELD (it has a runner) or CLOSED."
    )
    @routes.takes_body(bodies, EndBody())
    def end_job(workflow_id: str, job_id: str, body: Mapping[str, Any]) -> Response:
        """End a job or an attempt."""
        if body["token"] is None:
            return _end_unheld(deps, JobRef(workflow_id, job_id), Status(body["status"]), body["exit_code"])
        attempt = Attempt(JobRef(workflow_id, job_id), body["token"], body["attempt"], body["next"])
        status = Status(body["status"])
        with _count_answer("finish"):
            deps.store.finish(attempt, status, body["exit_code"], body["dropped"], body["next"], counts=body["counts"])
            # With PENDING, no lease is left to check, and the runner has already confirmed its lines.
            if status is not Status.PENDING:
                _require_safe_end(deps.store.durability_probe(), attempt)
        return Response(status=204)

    return routes


def _end_unheld(deps: Dependencies, ref: JobRef, status: Status, exit_code: int | None) -> Response:
    with _count_answer("finish"):
        job = deps.store.end(ref, status, exit_code)
        # Raises Fenced if a foreign runner had already ended the job. A foreign end does not have to be safe.
        with contextlib.suppress(Fenced):
            _require_safe_end(deps.store.durability_probe(), Attempt(ref, "", job.attempt, job.last + 1))
    return page_response(job.to_json())


def _load_text(deps: Dependencies, body: bytearray) -> dict[str, Any]:
    if request.mimetype_params.get("charset", "utf-8").lower() not in ("utf-8", "us-ascii"):
        raise UnsupportedMediaType("the text must be UTF-8")
    names = ("Chronoverse-Attempt", "Chronoverse-Token")
    headers = {name: request.headers[name] for name in names if name in request.headers}
    form = load({**request.args, **headers}, TextForm(), "query")
    require_few_lines(body.count(b"\n"))
    # Lines are masked later, because a secret that is cut here can only be found in the whole line.
    splitter = LineSplitter(form["stream"], deps.settings.max_line_bytes, UNMASKED)
    time_slice, timestamp, batches = TimeSlice(), iso_timestamp(deps.wall_clock()), list[LineBatch]()
    # Each part takes 0.1 ms.
    for start in range(0, len(body), SLICE_BYTES):
        time_slice.check()
        batches += splitter.feed(bytes(body[start : start + SLICE_BYTES]), timestamp)
    batches += splitter.close()
    require_few_lines(sum(batch.lines for batch in batches))
    runs = [LineRun(each.timestamp, each.stream, each.partial, each.messages()) for each in batches]
    return {**form, "runs": runs, "safe": False}


def _safe_below(probe: Store | None, attempt: Attempt) -> dict[str, Any]:
    """``next``: lines below it are safe; null if not confirmed in time. ``safe``: false if the store cannot tell."""
    with contextlib.suppress(NotDurable):
        if probe is not None:
            next_number = probe.confirm(attempt)
            return {"next": next_number, "safe": True} if next_number else {"next": None}
    return {"next": None, "safe": False}


def _require_safe_end(probe: Store | None, attempt: Attempt) -> None:
    """Raises :class:`StoreUnavailable` while the job's terminal entry could still be lost."""
    if probe is None:
        return
    with contextlib.suppress(NotDurable):
        next_number = probe.confirm(attempt, may_sync=True)
        if next_number is None or next_number <= attempt.next:
            raise StoreUnavailable("the job's end is not safe in the store yet")


@contextlib.contextmanager
def _count_answer(operation: str) -> Iterator[None]:
    """Counts the store's answer: OK, the ``reason`` of a 409, or the kind of failure."""
    answer = "ERROR"
    try:
        yield
        answer = "OK"
    except (AppendRefused, NotALog) as error:
        answer = error.reason or answer
        raise
    except StoreError as error:
        labels = {StoreUnavailable: "UNAVAILABLE", StoreRefused: "REFUSED", TooFast: "TOO_FAST"}
        answer = labels.get(type(error), answer)
        raise
    finally:
        metrics.PUBLISH_ANSWERS.labels(operation, answer).inc()
