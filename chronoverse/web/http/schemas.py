"""Parameters of requests and shapes of answers. Validation and the OpenAPI document are both made from these."""

from collections.abc import Callable, Mapping
from typing import Any, Final, TypeVar

from flask_smorest import Blueprint as SmorestBlueprint
from marshmallow import EXCLUDE, RAISE, Schema, ValidationError, fields, validate, validates_schema
from webargs.flaskparser import FlaskParser
from werkzeug.routing import BaseConverter
from werkzeug.routing import ValidationError as NoMatch

from chronoverse.joblog.events import EventName
from chronoverse.joblog.line_filter import MAX_CHARACTERS, matcher_of
from chronoverse.joblog.matcher import MAX_JOINED_PROGRAM, MAX_PROGRAM, MAX_QUERY, Matcher
from chronoverse.joblog.model import IDENTIFIER, MAX_NUMBER, Status, parse_number, read_time
from chronoverse.joblog.summary import DEFAULT_BYTES, MAX_BYTES, MIN_BYTES

#: Lines or jobs on one page, at most.
MAX_PAGE_LIMIT: Final = 1000
#: Seconds that a viewer may wait for a job that does not exist yet.
MAX_WAIT_SECONDS: Final = 300

STREAMS: Final = ("stdout", "stderr")
STATUSES: Final = tuple(status.value for status in Status)

#: How the OpenAPI document describes a page for which a log was looked through.
LOOKED_THROUGH: Final[dict[str, Any]] = {
    "description": "A page, perhaps an empty one; `Link` names the next. `Last-Event-ID` is how far it has looked.",
    "headers": {"Last-Event-ID": {"schema": {"type": "string", "pattern": "^[0-9]{1,15}$"}}},
}

_View = TypeVar("_View", bound=Callable[..., Any])


class IdentifierConverter(BaseConverter):
    """A workflow id or a job id in a path."""

    regex = IDENTIFIER.pattern

    def to_python(self, value: str) -> str:
        """``value`` itself. Raises werkzeug's ValidationError, which becomes 404, if it is no identifier."""
        if not IDENTIFIER.fullmatch(value):
            raise NoMatch
        return value


class RequestParser(FlaskParser):
    """webargs's parser. It answers 400 for any error, also for unknown query parameters."""

    DEFAULT_VALIDATION_STATUS = 400
    DEFAULT_UNKNOWN_BY_LOCATION: dict[str, str | None] = {"query": RAISE, "headers": EXCLUDE}  # noqa: RUF012 - webargs reads it from the class


class Blueprint(SmorestBlueprint):
    """flask-smorest's blueprint with our parser."""

    ARGUMENTS_PARSER = RequestParser()

    def problem(self, status: int, description: str | None = None) -> Callable[[_View], _View]:
        """Documents that the view may answer with a problem document of that ``status``."""
        content_type = "application/problem+json"
        document: Callable[[_View], _View] = self.alt_response(
            status, schema=ProblemSchema, content_type=content_type, description=description
        )
        return document


class QueryInteger(fields.Integer):
    """A whole number of 1 to 15 ASCII digits. ``int()`` would also take spaces, signs and other digits."""

    def __init__(self, minimum: int = 0, maximum: int = MAX_NUMBER, **kwargs: Any) -> None:
        super().__init__(strict=True, validate=validate.Range(minimum, maximum), **kwargs)

    def _deserialize(self, value: Any, attr: str | None, data: Mapping[str, Any] | None, **kwargs: Any) -> int:
        number = parse_number(value) if isinstance(value, str) else None
        if number is None:
            raise ValidationError("must be a whole number of at most 15 digits")
        return number


class Offset(fields.Field[int | str]):
    """``latest``, or the number of the line after which to start."""

    def _deserialize(self, value: Any, attr: str | None, data: Mapping[str, Any] | None, **kwargs: Any) -> int | str:
        number = parse_number(value)
        if number is None and value != "latest":
            raise ValidationError("must be a whole number of at most 15 digits, or latest")
        return value if number is None else number


def _cursor(max_characters: int = 512) -> fields.String:
    length = validate.Length(1, max_characters)
    return fields.String(validate=length, metadata={"description": "From the page before."})


def _limit(description: str) -> QueryInteger:
    return QueryInteger(1, MAX_PAGE_LIMIT, load_default=100, metadata={"description": description})


def _flag(description: str) -> fields.Boolean:
    return fields.Boolean(truthy={"true"}, falsy={"false"}, load_default=False, metadata={"description": description})


def _stream() -> fields.String:
    return fields.String(validate=validate.OneOf(STREAMS), metadata={"description": "Only the lines of this stream."})


class SearchText(fields.String):
    """What a search looks for. The schema checks it, because that depends on ``regex``: see :func:`check_regex`."""

    def __init__(self, **kwargs: Any) -> None:
        description = "What a line must contain, in any case of letters."
        super().__init__(validate=validate.Length(1, MAX_QUERY), metadata={"description": description}, **kwargs)


def check_regex(data: Mapping[str, Any], compile_query: Callable[..., Matcher] = Matcher) -> None:
    """Raises ValidationError when ``regex`` is true and ``compile_query`` does not take ``q``."""
    if data.get("regex") and "q" in data:
        try:
            compile_query(data["q"], regex=True)
        except ValueError as error:
            raise ValidationError(str(error), "q") from error


class SearchFields(Schema):
    """The parameters ``q`` and ``regex``. ``compile_query`` raises ValueError for what it does not take."""

    compile_query: Callable[..., Matcher] = staticmethod(Matcher)

    q = SearchText()
    regex = _flag(
        "`q` is a regular expression, in RE2's syntax. RE2 makes instructions of it: at most"
        f" {MAX_PROGRAM:,}. `\\p{{L}}` alone has 1,200."
    )

    @validates_schema
    def _check_regex(self, data: dict[str, Any], **kwargs: Any) -> None:
        check_regex(data, self.compile_query)


class StreamSearchFields(SearchFields):
    """The same, for a query that is compared with each new line. Its expressions are bounded more tightly."""

    compile_query = staticmethod(matcher_of)

    regex = _flag(
        "`q` is a regular expression, in RE2's syntax. RE2 makes instructions of it: at most"
        f" {MAX_JOINED_PROGRAM}, fewer than for a search, because each new line is compared with it at once. A line is"
        f" compared in its first {MAX_CHARACTERS:,} characters."
    )


class EventsQuery(StreamSearchFields):
    """The query of ``/events``."""

    offset = Offset(
        metadata={
            "type": ["integer", "string"],
            "description": "Start strictly after this line; 0 is the beginning, `latest` the live end.",
        }
    )
    tail = QueryInteger(
        metadata={
            "description": "Start with the last n lines. Not together with `offset`. With `stream` or `q`, those of"
            " them that are found within a second, in the last 200,000 lines."
        }
    )
    stream = _stream()
    wait = QueryInteger(
        maximum=MAX_WAIT_SECONDS,
        load_default=0,
        metadata={
            "description": "Seconds to wait for a job that does not exist yet, instead of 404. "
            "One that was deleted is not waited for."
        },
    )

    @validates_schema
    def _check_one_start(self, data: dict[str, Any], **kwargs: Any) -> None:
        if "offset" in data and "tail" in data:
            raise ValidationError("cannot be combined with offset", "tail")


def parse_last_event_id(value: str) -> int | None:
    """The number in a ``Last-Event-ID`` header. 0 if it is empty, and None if it is not a number."""
    return 0 if value == "" else parse_number(value)


class LastEventId(fields.String):
    """The ``Last-Event-ID`` header: a number, or empty for the beginning (a client that has received nothing yet)."""

    def _deserialize(self, value: Any, attr: str | None, data: Mapping[str, Any] | None, **kwargs: Any) -> Any:
        number = parse_last_event_id(value)
        if number is None:
            raise ValidationError("must be one whole number of at most 15 digits")
        return number


class EventsHeaders(Schema):
    """The headers of a request for ``/events``."""

    last_event_id = LastEventId(
        data_key="Last-Event-ID",
        metadata={
            "description": "The last number received; wins over `offset` and `tail`.",
            "pattern": "^[0-9]{0,15}$",
        },
    )


#: One event as its client sees it, for the OpenAPI document.
EVENT_SCHEMA: Final = {
    "type": "object",
    "properties": {
        "event": {"type": "string", "enum": [name.value for name in EventName]},
        "data": {"type": "string", "description": "JSON; of an `error`, one line of plain text."},
        "id": {"type": "string", "description": "The number to resume after.", "pattern": "^[0-9]{1,15}$"},
        "retry": {"type": "integer", "description": "Milliseconds to wait before coming back."},
    },
}


class LogsQuery(Schema):
    """The query of ``/logs``."""

    limit = _limit("Lines on the page, at most. A page has up to 4 MiB, and ends after a second of looking.")
    order = fields.String(load_default="asc", validate=validate.OneOf(("asc", "desc")))
    stream = _stream()
    cursor = _cursor()
    offset = QueryInteger(
        metadata={"description": "Start strictly after this line, in the order asked for. Not together with `cursor`."}
    )

    @validates_schema
    def _check_one_start(self, data: dict[str, Any], **kwargs: Any) -> None:
        if "offset" in data and "cursor" in data:
            raise ValidationError("cannot be combined with cursor", "offset")


class RawQuery(SearchFields):
    """The query of ``/logs/raw``."""

    format = fields.String(load_default="txt", validate=validate.OneOf(("txt", "json", "jsonl")))
    stream = _stream()
    control_sequences = _flag(
        "`txt` keeps colours and all other control sequences. Otherwise they are left out. JSON always has them."
    )


class Timestamp(fields.String):
    """An ISO 8601 time. It is loaded as the text that lines have."""

    def _deserialize(self, value: Any, attr: str | None, data: Mapping[str, Any] | None, **kwargs: Any) -> Any:
        timestamp = read_time(value)
        if timestamp is None:
            raise ValidationError("must be an ISO 8601 time, such as 2026-03-03T10:00:05Z")
        return timestamp


def _time(which: str) -> Timestamp:
    text = f"Only lines {which} this time: ISO 8601, in UTC where no zone is given. Lines without one do not count."
    return Timestamp(metadata={"description": text})


def _context(side: str) -> QueryInteger:
    return QueryInteger(
        maximum=50,
        load_default=0,
        metadata={
            "description": f"Also the lines that come up to so many numbers {side} each found one, marked by `context`."
            " The page then has fewer that were found. Around a single one that are the nearest that fit into 4 MiB."
        },
    )


class SearchQuery(LogsQuery, SearchFields):
    """The query of ``/logs/search``."""

    q = SearchText(required=True)
    since = _time("not before")
    until = _time("not after")
    before = _context("before")
    after = _context("after")


class NewLinesQuery(LogsQuery):
    """The query of ``/logs/new``."""

    against = fields.String(
        validate=validate.Regexp(rf"(?:{IDENTIFIER.pattern})\Z"),
        metadata={
            "description": "Compare with this job of the workflow. Otherwise with the newest 5 that have COMPLETED and"
            " were created before this one.",
            "pattern": f"^{IDENTIFIER.pattern}$",
        },
    )
    before = _context("before")
    after = _context("after")


class WorkflowSearchQuery(SearchFields):
    """The query of a workflow's ``/logs/search``."""

    q = SearchText(required=True)
    stream = _stream()
    status = fields.String(validate=validate.OneOf(STATUSES))
    since = Timestamp(metadata={"description": "Only jobs that started at this time or later."})
    until = Timestamp(metadata={"description": "Only jobs that started at this time or before."})
    before = _context("before")
    after = _context("after")
    per_job = QueryInteger(
        1, 100, load_default=5, metadata={"description": "Lines of a job; `more` says that it has others."}
    )
    limit = QueryInteger(1, 100, load_default=20, metadata={"description": "Jobs with a match on the page."})
    cursor = _cursor(768)


class JobsQuery(Schema):
    """The query of ``/jobs``."""

    status = fields.String(validate=validate.OneOf(STATUSES))
    cursor = _cursor()
    limit = _limit("Jobs on the page.")


def _next_cursor() -> fields.String:
    return fields.String(required=True, allow_none=True, metadata={"description": "Of the next page, or null."})


def _is_context() -> fields.Boolean:
    text = "True, where `before` or `after` was asked for, of a line beside those found."
    return fields.Boolean(metadata={"description": text})


class LineSchema(Schema):
    """A line."""

    timestamp = fields.String(required=True, metadata={"description": "ISO 8601, UTC, milliseconds."})
    message = fields.String(required=True)
    sequence_num = fields.Integer(required=True)
    stream = fields.String(required=True, validate=validate.OneOf(STREAMS))
    partial_ = fields.Boolean(
        data_key="partial", metadata={"description": "True when the line goes on in the stream's next one."}
    )
    truncated = fields.Boolean(
        metadata={
            "description": "True when `message` is only the first 1,048,576 characters of a line that a foreign runner"
            " wrote. `/events` and `/logs/raw` have all of it."
        }
    )


class LogsSchema(Schema):
    """One page of a log."""

    workflow_id = fields.String(required=True)
    id = fields.String(required=True)
    logs = fields.List(fields.Nested(LineSchema), required=True)
    cursor = _next_cursor()


class ComparedLineSchema(LineSchema):
    """A new line, or a line of context beside one."""

    context = _is_context()


class NewLinesSchema(LogsSchema):
    """One page of new lines."""

    logs = fields.List(fields.Nested(ComparedLineSchema), required=True)
    compared_with = fields.List(
        fields.String(),
        required=True,
        metadata={"description": "The ids of the jobs that the log is compared with, the newest first."},
    )


class FoundSchema(LineSchema):
    """A match, or a line of context beside one."""

    highlights = fields.List(
        fields.List(fields.Integer(), validate=validate.Length(equal=2)),
        required=True,
        metadata={
            "description": "[start, end) of each place in `message`, in characters, in order and without overlaps: the"
            " first 1,000, and no more than are found in a second. The text is also searched without its control"
            " sequences; a place then includes those inside it."
        },
    )
    context = _is_context()


class SearchSchema(LogsSchema):
    """One page of matches."""

    logs = fields.List(fields.Nested(FoundSchema), required=True)


class FoundJobSchema(Schema):
    """A job in which lines match."""

    id = fields.String(required=True)
    status = fields.String(required=True)
    created_at = fields.String(required=True, allow_none=True)
    logs = fields.List(fields.Nested(FoundSchema), required=True)
    more = fields.Boolean(
        required=True,
        metadata={
            "description": "True when the job has other lines that match, or may have some: the page ended within it,"
            " and the next one goes on in it."
        },
    )
    error = fields.String(metadata={"description": "Why this job could not be searched any further."})


class WorkflowSearchSchema(Schema):
    """One page of jobs with matches, the newest first."""

    workflow_id = fields.String(required=True)
    jobs = fields.List(fields.Nested(FoundJobSchema), required=True)
    cursor = _next_cursor()


class JobSchema(Schema):
    """A job."""

    workflow_id = fields.String(required=True)
    id = fields.String(required=True)
    status = fields.String(required=True, validate=validate.OneOf(STATUSES))
    attempt = fields.Integer(required=True)
    created_at = fields.String(required=True, allow_none=True)
    started_at = fields.String(required=True, allow_none=True)
    finished_at = fields.String(required=True, allow_none=True)
    exit_code = fields.Integer(required=True, allow_none=True)
    lines = fields.Integer(required=True)
    dropped = fields.Integer(required=True)
    first_sequence_num = fields.Integer(required=True)
    last_sequence_num = fields.Integer(required=True)


class JobsSchema(Schema):
    """One page of a workflow's jobs, newest first."""

    workflow_id = fields.String(required=True)
    jobs = fields.List(fields.Nested(JobSchema), required=True)
    cursor = _next_cursor()


class SummaryQuery(Schema):
    """The query of ``/summary``."""

    max_bytes = QueryInteger(
        MIN_BYTES,
        MAX_BYTES,
        data_key="bytes",
        load_default=DEFAULT_BYTES,
        metadata={"description": "Bytes of the answer, at most."},
    )


class SummaryLineSchema(LineSchema):
    """A line of a summary. A message that is cut off is marked by ``truncated``."""

    repeated = fields.Integer(metadata={"description": "How many lines of this shape there are, if more than one."})


class SummaryLinesSchema(Schema):
    """Lines of one kind."""

    count = fields.Integer(
        required=True,
        allow_none=True,
        metadata={"description": "How many there are in all. Null as long as not all lines were looked at."},
    )
    first = fields.List(fields.Nested(SummaryLineSchema), required=True)


class CauseSchema(Schema):
    """The adjacent lines at which the log of a failed or lost job is to be opened."""

    first = fields.Integer(data_key="from", required=True)
    last = fields.Integer(data_key="to", required=True)
    line = fields.Nested(SummaryLineSchema, required=True, metadata={"description": "The most telling one."})
    kind = fields.String(
        required=True,
        validate=validate.OneOf(("error", "new", "last")),
        metadata={"description": "Whether they hold an error, are new, or are just the last lines."},
    )


class SummarySchema(Schema):
    """A job's summary."""

    job = fields.Nested(JobSchema, required=True)
    compared_with = fields.List(
        fields.String(),
        required=True,
        allow_none=True,
        metadata={"description": "The jobs whose lines are not new. Null when there are none to compare with."},
    )
    new = fields.Nested(SummaryLinesSchema, required=True)
    errors = fields.Nested(SummaryLinesSchema, required=True)
    last = fields.List(fields.Nested(SummaryLineSchema), required=True)
    cause = fields.Nested(CauseSchema, required=True, allow_none=True)
    complete = fields.Boolean(
        required=True,
        metadata={"description": "False as long as not all lines were looked at. The same request then goes on."},
    )
    scanned_to = fields.Integer(
        required=True,
        metadata={"description": "The lines from this number to the last one were looked at."},
    )
    truncated = fields.Boolean(
        required=True, metadata={"description": "True when new lines or errors are left out, or were not looked for."}
    )


class WaitQuery(StreamSearchFields):
    """The query of ``/wait``."""

    stream = _stream()
    offset = QueryInteger(metadata={"description": "Only a line after this one; by default any."})
    limit = QueryInteger(
        1,
        MAX_PAGE_LIMIT,
        metadata={
            "description": "The answer also has `logs`: the first line that matches, and up to so many in all that are"
            " there already, within 252 KiB and a quarter of a second. Without it there is only `log`."
        },
    )
    timeout = QueryInteger(
        maximum=MAX_WAIT_SECONDS, load_default=30, metadata={"description": "Seconds after which to answer anyway."}
    )


class GapSchema(Schema):
    """Lines that cannot be had any more."""

    from_ = fields.Integer(data_key="from", required=True)
    to = fields.Integer(required=True)
    reason = fields.String(required=True)


class WaitSchema(Schema):
    """What came first."""

    outcome = fields.String(required=True, validate=validate.OneOf(("matched", "ended", "timeout")))
    log = fields.Nested(LineSchema, required=True, allow_none=True)
    logs = fields.List(
        fields.Nested(LineSchema), metadata={"description": "With `limit`: `log`, and lines after it that match."}
    )
    cursor = fields.Integer(
        required=True, metadata={"description": "How far it has looked: the `offset` of the next request."}
    )
    job = fields.Nested(JobSchema, required=True)
    gaps = fields.List(
        fields.Nested(GapSchema), metadata={"description": "Lines that could not be looked at: the first 100 gaps."}
    )
    more_gaps = fields.Integer(metadata={"description": "How many gaps came after these."})


class WorkflowsQuery(Schema):
    """The query of ``/workflows``."""

    status = fields.String(
        validate=validate.OneOf(STATUSES), metadata={"description": "Only workflows whose newest job has it."}
    )
    cursor = _cursor()
    limit = _limit("Workflows on the page.")


class WorkflowSchema(Schema):
    """A workflow. Counts are null while the server that has its jobs does not answer."""

    id = fields.String(required=True)
    jobs = fields.Integer(required=True, allow_none=True, metadata={"description": "How many jobs it has."})
    running = fields.Integer(required=True, allow_none=True, metadata={"description": "How many of them run."})
    last_job_at = fields.String(
        required=True, allow_none=True, metadata={"description": "When its newest job was created: ISO 8601, UTC."}
    )
    last_job = fields.String(required=True, allow_none=True, metadata={"description": "The id of its newest job."})
    last_status = fields.String(required=True, allow_none=True, validate=validate.OneOf(STATUSES))
    recent = fields.List(
        fields.String(validate=validate.OneOf(STATUSES)),
        required=True,
        metadata={"description": "The statuses of its newest jobs, ten at most, the newest first."},
    )


class WorkflowsSchema(Schema):
    """One page of workflows, the one with the newest job first."""

    workflows = fields.List(fields.Nested(WorkflowSchema), required=True)
    cursor = _next_cursor()


class StatusSchema(Schema):
    """The answer of a health check."""

    status = fields.String(required=True)
    warning = fields.String(metadata={"description": "What does not work although the node can serve."})


class ProblemSchema(Schema):
    """A problem document (RFC 9457)."""

    type = fields.String(required=True)
    title = fields.String(required=True)
    status = fields.Integer(required=True)
    detail = fields.String(required=True)
    errors = fields.List(fields.Dict(keys=fields.String(), values=fields.String()))
    reason = fields.String(metadata={"description": "Of a 409, in a word for programs: GAP, FENCED, HELD, …"})
    expected = fields.Integer(metadata={"description": "Of a GAP: the number that the log goes on with."})
    request_id = fields.String(metadata={"description": "As in X-Request-ID. Not in a 404, which tells nothing."})
