"""Makes the JSON of matching lines, with highlights and context lines."""

from dataclasses import dataclass
from typing import Any

import orjson

from chronoverse.history.pages import MAX_LINE_CHARACTERS, PageBudget, line_json
from chronoverse.history.tiered_log import BatchReader
from chronoverse.joblog.entries import Match
from chronoverse.joblog.matcher import MAX_SPANS, Matcher
from chronoverse.joblog.model import Job, Line


@dataclass(slots=True, eq=False)
class MatchEncoder:
    """Makes the JSON of a match: the line with highlights, and those context lines that are not yet on the page."""

    _read: BatchReader
    _job: Job
    _matcher: Matcher | None
    _stream: str | None
    _descending: bool
    #: How many context lines to show before and after a match, in the order of the page.
    _leading_count: int
    _following_count: int
    #: The page has all context up to this number.
    _complete_to: int | None = None
    #: Lines still allowed on the page: at first, about twenty matches with 50 lines of context on each side.
    _lines_left: int = 2_000

    def __call__(self, line: Line | Match, budget: PageBudget) -> dict[int, bytes] | None:
        """The JSON of a match and its context lines, keyed by number. None if they do not fit into the budget."""
        # The first match is always included, if necessary with fewer highlights or less context.
        is_first = budget.empty
        if isinstance(line, Match):
            json, has_all = b'%b,"highlights":%b}' % (line.json[:-1], orjson.dumps(line.spans[:MAX_SPANS])), True
        else:
            highlights, has_all = self._highlights(line.message, budget)
            json = line_json(line, **highlights)
        if not (has_all or is_first) or not budget.take(json):
            return None
        if self._following_count == self._leading_count == 0:
            self._lines_left -= 1
            return {line.sequence_num: json} if self._lines_left >= 0 else None
        is_context = self._complete_to is not None and self._steps(line.sequence_num) <= 0
        context, has_all = self._read_context(line.sequence_num, budget)
        self._lines_left -= len(context) + (not is_context)
        if self._lines_left < 0:
            return None
        if not has_all:
            if not is_first:
                return None
            budget.bytes_left = 0
        return {**context, line.sequence_num: json}

    def _steps(self, number: int) -> int:
        assert self._complete_to is not None
        return (self._complete_to - number) if self._descending else (number - self._complete_to)

    def _highlights(self, text: str, budget: PageBudget) -> tuple[dict[str, Any], bool]:
        """The matching spans of ``text``, and whether they are complete: time can run out."""
        if self._matcher is None:
            return {}, True
        found: set[tuple[int, int]] = set()
        has_all = True
        for span in self._matcher.spans(text):
            if span:
                found.add(span)
            if budget.is_out_of_time():
                has_all = False
                break
        return {"highlights": _visible_spans(found)}, has_all

    def _read_context(self, number: int, budget: PageBudget) -> tuple[dict[int, bytes], bool]:
        """The context lines of line ``number`` that are not yet on the page, and whether all of them fit.

        If not all fit, returns the nearest ones. Lines before the match (in page order) get at most half of the room.
        """
        step = -1 if self._descending else 1
        leading_count, start = self._leading_count, number
        if self._complete_to is not None:
            leading_count = min(leading_count, self._steps(number) - 1)
            start = max(number, self._complete_to, key=step.__mul__)
        stop = number + step * self._following_count
        context: dict[int, bytes] = {}
        has_all = self._add_lines(
            context, number, leading_count, budget, reserve=budget.bytes_left // 2, descending=not self._descending
        )
        has_all &= self._add_lines(context, start, abs(stop - start), budget, reserve=0, descending=self._descending)
        self._complete_to = stop
        return context, has_all

    def _add_lines(
        self, context: dict[int, bytes], start: int, count: int, budget: PageBudget, *, reserve: int, descending: bool
    ) -> bool:
        if count <= 0:
            return True
        for batch in self._read(self._job, start, descending=descending, limit=count):
            for line in batch.lines:
                if abs(line.sequence_num - start) > count:
                    return True
                if self._stream not in (None, line.stream):
                    continue
                highlights: dict[str, Any] = {} if self._matcher is None else {"highlights": []}
                json = line_json(line, **highlights, context=True)
                if len(json) >= budget.bytes_left - reserve or not budget.take(json):
                    return False
                context[line.sequence_num] = json
            if abs(batch.position - start) >= count:
                return True
        return True


def _visible_spans(found: set[tuple[int, int]]) -> list[tuple[int, int]]:
    """The first :data:`MAX_SPANS` spans that a page can show. Overlapping spans are merged."""
    joined: list[tuple[int, int]] = []
    for start, end in sorted(found):
        if joined and start < joined[-1][1]:
            joined[-1] = joined[-1][0], max(end, joined[-1][1])
        elif end <= MAX_LINE_CHARACTERS:
            joined.append((start, end))
    return joined[:MAX_SPANS]
