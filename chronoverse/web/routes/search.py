"""``GET …/logs/search``: the lines that say something, in pages, each with the places where it says it.

A page may be short, or empty, and still have a next one: a request looks through so much and no more. How far it has
come is in its ``Last-Event-ID``, so that a reader of a running job can go on from there when there is more.
"""

import hashlib
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, Final

from flask import Response

from chronoverse.joblog.matcher import MAX_SPANS, Matcher
from chronoverse.joblog.time_range import TimeRange
from chronoverse.joblog.values import Job, JobRef, Line
from chronoverse.web.http import pages
from chronoverse.web.http.dependencies import Dependencies
from chronoverse.web.http.event_loop import SEARCH_SLICE_SECONDS
from chronoverse.web.http.page_budget import MAX_LINE_CHARACTERS, PageBudget
from chronoverse.web.http.paging import encode_cursor, page_response, start_position
from chronoverse.web.http.schemas import MAX_CONTEXT_PAGE_LINES, Blueprint, ProblemSchema, SearchQuery, SearchSchema

#: Seconds for which a thread looks for the places in one line, before other requests that need one have a turn.
HEAVY_SLICE_SECONDS: Final = 0.05


def blueprint(deps: Dependencies) -> Blueprint:
    """The search route."""
    routes = Blueprint("search", __name__, description="Searching.")
    deps.guard(routes)
    # A request by itself is two milliseconds, without a line looked at: it stands back four times on its way. Who may
    # not search does not keep the moments for that from who may.
    routes.before_request(deps.wait_for_idle_slot)

    @routes.route("/workflows/<id:workflow_id>/jobs/<id:job_id>/logs/search")
    @routes.doc(operationId="searchJobLog")
    @routes.arguments(SearchQuery, location="query", as_kwargs=True)
    @routes.response(
        200,
        SearchSchema,
        description="A page, perhaps an empty one; `Link` names the next. `Last-Event-ID` is how far it has looked.",
        headers={"Last-Event-ID": {"schema": {"type": "string", "pattern": "^[0-9]{1,15}$"}}},
    )
    @routes.alt_response(404, schema=ProblemSchema, content_type="application/problem+json")
    def search(workflow_id: str, job_id: str, q: str, regex: bool, limit: int, order: str, **query: Any) -> Response:
        """The lines that match, in pages."""
        deps.wait_for_idle_slot()
        ref, stream, matcher = JobRef(workflow_id, job_id), query.get("stream"), Matcher(q, regex=regex)
        period, context = TimeRange(query.get("since"), query.get("until")), (query["before"], query["after"])
        digest = hashlib.sha256(q.encode()).hexdigest()[:16]
        listing = ("search", workflow_id, job_id, order, stream, regex, digest, *period)
        job = deps.require_job(ref)
        descending = order == "desc"

        def wanted(line: Line) -> bool:
            return stream in (None, line.stream) and period.has(line.timestamp)

        place = start_position(query, listing, job, descending=descending)
        most = min(limit, max(1, MAX_CONTEXT_PAGE_LINES // (1 + sum(context)))) if any(context) else limit
        spell = _MatchEncoder(deps, job, matcher, context, stream, descending=descending)
        # The budget counts the page until it is an answer: the moments for which it stands back may be long.
        with pages.page_budget(deps, ref, limit) as budget:
            found = pages.read_page(
                deps,
                job,
                place,
                most,
                budget,
                descending=descending,
                predicate=wanted,
                search=pages.Search(matcher, period),
                encode=spell,
            )
            cursor = encode_cursor(listing, [found.position]) if found.has_more else None
            deps.wait_for_idle_slot()
            lines = found.to_json(descending=descending)
            body = {"workflow_id": workflow_id, "id": job_id, "logs": lines, "cursor": cursor}
            asked = {name: query.get(name) or None for name in ("stream", "since", "until", "before", "after")}
            asked |= {"q": q, "regex": "true" if regex else None, "limit": limit, "order": order}
            response = page_response(body, cursor, found.position, **asked)
            deps.wait_for_idle_slot()
            return response

    return routes


class _MatchEncoder:
    """Spells a match as JSON: the line with its highlights, and up to so many lines before and after it."""

    def __init__(
        self,
        deps: Dependencies,
        job: Job,
        matcher: Matcher,
        context: tuple[int, int],
        stream: str | None,
        *,
        descending: bool,
    ) -> None:
        self._deps = deps
        self._job = job
        self._matcher = matcher
        self._stream = stream
        self._descending = descending
        self._time_slice = deps.search_slice()
        #: Lines on the side that the page comes from, and on the side where it goes on.
        self._behind, self._ahead = context[::-1] if descending else context
        #: The last number up to which all context is on the page.
        self._reached: int | None = None

    def __call__(self, line: Line, budget: PageBudget) -> dict[int, bytes] | None:
        """See :data:`chronoverse.web.http.pages.Spell`."""
        first = budget.empty
        places, whole = self._find_spans(line.message, budget)
        json = pages.line_json(line, highlights=places)
        if not (whole or first) or not budget.take(json):
            return None
        near, whole = self._read_context(line.sequence_num, budget)
        if whole:
            return {**near, line.sequence_num: json}
        if not first:
            return None
        budget.use_up()
        return {**near, line.sequence_num: json}

    def _find_spans(self, text: str, budget: PageBudget) -> tuple[list[tuple[int, int]], bool]:
        """Where it matches, and whether these are all that are to be told: the time may be over before."""
        found: set[tuple[int, int]] = set()
        heavy = self._matcher.is_heavy(len(text))
        seconds = HEAVY_SLICE_SECONDS if heavy else SEARCH_SLICE_SECONDS
        work = partial(_collect_spans, self._matcher.spans(text), found, self._deps.monotonic, seconds)
        while not (self._deps.run_heavy(work) if heavy else work()):
            self._time_slice.check()
            if budget.is_used_up():
                return _visible_spans(found), False
        return _visible_spans(found), True

    def _read_context(self, number: int, budget: PageBudget) -> tuple[dict[int, bytes], bool]:
        """The lines beside line ``number`` that are not on the page yet, and whether there was room for all of them.

        Otherwise they are those that are nearest.
        """
        ahead = -1 if self._descending else 1
        behind, start = self._behind, number
        if self._reached is not None:
            behind = min(behind, ahead * (number - self._reached) - 1)
            start = max(number, self._reached, key=ahead.__mul__)
        stop = number + ahead * self._ahead
        near: dict[int, bytes] = {}
        whole = self._add_lines(
            near, number, behind, budget, reserve=budget.bytes_left // 2, descending=not self._descending
        )
        whole &= self._add_lines(near, start, abs(stop - start), budget, reserve=0, descending=self._descending)
        self._reached = stop
        return near, whole

    def _add_lines(
        self, near: dict[int, bytes], start: int, count: int, budget: PageBudget, *, reserve: int, descending: bool
    ) -> bool:
        """Adds lines up to ``count`` numbers from ``start``; False when fewer than ``reserve`` bytes would be left."""
        if count <= 0:
            return True
        for batch in pages.batches(self._deps, self._job, start, descending=descending, limit=count):
            for line in batch.lines:
                if abs(line.sequence_num - start) > count:
                    return True
                self._time_slice.check()
                if self._stream not in (None, line.stream):
                    continue
                json = pages.line_json(line, highlights=[], context=True)
                if len(json) >= budget.bytes_left - reserve or not budget.take(json):
                    return False
                near[line.sequence_num] = json
            if abs(batch.place - start) >= count:
                return True
        return True


def _visible_spans(found: set[tuple[int, int]]) -> list[tuple[int, int]]:
    """The first of these places, in order, as far as they are in what a page shows of a line."""
    return [place for place in sorted(found)[:MAX_SPANS] if place[1] <= MAX_LINE_CHARACTERS]


def _collect_spans(
    places: Iterator[tuple[int, int] | None], found: set[tuple[int, int]], clock: Callable[[], float], seconds: float
) -> bool:
    """Adds ``places`` to ``found`` for so many ``seconds``. Returns whether that was all."""
    until = clock() + seconds
    for place in places:
        if place:
            found.add(place)
        if clock() > until:
            return False
    return True
