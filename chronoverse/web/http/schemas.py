"""Request parameters and answers, for validation and the OpenAPI document."""

from collections.abc import Callable, Collection, Iterable, Mapping
from functools import partial, wraps
from typing import Any, Final, TypeVar

from flask import g, request
from flask_smorest import Blueprint as SmorestBlueprint
from marshmallow import EXCLUDE, RAISE, Schema, ValidationError, fields, validate, validates_schema
from webargs.flaskparser import FlaskParser
from werkzeug.routing import BaseConverter

from chronoverse.history.scans.comparison import LABELLED_JOBS
from chronoverse.joblog.events import EventName
from chronoverse.joblog.labels import MAX_LABELS, parse_choice, parse_label
from chronoverse.joblog.line_filter import MAX_CHARACTERS, matcher_of
from chronoverse.joblog.matcher import MAX_JOINED_PROGRAM, MAX_PROGRAM, MAX_QUERY, Matcher
from chronoverse.joblog.model import IDENTIFIER, MAX_NUMBER, STREAMS, Status, parse_number, read_time
from chronoverse.joblog.summary import DEFAULT_BYTES, MAX_BYTES, MIN_BYTES
from chronoverse.web.http.bodies import BodyReader, load_body

_MAX_PAGE_LIMIT: Final = 1000
#: Maximum seconds that a viewer can wait for a job that does not exist yet.
MAX_WAIT_SECONDS: Final = 300

STATUSES: Final = tuple(status.value for status in Status)

SHARE_USED: Final = "The token's request bodies have used its share of memory."

_View = TypeVar("_View", bound=Callable[..., Any])
_Field = TypeVar("_Field", bound=fields.Field[Any])
Members = Mapping[str, fields.Field[Any]]


SETTINGS_ROUTE: Final = "/workflows/<id:workflow_id>/settings"
#: A job's path, and the start of the paths of its other routes.
JOB_ROUTE: Final = "/workflows/<id:workflow_id>/jobs/<id:job_id>"


class IdentifierConverter(BaseConverter):
    regex = IDENTIFIER.pattern


class NumberConverter(BaseConverter):
    regex = "[0-9]{1,15}"


class RequestParser(FlaskParser):
    """webargs's parser. Answers 400 for any error, including unknown query parameters."""

    DEFAULT_VALIDATION_STATUS = 400
    DEFAULT_UNKNOWN_BY_LOCATION: dict[str, str | None] = {"query": RAISE, "headers": EXCLUDE}  # noqa: RUF012 - webargs reads it from the class


class Blueprint(SmorestBlueprint):
    ARGUMENTS_PARSER = RequestParser()

    def route(self, rule: str, **options: Any) -> Callable[[_View], _View]:
        """Registers a view. Its name in camel case is the ``operationId`` in OpenAPI."""
        register = super().route(rule, **options)

        def decorate(view: _View) -> _View:
            first, *others = view.__name__.split("_")
            documented: _View = register(self.doc(operationId=first + "".join(map(str.title, others)))(view))
            return documented

        return decorate

    def problem(self, status: int, description: str | None = None) -> Callable[[_View], _View]:
        document: Callable[[_View], _View] = self.alt_response(status, schema=ProblemSchema, description=description)
        return document

    def takes_body(
        self,
        reader: BodyReader,
        schema: Schema,
        refused: str = SHARE_USED,
        *,
        required: bool = True,
        load_text: Callable[[bytearray], Any] | None = None,
    ) -> Callable[[_View], _View]:
        """Passes the request's ``body``, loaded by ``schema``, to the view. Documents the body and the answer 429.

        If not ``required``, a missing body is treated as an empty object. ``load_text`` loads bodies of plain text;
        without it, they are refused.
        """

        content: dict[str, Any] = {"application/json": {"schema": schema}}
        if load_text:
            content["text/plain"] = {"schema": {"type": "string"}}

        def decorate(view: _View) -> _View:
            @wraps(view)
            def with_body(**arguments: Any) -> Any:
                if not required and not request.content_length and "Transfer-Encoding" not in request.headers:
                    return view(body=schema.load({}), **arguments)
                with reader.read(request, g.principal.subject, *content) as sent:
                    if load_text and request.mimetype == "text/plain":
                        return view(body=load_text(sent), **arguments)
                    return view(body=load_body(sent, schema), **arguments)

            documented: _View = self.doc(
                requestBody={
                    "required": required,
                    "description": "Can be sent with `Content-Encoding: gzip`.",
                    "content": content,
                }
            )(self.problem(429, refused)(with_body))
            return documented

        return decorate


def described(kind: Callable[..., _Field], description: str = "", **options: Any) -> _Field:
    """A field of this ``kind``, with a description for OpenAPI."""
    return kind(metadata={"description": description} if description else {}, **options)


text: Final = partial(described, fields.String)
integer: Final = partial(described, fields.Integer)
boolean: Final = partial(described, fields.Boolean)
seconds: Final = partial(described, fields.Float)


def one_of(values: Collection[str], description: str = "", **options: Any) -> fields.String:
    return text(description, validate=validate.OneOf(values), **options)


def matching(pattern: str, description: str = "", error: str | None = None, **options: Any) -> fields.String:
    # marshmallow formats the error, so braces are doubled.
    error = error or "must match " + pattern.replace("{", "{{").replace("}", "}}")
    validator = validate.Regexp(rf"(?:{pattern})\Z", error=error)
    documented = {"description": description} if description else {}
    return fields.String(validate=validator, metadata={**documented, "pattern": f"^{pattern}$"}, **options)


class QueryInteger(fields.Integer):
    """An integer of 1 to 15 ASCII digits. ``int()`` would also accept spaces, signs and other digits."""

    def __init__(self, description: str, minimum: int = 0, maximum: int = MAX_NUMBER, **options: Any) -> None:
        metadata = {"description": description}
        super().__init__(strict=True, validate=validate.Range(minimum, maximum), metadata=metadata, **options)

    def _deserialize(self, value: Any, attr: str | None, data: Mapping[str, Any] | None, **kwargs: Any) -> int:
        number = parse_number(value)
        if number is None:
            raise ValidationError("must be an integer of at most 15 digits")
        return number


class ParsedText(fields.String):
    """A string for ``parse``, which raises ValueError, or returns None if the text is not ``must_be``."""

    def __init__(self, parse: Callable[[str], Any], must_be: str = "", **options: Any) -> None:
        super().__init__(**options)
        self._parse = parse
        self._must_be = must_be

    def _deserialize(self, value: Any, attr: str | None, data: Mapping[str, Any] | None, **kwargs: Any) -> Any:
        try:
            parsed = self._parse(value)
        except ValueError as error:
            raise ValidationError(str(error)) from error
        if parsed is None:
            raise ValidationError(f"must be {self._must_be}")
        return parsed


def _labels(description: str) -> fields.List[Any]:
    """Labels written as KEY=VALUE, loaded as pairs."""
    item = ParsedText(parse_label, metadata={"examples": ["branch=main"]})
    return described(partial(fields.List, item), description, validate=validate.Length(max=MAX_LABELS))


def _against_labels() -> fields.List[Any]:
    """Labels of the good runs to compare with. ``*`` is loaded as an empty pair, which matches any labels."""
    field = _labels(
        "Compare with good runs that have this label, KEY=VALUE. Repeatable; all must match. Searches the"
        f" {LABELLED_JOBS:,} jobs before this one. `*` is all good runs. Default: those of the job's `branch` if three"
        " are good; else those of `main` or `master`; else all."
    )
    field.inner = ParsedText(parse_choice, metadata={"examples": ["branch=main", "*"]})
    return field


def _limit(description: str) -> QueryInteger:
    return QueryInteger(description, 1, _MAX_PAGE_LIMIT, load_default=100)


def _flag(description: str) -> fields.Boolean:
    return boolean(description, truthy={"true"}, falsy={"false"}, load_default=False)


def _time(description: str) -> ParsedText:
    """An ISO 8601 time. Loaded as a string in the format of line timestamps."""
    parse = partial(ParsedText, read_time, "an ISO 8601 time, such as 2026-03-03T10:00:05Z")
    return described(parse, description)


def _line_time(which: str) -> ParsedText:
    return _time(f"Only lines {which} this time (ISO 8601, UTC by default).")


def _context(side: str) -> QueryInteger:
    return QueryInteger(f"Also return up to n lines {side} each match, with `context`.", maximum=50, load_default=0)


_BEFORE: Final = _context("before")
_AFTER: Final = _context("after")
_STREAM: Final = one_of(STREAMS, "Lines of this stream.")
_PAGE_CURSOR: Final = text("From the previous page.", validate=validate.Length(1, 768))  # with up to three ids
_search_text: Final = partial(
    text, "Text that a line contains, case-insensitive.", validate=validate.Length(1, MAX_QUERY)
)


_WITH_LABEL: Final = "Jobs with this label, KEY=VALUE. Repeatable; all must match."


def exclusive(name: str, other: str) -> Callable[..., None]:
    """A check that ``name`` and ``other`` are not both given."""

    @validates_schema
    def check(self: Schema, data: dict[str, Any], **kwargs: Any) -> None:
        if name in data and other in data:
            raise ValidationError(f"cannot be combined with {other}", name)

    return check


class SearchFields(Schema):
    """The parameters ``q`` and ``regex``. ``compile_query`` raises ValueError for an unusable query."""

    compile_query: Callable[..., Matcher] = staticmethod(Matcher)

    q = _search_text()
    regex = _flag(f"`q` is an RE2 regular expression of at most {MAX_PROGRAM:,} instructions.")

    @validates_schema
    def _check_regex(self, data: dict[str, Any], **kwargs: Any) -> None:
        if data.get("regex") and "q" in data:
            try:
                self.compile_query(data["q"], regex=True)
            except ValueError as error:
                raise ValidationError(str(error), "q") from error


class StreamSearchFields(SearchFields):
    """:class:`SearchFields` for streams. Each new line is matched, so regular expressions have a lower limit."""

    compile_query = staticmethod(matcher_of)

    regex = _flag(
        f"`q` is an RE2 regular expression of at most {MAX_JOINED_PROGRAM} instructions, fewer than a search, for the"
        f" first {MAX_CHARACTERS:,} characters of each line."
    )


class EventsQuery(StreamSearchFields):
    offset = ParsedText(
        lambda value: value if value == "latest" else parse_number(value),
        "an integer of at most 15 digits, or latest",
        metadata={
            "type": ["integer", "string"],
            "description": "Start strictly after this line; 0 is the beginning, `latest` the live end.",
        },
    )
    tail = QueryInteger("Start with the last n lines (filtered: found in 1 s). Cannot be combined with `offset`.")
    stream = _STREAM
    wait = QueryInteger("Seconds to wait for a job that does not exist yet.", maximum=MAX_WAIT_SECONDS, load_default=0)
    one_start = exclusive("tail", "offset")


def parse_last_event_id(value: str) -> int | None:
    """The number in a ``Last-Event-ID`` header; None if invalid; 0 if empty: the client has received nothing."""
    return 0 if value == "" else parse_number(value)


class EventsHeaders(Schema):
    last_event_id = ParsedText(
        parse_last_event_id,
        "one integer of at most 15 digits",
        data_key="Last-Event-ID",
        metadata={
            "description": "Last number received; takes precedence over `offset` and `tail`.",
            "pattern": "^[0-9]{0,15}$",
        },
    )


class LogsQuery(Schema):
    limit = _limit("Maximum lines per page. A page also ends after 4 MiB or one second.")
    order = one_of(("asc", "desc"), load_default="asc")
    stream = _STREAM
    cursor = _PAGE_CURSOR
    offset = QueryInteger("Start strictly after this line, in the requested order. Cannot be combined with `cursor`.")
    one_start = exclusive("offset", "cursor")


class RawQuery(SearchFields):
    format = one_of(("txt", "json", "jsonl"), load_default="txt")
    stream = _STREAM
    control_sequences = _flag("Keep control sequences in `txt`. JSON always has them.")


class SearchQuery(LogsQuery, SearchFields):
    q = _search_text(required=True)
    since = _line_time("not before")
    until = _line_time("not after")
    before = _BEFORE
    after = _AFTER


class NewLinesQuery(LogsQuery):
    against = matching(IDENTIFIER.pattern, "Compare with this job. Default: the newest 5 good jobs before it.")
    against_label = _against_labels()
    before = _BEFORE
    after = _AFTER
    one_choice = exclusive("against_label", "against")


class WorkflowSearchQuery(SearchFields):
    q = _search_text(required=True)
    stream = _STREAM
    status = one_of(STATUSES)
    label = _labels(_WITH_LABEL)
    since = _time("Jobs started since this time.")
    until = _time("Jobs started until this time.")
    before = _BEFORE
    after = _AFTER
    per_job = QueryInteger("Maximum lines of a job; `more` is true if it has others.", 1, 100, load_default=5)
    limit = QueryInteger("Maximum jobs with a match on the page.", 1, 100, load_default=20)
    cursor = _PAGE_CURSOR


class JobsQuery(Schema):
    status = one_of(STATUSES)
    label = _labels(_WITH_LABEL)
    cursor = _PAGE_CURSOR
    limit = _limit("Maximum jobs on the page.")


class WorkflowEventsQuery(Schema):
    jobs = QueryInteger("Begin with the newest n jobs that are found within 2 s.", maximum=1_000, load_default=100)
    status = one_of(STATUSES, "Jobs with this status. Changes to another status are not sent.")
    label = _labels(_WITH_LABEL)


class WorkflowsQuery(Schema):
    status = one_of(STATUSES, "Workflows whose newest job has this status.")
    cursor = _PAGE_CURSOR
    limit = _limit("Maximum workflows on the page.")


class AuditQuery(Schema):
    since = _time("Actions since this time.")
    until = _time("Actions until this time.")
    cursor = _PAGE_CURSOR
    limit = _limit("Maximum entries on the page.")


class SummaryQuery(Schema):
    max_bytes = QueryInteger(
        "Maximum size of the answer in bytes.", MIN_BYTES, MAX_BYTES, data_key="bytes", load_default=DEFAULT_BYTES
    )
    against_label = _against_labels()


class ProfileQuery(Schema):
    against_label = _against_labels()


class HistoryQuery(Schema):
    jobs = QueryInteger("Number of ended jobs to scan, up to this one.", 1, 1_000, load_default=200)
    label = _labels(_WITH_LABEL)
    cursor = _PAGE_CURSOR


class WaitQuery(StreamSearchFields):
    stream = _STREAM
    offset = QueryInteger("Only lines after this one. Default: all.")
    limit = QueryInteger("Also return `logs`: up to n matching lines that already exist.", 1, _MAX_PAGE_LIMIT)
    timeout = QueryInteger("Timeout in seconds.", maximum=MAX_WAIT_SECONDS, load_default=30)


def answer(name: str, members: Members, optional: Members | None = None) -> type[Schema]:
    """The shape of an answer, for OpenAPI only. ``members`` are always present; ``optional`` members can be missing."""
    for member in members.values():
        member.required = True
    return Schema.from_dict({**members, **(optional or {})}, name=name)


def nested(shape: type[Schema], description: str = "", **options: Any) -> fields.Nested:
    return described(partial(fields.Nested, shape), description, **options)


nullable: Final = partial(nested, allow_none=True)


def list_of(item: type[Schema] | fields.Field[Any], description: str = "", **options: Any) -> fields.List[Any]:
    field = item if isinstance(item, fields.Field) else nested(item)
    return described(partial(fields.List, field), description, **options)


def event_schema(names: Iterable[EventName]) -> dict[str, Any]:
    """The OpenAPI schema of an event stream with these events."""
    return {
        "type": "object",
        "properties": {
            "event": {"type": "string", "enum": [name.value for name in names]},
            "data": {"type": "string", "description": "JSON; for `error`, one line of plain text."},
            "id": {"type": "string", "description": "Number to resume after.", "pattern": "^[0-9]{1,15}$"},
            "retry": {"type": "integer", "description": "Milliseconds to wait before reconnecting."},
        },
    }


EVENT_SCHEMA: Final = event_schema(name for name in EventName if name is not EventName.RESET)
WORKFLOW_EVENT_SCHEMA: Final = event_schema([EventName.CONNECTED, EventName.RESET, EventName.JOB, EventName.ERROR])

_LINE: Final[Members] = {
    "timestamp": text("ISO 8601, UTC, milliseconds."),
    "message": text(),
    "sequence_num": integer(),
    "stream": one_of(STREAMS),
}
_LINE_MARKS: Final[Members] = {
    "partial": boolean("True if the next line of the stream continues this one."),
    "truncated": boolean("True if `message` is only the first 1,048,576 characters. `/logs/raw` has all of it."),
}
_CONTEXT: Final[Members] = {"context": boolean("True for context lines.")}
_HIGHLIGHTS: Final = fields.List(
    fields.List(fields.Integer(), validate=validate.Length(equal=2)),
    metadata={"description": "[start, end) of each match in `message`, in characters: the first 1,000 found in 1 s."},
)
_CURSOR: Final[Members] = {"cursor": text("Cursor of the next page, or null.", allow_none=True)}
IDS: Final[Members] = {"workflow_id": text(), "id": text()}

LineSchema: Final = answer("Line", _LINE, _LINE_MARKS)
ComparedLineSchema: Final = answer("ComparedLine", _LINE, {**_LINE_MARKS, **_CONTEXT})
FoundSchema: Final = answer("Found", {**_LINE, "highlights": _HIGHLIGHTS}, {**_LINE_MARKS, **_CONTEXT})
LogsSchema: Final = answer("Logs", {**IDS, "logs": list_of(LineSchema), **_CURSOR})
NewLinesSchema: Final = answer(
    "NewLines",
    {**IDS, "logs": list_of(ComparedLineSchema), "compared_with": list_of(text(), "Ids of jobs."), **_CURSOR},
)
SearchSchema: Final = answer("Search", {**IDS, "logs": list_of(FoundSchema), **_CURSOR})
_FOUND_JOB: Final[dict[str, fields.Field[Any]]] = {
    "id": text(),
    "status": text(),
    "created_at": text(allow_none=True),
    "logs": list_of(FoundSchema),
    "more": boolean("True if the job may have more matching lines."),
}
_WHY_STOPPED: Final = {"error": text("Why the search of this job stopped.")}
WorkflowSearchSchema: Final = answer(
    "WorkflowSearch", {"workflow_id": text(), "jobs": list_of(answer("FoundJob", _FOUND_JOB, _WHY_STOPPED)), **_CURSOR}
)
WorkflowsSearchSchema: Final = answer(
    "WorkflowsSearch",
    {"jobs": list_of(answer("FoundJobOfWorkflow", {"workflow_id": text(), **_FOUND_JOB}, _WHY_STOPPED)), **_CURSOR},
)
JobSchema: Final = answer(
    "Job",
    {
        **IDS,
        "status": one_of(STATUSES),
        "attempt": integer(),
        "created_at": text(allow_none=True),
        "started_at": text(allow_none=True),
        "finished_at": text(allow_none=True),
        "exit_code": integer(allow_none=True),
        "lines": integer(),
        "dropped": integer(),
        "first_sequence_num": integer(),
        "last_sequence_num": integer(),
        "labels": fields.Dict(text(), text(), metadata={"description": "The job's labels."}),
    },
)
JobsSchema: Final = answer("Jobs", {"workflow_id": text(), "jobs": list_of(JobSchema), **_CURSOR})
#: Numbers of ended jobs, by status.
_ENDS: Final[Members] = {name: integer() for name in ("COMPLETED", "FAILED", "CANCELED", "LOST")}
LookedAtSchema: Final = answer(
    "LookedAt",
    {**_ENDS, "without_shapes": integer("Jobs that could not be scanned because their set of shapes is missing.")},
)
SeenSchema: Final = answer(
    "Seen",
    {
        "COMPLETED": integer(),
        "FAILED": integer(),
        "first_started_at": text("When the first of these jobs started.", allow_none=True),
        "first_id": text("Id of the first of these jobs.", allow_none=True),
        "first_sequence_num": integer("Its first line with this shape; null if unknown.", allow_none=True),
        "looked_at": integer("Number of scanned jobs."),
    },
    {
        "CANCELED": integer("If any."),
        "LOST": integer("If any."),
        "without_shapes": integer("Jobs that could not be scanned, if any. `verdict` can then be null."),
    },
)
SummaryLineSchema: Final = answer(
    "SummaryLine",
    _LINE,
    {
        **_LINE_MARKS,
        "repeated": integer("Number of lines of this shape, if more than one."),
        "seen": nested(SeenSchema, "The jobs with this shape, among the newest 200 ended ones, this one included."),
    },
)
SummaryLinesSchema: Final = answer(
    "SummaryLines",
    {
        "count": integer("Total number. Null while not all lines are scanned.", allow_none=True),
        "first": list_of(SummaryLineSchema),
    },
)
#: The adjacent lines at which a failed or lost job's log opens.
CauseSchema: Final = answer(
    "Cause",
    {
        "from": integer(),
        "to": integer(),
        "line": nested(SummaryLineSchema, "The most likely cause among them."),
        "kind": one_of(("error", "new", "last"), "Why chosen: an error, new lines, or only the last lines."),
        "confidence": one_of(("high", "low"), "How often it is right: docs/answers.md."),
    },
)
BaselineSchema: Final = answer("Baseline", {"label": text("KEY=VALUE.")})
VerdictSchema: Final = answer(
    "Verdict",
    {
        "kind": one_of(
            ("new", "since", "recurring"),
            "`new`: no earlier job has the line. `since`: all failures since `id` do. `recurring`: good jobs between.",
        ),
        "id": text("With `since`: the first failure that has it.", allow_none=True),
    },
)
SpreadSchema: Final = answer("Spread", {name: seconds("Of the good runs.") for name in ("least", "median", "most")})
PauseSchema: Final = answer(
    "Pause",
    {
        "after": nullable(LineSchema, "Last line before the pause. Null if it has been trimmed since."),
        "before": nullable(LineSchema, "First line after the pause. Null if it has been trimmed since."),
        "seconds": seconds("Time between the two lines."),
        "usual": nullable(SpreadSchema, "This time in the good runs. Null without good runs."),
        "excess": seconds("Time beyond the slowest good run. Null without good runs.", allow_none=True),
    },
)
RunningSchema: Final = answer(
    "Running",
    {
        "silent_seconds": seconds("Time since the last line. Null if that line has no time.", allow_none=True),
        "usual": nullable(SpreadSchema, "The pause after that line in the good runs. Null if unknown."),
        "seconds_left": nullable(SpreadSchema, "Estimate. Null if fewer than three good runs have the last lines."),
    },
)
ProfileSchema: Final = answer(
    "Profile",
    {
        "job": nested(JobSchema),
        "compared_with": list_of(text(), "The good runs. Null without any.", allow_none=True),
        "seconds": seconds("Time from the first line to the last."),
        "usual": nullable(SpreadSchema, "This time in the good runs. Null without good runs."),
        "slower": list_of(PauseSchema, "Slower than every good run: at most 20, the largest excess first."),
        "pauses": list_of(PauseSchema, "The 20 longest pauses, longest first."),
        "running": nullable(RunningSchema, "For running jobs, otherwise null."),
        "complete": boolean("False while not all lines and good runs are scanned. The same request then continues."),
        "scanned_to": integer("Lines up to this number are scanned."),
        "truncated": boolean("True if only the longest pauses are known, because the log has more than 4,096 lines."),
        "strip": list_of(fields.List(fields.Float()), "At most 500 pairs: seconds since the first line, line number."),
    },
)
SummarySchema: Final = answer(
    "Summary",
    {
        "job": nested(JobSchema),
        "compared_with": list_of(text(), "The jobs that `new` is compared with. Null without any.", allow_none=True),
        "baseline": nullable(BaselineSchema, "The label that selected these jobs, and those for `verdict`. Null: all."),
        "new": nested(SummaryLinesSchema),
        "errors": nested(SummaryLinesSchema),
        "last": list_of(SummaryLineSchema),
        "cause": nullable(CauseSchema),
        "complete": boolean("False while not all lines are scanned. The same request then continues."),
        "scanned_to": integer("Lines from this number to the last one are scanned."),
        "truncated": boolean("True if new lines or errors are omitted, or were not searched for."),
        "verdict": nullable(VerdictSchema, "How the failure relates to earlier jobs. A hint; null while unknown."),
        "slower": list_of(PauseSchema, "The first three of `/profile`. Null if unknown or too large.", allow_none=True),
    },
)
PlaceSchema: Final = answer(
    "Place",
    {
        "id": text(),
        "sequence_num": integer("Its first line with this shape; null if unknown.", allow_none=True),
        "started_at": text(allow_none=True),
        "status": one_of(STATUSES),
    },
)
HistorySchema: Final = answer(
    "History",
    {
        **IDS,
        "sequence_num": integer(),
        "shape": text("The line without what differs between runs."),
        "looked_at": nested(LookedAtSchema),
        "seen": fields.Nested(answer("Ends", _ENDS)),
        "first": nullable(PlaceSchema, "The oldest of these jobs."),
        "last": nullable(PlaceSchema, "The newest of these jobs."),
        "jobs": list_of(PlaceSchema, "The newest 20 of these jobs, newest first."),
        **_CURSOR,
    },
)
GapSchema: Final = answer("Gap", {"from": integer(), "to": integer(), "reason": text()})
WaitSchema: Final = answer(
    "Wait",
    {
        "outcome": one_of(("matched", "ended", "timeout")),
        "log": nullable(LineSchema),
        "cursor": integer("Last line searched: pass it as the next `offset`."),
        "job": nested(JobSchema),
    },
    {
        "logs": list_of(LineSchema, "With `limit`: `log`, and lines after it that match."),
        "gaps": list_of(GapSchema, "Unavailable lines: the first 100 gaps."),
        "more_gaps": integer("Number of further gaps."),
    },
)
#: Counts are null while the server that has the workflow's jobs is unreachable.
WorkflowSchema: Final = answer(
    "Workflow",
    {
        "id": text(),
        "jobs": integer("Number of jobs.", allow_none=True),
        "running": integer("Number of running jobs.", allow_none=True),
        "last_job_at": text("Creation time of its newest job: ISO 8601, UTC.", allow_none=True),
        "last_job": text("Id of its newest job.", allow_none=True),
        "last_status": one_of(STATUSES, allow_none=True),
        "recent": list_of(one_of(STATUSES), "Statuses of its newest jobs, at most ten, newest first."),
    },
)
WorkflowsSchema: Final = answer("Workflows", {"workflows": list_of(WorkflowSchema), **_CURSOR})
AuditEntrySchema: Final = answer(
    "AuditEntry",
    {
        "at": text("ISO 8601, UTC, by the store's clock."),
        "sub": text("The token's subject, or `os:USER@HOST` for commands that use the store."),
        "did": one_of(("delete", "redact", "retention", "limits", "import", "watch")),
        "workflow_id": text(),
        "id": text("The job; null for actions on a whole workflow.", allow_none=True),
        "what": text("Description of the action."),
    },
)
AuditSchema: Final = answer("Audit", {"entries": list_of(AuditEntrySchema), **_CURSOR})
StatusSchema: Final = answer(
    "Status", {"status": text()}, {"warning": text("What is unavailable although the node is ready.")}
)
SignInSchema: Final = answer(
    "SignIn",
    {"issuer": text(), "client_id": text(), "scopes": text("Separated by spaces.")},
    {"audience": text("Required `aud` of tokens, or null.", allow_none=True)},
)
ProblemSchema: Final = answer(
    "Problem",
    {"type": text(), "title": text(), "status": integer(), "detail": text()},
    {
        "errors": fields.List(fields.Dict(keys=fields.String(), values=fields.String())),
        "reason": text("Machine-readable reason of a 409: GAP, FENCED, HELD, …"),
        "expected": integer("With GAP: the log's next number."),
        "labels": list_of(text(), "With `label-set`: keys of the refused labels."),
        "request_id": text("Same as X-Request-ID. Omitted in a 404."),
    },
)
