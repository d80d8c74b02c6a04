"""The request bodies of runners (open, append, end), and the answers, for validation and OpenAPI."""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import Any, Final, TypeVar, cast

from marshmallow import Schema, ValidationError, fields, post_load, validate, validates_schema
from werkzeug.exceptions import RequestEntityTooLarge

from chronoverse.joblog.labels import MAX_LABELS, check_labels
from chronoverse.joblog.model import MAX_LINE_BYTES, MAX_NUMBER, STREAMS, Line, LineRun, Status, count_lines, runs_of
from chronoverse.web.http.schemas import QueryInteger, answer, boolean, integer, matching, one_of, text

#: Maximum lines per append, and per body with ``lines``. More would block the store's server for more than 1 or 2 ms.
MAX_LINES: Final = 500
#: Maximum lines per body with ``runs``, or of plain text. They are stored in several appends.
MAX_RUN_LINES: Final = 5_000
#: Maximum first number, and maximum count, of lines declared lost. Larger ones would leave no number for the end.
_MAX_LOST: Final = 5 * 10**11

_Result = TypeVar("_Result")

_TIMESTAMP: Final = re.compile(r"[0-9]{4}-[01][0-9]-[0-3][0-9]T[0-2][0-9]:[0-5][0-9]:[0-6][0-9]\.[0-9]{3}Z")
_TOO_LONG: Final = "message must have at most {} bytes: send a longer line in partial pieces"


class JsonInteger(QueryInteger):
    """An integer in a body, as JSON Schema defines it: 2.0 is valid, true is not."""

    def _deserialize(self, value: Any, attr: str | None, data: Mapping[str, Any] | None, **kwargs: Any) -> int:
        if type(value) is not int and not (type(value) is float and value.is_integer()):
            raise self.make_error("invalid", input=value)
        return int(value)


class JsonBoolean(fields.Boolean):
    """``true`` or ``false``. :class:`fields.Boolean` would also accept 1 and 0."""

    def _deserialize(self, value: Any, attr: str | None, data: Mapping[str, Any] | None, **kwargs: Any) -> bool:
        if type(value) is not bool:
            raise self.make_error("invalid", input=value)
        return value


class NewLineSchema(Schema):
    """A line to append. Its number is ``first`` plus its index in the list."""

    timestamp = matching(_TIMESTAMP.pattern, "ISO 8601, UTC, milliseconds.", required=True)
    message = matching(r"[^\n]*", "UTF-8 without a newline, at most CHRONOVERSE_MAX_LINE_BYTES bytes.", required=True)
    stream = one_of(STREAMS, required=True)
    partial_ = boolean("True if the next line of the stream continues this one.", data_key="partial")

    @classmethod
    def read(cls, lines: Any, max_line_bytes: int) -> list[LineRun]:
        if not isinstance(lines, list) or len(lines) > MAX_LINES:
            raise ValueError(f"must be a list of at most {MAX_LINES} lines")
        return runs_of(_each(lines, lambda line: cls._read_line(line, max_line_bytes)))

    @classmethod
    def _read_line(cls, line: Any, max_line_bytes: int) -> Line:
        _check_object(line, cls)
        message, is_partial = line.get("message"), line.get("partial", False)
        if not isinstance(message, str) or "\n" in message:
            raise ValueError("message must be text without a newline")
        if type(is_partial) is not bool:
            raise ValueError("partial must be true or false")
        if 4 * len(message) > max_line_bytes and _is_too_long(message.encode(), max_line_bytes):
            raise ValueError(_TOO_LONG.format(max_line_bytes))
        return Line(0, line["timestamp"], message, line["stream"], is_partial)


class NewRunSchema(Schema):
    """Lines to append that share a time and stream."""

    timestamp = matching(_TIMESTAMP.pattern, "ISO 8601, UTC, milliseconds.", required=True)
    stream = one_of(STREAMS, required=True)
    messages = fields.List(matching(r"[^\n]*"), required=True, metadata={"description": "As a line's `message`."})
    partial_ = fields.List(fields.Integer(), data_key="partial", metadata={"description": "Indexes, ascending."})

    @classmethod
    def read(cls, runs: Any, max_line_bytes: int) -> list[LineRun]:
        if not isinstance(runs, list):
            raise ValueError("must be a list of runs")
        found = [each for some in _each(runs, lambda run: [*cls._read_run(run, max_line_bytes)]) for each in some]
        require_few_lines(count_lines(found))
        return found

    @classmethod
    def _read_run(cls, run: Any, max_line_bytes: int) -> Iterator[LineRun]:
        """Splits a run into runs whose lines are either all partial or all complete. Checks all messages at once."""
        _check_object(run, cls)
        texts, partial = run.get("messages"), run.get("partial", [])
        try:
            messages = "\n".join(texts).encode().split(b"\n") if type(texts) is list and texts else []
        except TypeError:
            messages = []
        if type(texts) is not list or len(messages) != len(texts):
            raise ValueError("messages must be a list of strings without newlines")
        for index, message in enumerate(messages) if max(map(len, messages), default=0) > max_line_bytes else ():
            if _is_too_long(message, max_line_bytes):
                raise ValueError(f"messages.{index}: {_TOO_LONG.format(max_line_bytes)}")
        if partial != [] and not _are_indexes(partial, len(messages)):
            raise ValueError("partial must be a list of indexes of messages, in ascending order")
        start = 0
        for index in [*partial, len(messages)]:
            if messages[start:index]:
                yield LineRun(run["timestamp"], run["stream"], False, messages[start:index])
            if messages[index : index + 1]:
                yield LineRun(run["timestamp"], run["stream"], True, messages[index : index + 1])
            start = index + 1


class LinesField(fields.List[Mapping[str, Any]]):
    """Loads lines as :class:`LineRun` objects, with the schema's ``read``: one by one, 500 would take 20 ms."""

    def __init__(self, schema: type[NewLineSchema | NewRunSchema], **options: Any) -> None:
        super().__init__(fields.Nested(schema), **options)
        self._schema = schema

    def _deserialize(self, value: Any, attr: str | None, data: Mapping[str, Any] | None, **kwargs: Any) -> Any:
        try:
            return self._schema.read(value, cast("LinesBody", self.root).max_line_bytes)
        except ValueError as error:
            raise ValidationError(str(error)) from error


def _each(items: Iterable[Any], read: Callable[[Any], _Result]) -> Iterator[_Result]:
    """Yields the result of ``read`` for each of ``items``. Adds the item's index to the ValueError that it raises."""
    for index, item in enumerate(items):
        try:
            yield read(item)
        except ValueError as error:
            raise ValueError(f"{index}: {error}") from error


def _check_object(item: Any, schema: type[NewLineSchema | NewRunSchema]) -> None:
    """Raises ValueError if ``item`` has keys that ``schema`` lacks, or an invalid timestamp or stream."""
    if type(item) is not dict or not item.keys() <= _KEYS[schema]:
        raise ValueError(f"must be an object of {', '.join(sorted(_KEYS[schema]))}")
    timestamp = item.get("timestamp")
    if not isinstance(timestamp, str) or not _TIMESTAMP.fullmatch(timestamp):
        raise ValueError("timestamp must be like 2026-03-03T10:00:05.123Z")
    if item.get("stream") not in STREAMS:
        raise ValueError("stream must be stdout or stderr")


_KEYS: Final = {
    schema: frozenset(field.data_key or name for name, field in schema().fields.items())
    for schema in (NewLineSchema, NewRunSchema)
}


def _is_too_long(message: bytes, max_line_bytes: int) -> bool:
    # Runners cut lines by their original bytes. Each U+FFFD (three bytes) can replace one byte that is not UTF-8.
    return len(message) > max_line_bytes and len(message) - 2 * message.count(b"\xef\xbf\xbd") > max_line_bytes


def require_few_lines(count: int) -> None:
    """Raises 413 if ``count`` exceeds :data:`MAX_RUN_LINES`."""
    if count > MAX_RUN_LINES:
        raise RequestEntityTooLarge(f"a request can have at most {MAX_RUN_LINES} lines; this one has {count}")


def _are_indexes(partial: Any, count: int) -> bool:
    are_numbers = type(partial) is list and all(type(index) is int for index in partial)
    return are_numbers and partial == sorted({*partial} & {*range(count)})


class LabelsField(fields.Dict):
    """Labels by key. Loaded as :data:`~chronoverse.joblog.labels.Labels`."""

    def __init__(self, description: str) -> None:
        # These constraints are only for OpenAPI, because the errors of check_labels() are clearer.
        value = fields.String(metadata={"minLength": 1, "maxLength": 256, "pattern": r"^[^\x00-\x1f\x7f-\x9f]+$"})
        bounds = {"maxProperties": MAX_LABELS}
        super().__init__(fields.String(), value, load_default=tuple, metadata={"description": description, **bounds})

    def _deserialize(self, value: Any, attr: str | None, data: Mapping[str, Any] | None, **kwargs: Any) -> Any:
        try:
            return check_labels(value)
        except ValueError as error:
            raise ValidationError(str(error)) from error


class RegisterBody(Schema):
    labels = LabelsField("Set once: a different value for an existing label is refused, and nothing changes.")


_token: Final = partial(matching, "[0-9a-f]{32,128}", error="must be 32 to 128 hexadecimal digits", required=True)


class RunnerBody(Schema):
    """Fields of all requests of a runner."""

    token = _token("Chosen by the runner, unguessable, the same for all requests of an attempt.")


class AttemptBody(RunnerBody, RegisterBody):
    first = JsonInteger("Refuse with GAP unless the first line gets this number.", 1, load_default=None)


class OpenedBody(RunnerBody):
    """Fields of requests after the attempt was opened."""

    attempt = JsonInteger("Number of the open attempt. Any other gets 409 FENCED.", 1, required=True)


class LinesBody(OpenedBody):
    """Appends consecutive lines of at most ``max_line_bytes`` each. Without lines, only renews the lease.

    Contains either ``lines`` or ``runs``. Both are loaded as ``runs``.
    """

    first = JsonInteger("The first line's number.", 1, MAX_NUMBER - MAX_LINES, required=True)
    lines = LinesField(NewLineSchema, metadata={"maxItems": MAX_LINES})
    runs = LinesField(NewRunSchema, metadata={"description": f"At most {MAX_RUN_LINES} lines in all."})
    safe = JsonBoolean(load_default=False, metadata={"description": "Without lines: return which lines are safe."})

    def __init__(self, max_line_bytes: int = MAX_LINE_BYTES) -> None:
        super().__init__()
        self.max_line_bytes = max_line_bytes

    @validates_schema
    def _check_form(self, data: Mapping[str, Any], **kwargs: Any) -> None:
        if ("lines" in data) == ("runs" in data):
            raise ValidationError("either lines or runs are required", "lines")
        if data["first"] > MAX_NUMBER - count_lines(data.get("runs", ())):
            raise ValidationError("too high for so many lines", "first")

    @post_load
    def _as_runs(self, data: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        return {"runs": data.get("lines"), **data}


class TextForm(Schema):
    """The fields that accompany a plain-text body, in the query and in headers."""

    attempt = QueryInteger("As in a JSON body.", 1, data_key="Chronoverse-Attempt", required=True)
    token = _token("As in a JSON body.", data_key="Chronoverse-Token")
    first = QueryInteger("For plain text: the first line's number.", 1, MAX_NUMBER - MAX_RUN_LINES, required=True)
    stream = one_of(STREAMS, "For plain text.", load_default=STREAMS[0])


def _text_parameter(name: str, place: str, schema: dict[str, Any], description: str) -> dict[str, Any]:
    return {"name": name, "in": place, "schema": schema, "description": f"With plain text: {description}"}


TEXT_PARAMETERS: Final = [
    _text_parameter("first", "query", {"type": "integer", "minimum": 1}, "the first line's number."),
    _text_parameter("stream", "query", {"enum": [*STREAMS], "default": STREAMS[0]}, "the stream of all lines."),
    _text_parameter("Chronoverse-Attempt", "header", {"type": "integer", "minimum": 1}, "`attempt`."),
    _text_parameter("Chronoverse-Token", "header", {"type": "string"}, "`token`."),
]


class LostBody(OpenedBody):
    """Declares consecutive lines lost: neither the log nor the runner has them."""

    first = JsonInteger("Number of the first line, which is the log's next.", 1, _MAX_LOST, required=True)
    count = JsonInteger("Number of lines.", 1, _MAX_LOST, required=True)
    reason = one_of(["lost", "missing"], "`missing`: the runner never had them.", load_default="lost")


class CompareBody(Schema):
    """Compares a runner's lines with the log. Also works after the job has ended."""

    first = JsonInteger("The first line's number.", 1, MAX_NUMBER - MAX_LINES, required=True)
    lines = fields.List(
        matching("[0-9a-f]{64}", error="must be 64 hexadecimal digits"),
        required=True,
        validate=validate.Length(1, MAX_LINES),
        metadata={"description": "SHA-256 of each line as `/logs/raw?format=jsonl` has it, without the newline."},
    )


class EndBody(Schema):
    """Ends a job or an attempt. Without ``token`` and ``attempt``, ends a job that no runner holds."""

    token = _token(
        "The attempt's token. Without it, ends a job that no runner holds.", required=False, load_default=None
    )
    attempt = JsonInteger("Required with `token`, otherwise not allowed.", 1, load_default=None)
    status = one_of(
        [status.value for status in Status if status is not Status.RUNNING],
        "PENDING ends only the attempt. LOST is for a runner that was killed.",
        required=True,
    )
    # Readers of logs accept no other codes.
    exit_code = JsonInteger("Null if there is none.", -999_999_999, 999_999_999, allow_none=True, load_default=None)
    counts = JsonBoolean(
        load_default=False, metadata={"description": "With PENDING: the job's exit code will be at least this one."}
    )
    dropped = JsonInteger("Lines that the runner dropped.", 0, load_default=0)
    next = JsonInteger(
        "One past the last line number. Required with `token`, otherwise not allowed.", 1, load_default=None
    )

    @validates_schema
    def _check_runner(self, data: Mapping[str, Any], **kwargs: Any) -> None:
        given = [name for name in ("token", "attempt", "next") if data[name] is not None]
        if given and len(given) < 3:
            raise ValidationError("token, attempt and next are required together", given[0])
        if not given and (data["counts"] or data["dropped"] or data["status"] == Status.PENDING):
            raise ValidationError("required to end an attempt, and with counts or dropped", "token")


AttemptSchema: Final = answer(
    "Attempt", {"attempt": integer(), "token": text(), "next": integer("Number of its first line.")}
)
ComparedSchema: Final = answer(
    "Compared",
    {
        "next": integer("One past the last identical line: continue there. `first` if no line is identical."),
        "differs": boolean("True if line `next` of the log is different."),
    },
)
NextSchema: Final = answer(
    "Next",
    {"next": integer("Number of the next line; null if only the lease was renewed.", allow_none=True)},
    {"safe": boolean("With `safe`: true if all lines below `next` are safe, false if that is unknown.")},
)
