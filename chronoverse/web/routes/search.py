"""``GET …/logs/search``: the lines that match, in pages, each with the spans that match.

A page may be short or empty and still have a next one, because a request looks through a bounded part of the log. Its
``Last-Event-ID`` is how far it has come, so that a reader of a running job can go on from there later.
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

#: Seconds for which a thread looks for spans in one line, before other requests may use the thread.
HEAVY_SLICE_SECONDS: Final = 0.05


def blueprint(deps: Dependencies) -> Blueprint:
    """The search route."""
    routes = Blueprint("search", __name__, description="Searching.")
    deps.guard(routes)
    # A request costs two milliseconds even before it looks at a line, so it waits for an idle slot four times on its
    # way. This comes after ``guard``: a client without a token must not use up the slots.
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
        time_range, context = TimeRange(query.get("since"), query.get("until")), (query["before"], query["after"])
        digest = hashlib.sha256(q.encode()).hexdigest()[:16]
        listing = ("search", workflow_id, job_id, order, stream, regex, digest, *time_range)
        job = deps.require_job(ref)
        descending = order == "desc"

        def predicate(line: Line) -> bool:
            return stream in (None, line.stream) and time_range.has(line.timestamp)

        position = start_position(query, listing, job, descending=descending)
        max_matches = min(limit, max(1, MAX_CONTEXT_PAGE_LINES // (1 + sum(context)))) if any(context) else limit
        encoder = _MatchEncoder(deps, job, matcher, context, stream, descending=descending)
        # The budget is held until the answer is made, because the page is in memory and idle slots may come late.
        with pages.open_page(deps, ref, limit) as budget:
            page = pages.read_page(
                deps,
                job,
                position,
                max_matches,
                budget,
                descending=descending,
                predicate=predicate,
                search=pages.Search(matcher, time_range),
                encode=encoder,
            )
            cursor = encode_cursor(listing, [page.position]) if page.has_more else None
            deps.wait_for_idle_slot()
            lines = page.to_json(descending=descending)
            body = {"workflow_id": workflow_id, "id": job_id, "logs": lines, "cursor": cursor}
            parameters = {name: query.get(name) or None for name in ("stream", "since", "until", "before", "after")}
            parameters |= {"q": q, "regex": "true" if regex else None, "limit": limit, "order": order}
            response = page_response(body, cursor, page.position, **parameters)
            deps.wait_for_idle_slot()
            return response

    return routes


class _MatchEncoder:
    """Makes the JSON of a match: the line with its highlights, and the lines of context that are not on the page yet.

    ``context`` are the numbers of lines before and after it. Of those, only lines of ``stream`` count, if it is given.
    """

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
        #: Lines of context on the side where the page comes from, and on the side where it goes on.
        self._back_count, self._forward_count = context[::-1] if descending else context
        #: Up to this number the page has all context.
        self._complete_to: int | None = None

    def __call__(self, line: Line, budget: PageBudget) -> dict[int, bytes] | None:
        """See :data:`chronoverse.web.http.pages.LineEncoder`."""
        # The first match is on the page in any case, if need be with fewer highlights or less context.
        is_first = budget.empty
        spans, has_all = self._find_spans(line.message, budget)
        json = pages.line_json(line, highlights=spans)
        if not (has_all or is_first) or not budget.take(json):
            return None
        context, has_all = self._read_context(line.sequence_num, budget)
        if not has_all:
            if not is_first:
                return None
            budget.use_up()
        return {**context, line.sequence_num: json}

    def _find_spans(self, text: str, budget: PageBudget) -> tuple[list[tuple[int, int]], bool]:
        """The spans of ``text`` that match, and whether these are all. The budget's time may be over before."""
        found: set[tuple[int, int]] = set()
        is_heavy = self._matcher.is_heavy(len(text))
        seconds = HEAVY_SLICE_SECONDS if is_heavy else SEARCH_SLICE_SECONDS
        work = partial(_collect_spans, self._matcher.spans(text), found, self._deps.monotonic, seconds)
        while not (self._deps.run_heavy(work) if is_heavy else work()):
            self._time_slice.check()
            if budget.is_used_up():
                return _visible_spans(found), False
        return _visible_spans(found), True

    def _read_context(self, number: int, budget: PageBudget) -> tuple[dict[int, bytes], bool]:
        """The context of line ``number`` that is not on the page yet, and whether there was room for all of it.

        Otherwise these are the nearest lines. Those on the side where the page comes from get half of the room at most.
        """
        step = -1 if self._descending else 1
        back_count, start = self._back_count, number
        if self._complete_to is not None:
            back_count = min(back_count, step * (number - self._complete_to) - 1)
            start = max(number, self._complete_to, key=step.__mul__)
        stop = number + step * self._forward_count
        context: dict[int, bytes] = {}
        has_all = self._add_lines(
            context, number, back_count, budget, reserve=budget.bytes_left // 2, descending=not self._descending
        )
        has_all &= self._add_lines(context, start, abs(stop - start), budget, reserve=0, descending=self._descending)
        self._complete_to = stop
        return context, has_all

    def _add_lines(
        self, context: dict[int, bytes], start: int, count: int, budget: PageBudget, *, reserve: int, descending: bool
    ) -> bool:
        """Adds the lines with the next ``count`` numbers after ``start``.

        False when less than ``reserve`` bytes are left.
        """
        if count <= 0:
            return True
        for batch in pages.read_batches(self._deps, self._job, start, descending=descending, limit=count):
            for line in batch.lines:
                if abs(line.sequence_num - start) > count:
                    return True
                self._time_slice.check()
                if self._stream not in (None, line.stream):
                    continue
                json = pages.line_json(line, highlights=[], context=True)
                if len(json) >= budget.bytes_left - reserve or not budget.take(json):
                    return False
                context[line.sequence_num] = json
            if abs(batch.position - start) >= count:
                return True
        return True


def _visible_spans(found: set[tuple[int, int]]) -> list[tuple[int, int]]:
    """The first :data:`MAX_SPANS` of these, in order, without those beyond what a page shows of a line."""
    return [span for span in sorted(found)[:MAX_SPANS] if span[1] <= MAX_LINE_CHARACTERS]


def _collect_spans(
    spans: Iterator[tuple[int, int] | None], found: set[tuple[int, int]], clock: Callable[[], float], seconds: float
) -> bool:
    """Adds ``spans`` to ``found`` for ``seconds``. Returns whether these were all."""
    deadline = clock() + seconds
    for span in spans:
        if span:
            found.add(span)
        if clock() > deadline:
            return False
    return True
