"""What ``/logs/search`` may be asked, and what it answers."""

from collections.abc import Mapping
from typing import Any, Final

from marshmallow import ValidationError, fields, validate

from chronoverse.joblog.time_range import read_time
from chronoverse.web.http.schemas import LineSchema, LogsQuery, LogsSchema, Number, Query, SearchFields

#: Lines of context on each side of a line that was found, and of a whole page with context: about two of the largest.
MAX_CONTEXT_LINES: Final = 50
MAX_CONTEXT_PAGE_LINES: Final = 2000


class Timestamp(fields.String):
    """A moment, which is handed on as we spell times."""

    def _deserialize(self, value: Any, attr: str | None, data: Mapping[str, Any] | None, **kwargs: Any) -> Any:
        time = read_time(value)
        if time is None:
            raise ValidationError("must be an ISO 8601 time, such as 2026-03-03T10:00:05Z")
        return time


def _time(which: str) -> Timestamp:
    about = f"Only lines {which} this time: ISO 8601, in UTC where no zone is given. Lines without one do not count."
    return Timestamp(metadata={"description": about})


def _context(side: str) -> Number:
    return Number(
        most=MAX_CONTEXT_LINES,
        load_default=0,
        metadata={
            "description": f"Also the lines that come up to so many numbers {side} each found one, marked by `context`."
            " The page then has fewer that were found. Around a single one that are the nearest that fit into 4 MiB."
        },
    )


class SearchQuery(LogsQuery, SearchFields):
    """What ``/logs/search`` may be asked."""

    q = Query(required=True)
    since = _time("not before")
    until = _time("not after")
    before = _context("before")
    after = _context("after")


class FoundSchema(LineSchema):
    """A line that was found."""

    highlights = fields.List(
        fields.List(fields.Integer(), validate=validate.Length(equal=2)),
        required=True,
        metadata={
            "description": "[start, end) of each place in `message`, in characters: the first 1,000, and no more than"
            " are found in a second."
        },
    )
    context = fields.Boolean(
        metadata={"description": "True, where `before` or `after` was asked for, of a line beside those found."}
    )


class SearchSchema(LogsSchema):
    """One page of what was found."""

    logs = fields.List(fields.Nested(FoundSchema), required=True)
