"""Bodies of a runner's requests (open, append, end), and the answers. Validation and OpenAPI are made from these."""

import re
from collections.abc import Iterator, Mapping
from itertools import count
from typing import Any, Final

from marshmallow import Schema, ValidationError, fields, validate

from chronoverse.joblog.model import MAX_NUMBER, Line, Status
from chronoverse.web.http.schemas import STREAMS

#: Lines of one append. With more, the script would block the store for longer than a millisecond or two.
MAX_LINES: Final = 500
#: The highest first number of lines that are named as lost, and the most of them at once. A log that has used up its
#: numbers cannot end. A runner that writes a million lines a second reaches this number after five days.
MAX_LOST: Final = 5 * 10**11

_TIMESTAMP: Final = re.compile(r"[0-9]{4}-[01][0-9]-[0-3][0-9]T[0-2][0-9]:[0-5][0-9]:[0-6][0-9]\.[0-9]{3}Z")
_TOKEN: Final = re.compile("[0-9a-f]{32,128}")
_SHA256: Final = re.compile(r"[0-9a-f]{64}\Z")
_KEYS: Final = frozenset({"timestamp", "message", "stream", "partial"})
#: How many bytes U+FFFD has more than the one byte that it may have replaced.
_REPLACEMENT_EXTRA: Final = len("\ufffd".encode()) - 1


def _token() -> fields.String:
    return fields.String(
        required=True,
        validate=_check_token,
        metadata={
            "description": "The runner's own, unguessable, the same in all requests of an attempt.",
            "pattern": "^[0-9a-f]{32,128}$",
        },
    )


def _check_token(token: str) -> None:
    if not _TOKEN.fullmatch(token):
        raise ValidationError("must be 32 to 128 hexadecimal digits")


class JsonInteger(fields.Integer):
    """An integer as JSON Schema defines it: 2.0 is one, and true is not."""

    def _deserialize(self, value: Any, attr: str | None, data: Mapping[str, Any] | None, **kwargs: Any) -> int:
        if type(value) is not int and not (type(value) is float and value.is_integer()):
            raise self.make_error("invalid", input=value)
        return int(value)


class JsonBoolean(fields.Boolean):
    """``true`` or ``false``. To Python, and so to :class:`fields.Boolean`, 1 and 0 are the same."""

    def _deserialize(self, value: Any, attr: str | None, data: Mapping[str, Any] | None, **kwargs: Any) -> bool:
        if type(value) is not bool:
            raise self.make_error("invalid", input=value)
        return value


def _number(minimum: int, description: str, maximum: int = MAX_NUMBER, **kwargs: Any) -> JsonInteger:
    return JsonInteger(validate=validate.Range(minimum, maximum), metadata={"description": description}, **kwargs)


def _attempt() -> JsonInteger:
    return _number(1, "The number that opening it has returned. Any other is refused with 409, FENCED.", required=True)


class NewLineSchema(Schema):
    """A line to append. Its number is ``first`` plus its index in the list."""

    timestamp = fields.String(
        required=True,
        metadata={"description": "ISO 8601, UTC, milliseconds.", "pattern": f"^{_TIMESTAMP.pattern}$"},
    )
    message = fields.String(
        required=True,
        metadata={
            "description": "Without a newline; at most CHRONOVERSE_MAX_LINE_BYTES bytes of UTF-8.",
            "pattern": r"^[^\n]*$",
        },
    )
    stream = fields.String(required=True, validate=validate.OneOf(STREAMS))
    partial_ = fields.Boolean(
        data_key="partial", metadata={"description": "True when the line goes on in the stream's next one."}
    )


class Lines(fields.List[Mapping[str, Any]]):
    """A list of lines. One loop checks them instead of a schema for each: 500 lines take 0.5 ms instead of 20."""

    def __init__(self, max_line_bytes: int, **kwargs: Any) -> None:
        super().__init__(fields.Nested(NewLineSchema), validate=validate.Length(max=MAX_LINES), **kwargs)
        self._max_line_bytes = max_line_bytes

    def _deserialize(self, value: Any, attr: str | None, data: Mapping[str, Any] | None, **kwargs: Any) -> Any:
        if not isinstance(value, list):
            raise ValidationError("must be a list of lines")
        for index, line in enumerate(value):
            if error := self._find_error(line):
                raise ValidationError(f"{index}: {error}")
        return value

    def _find_error(self, line: Any) -> str | None:
        """The first error of a line, or None."""
        if type(line) is not dict or not line.keys() <= _KEYS:
            return f"must be an object of {', '.join(sorted(_KEYS))}"
        timestamp, message = line.get("timestamp"), line.get("message")
        if not isinstance(timestamp, str) or not _TIMESTAMP.fullmatch(timestamp):
            return "timestamp must be like 2026-03-03T10:00:05.123Z"
        if not isinstance(message, str) or "\n" in message:
            return "message must be text without a newline"
        if line.get("stream") not in STREAMS:
            return "stream must be stdout or stderr"
        if type(line.get("partial", False)) is not bool:
            return "partial must be true or false"
        if 4 * len(message) > self._max_line_bytes and _original_bytes(message) > self._max_line_bytes:
            return f"message must have at most {self._max_line_bytes} bytes: send a longer line in partial pieces"
        return None


def _original_bytes(message: str) -> int:
    """How many bytes the message had before U+FFFD replaced bytes that are not UTF-8. A runner cuts lines by these."""
    return len(message.encode()) - _REPLACEMENT_EXTRA * message.count("\ufffd")


def numbered_lines(first: int, items: list[dict[str, Any]]) -> Iterator[Line]:
    """The lines of a :class:`LinesBody`, numbered from ``first``."""
    for number, item in zip(count(first), items, strict=False):
        yield Line(number, item["timestamp"], item["message"], item["stream"], item.get("partial", False))


class AttemptBody(Schema):
    """Opens a new attempt at a job."""

    token = _token()
    first = _number(
        1,
        "Where given: refuse with GAP, and change nothing, if the first line would get another number.",
        load_default=None,
    )


class LinesBody(Schema):
    """Appends consecutive lines. No lines at all only renew the lease."""

    token = _token()
    attempt = _attempt()
    first = _number(1, "The first line's number.", MAX_NUMBER - MAX_LINES, required=True)
    lines = fields.List(fields.Nested(NewLineSchema), required=True, validate=validate.Length(max=MAX_LINES))
    safe = fields.Boolean(
        load_default=False, metadata={"description": "Without lines: ask below which number all lines are safe."}
    )

    @classmethod
    def limited_to(cls, max_line_bytes: int) -> Schema:
        """The schema for lines whose messages have at most ``max_line_bytes`` bytes."""
        return cls.from_dict({"lines": Lines(max_line_bytes, required=True)}, name="LinesBody")()


class LostBody(Schema):
    """Names consecutive lines as lost: neither the log nor the runner has them any more."""

    token = _token()
    attempt = _attempt()
    first = _number(1, "The first line's number: the log's next.", MAX_LOST, required=True)
    count = _number(1, "How many lines.", MAX_LOST, required=True)


class CompareBody(Schema):
    """Asks whether a log has these lines of a runner unchanged, also after the job's end."""

    first = _number(1, "The first line's number.", MAX_NUMBER - MAX_LINES, required=True)
    lines = fields.List(
        fields.String(validate=validate.Regexp(_SHA256), metadata={"pattern": "^[0-9a-f]{64}$"}),
        required=True,
        validate=validate.Length(1, MAX_LINES),
        metadata={"description": "SHA-256 of each line as `/logs/raw?format=jsonl` has it, without the newline."},
    )


class EndBody(Schema):
    """Ends a job after its last line."""

    token = _token()
    attempt = _attempt()
    status = fields.String(
        required=True,
        validate=validate.OneOf([status.value for status in Status if status is not Status.RUNNING]),
        metadata={
            "description": "PENDING ends the attempt, and not the job, which waits for its next attempt."
            " LOST is for what is delivered of a runner that was killed."
        },
    )
    exit_code = JsonInteger(
        allow_none=True,
        load_default=None,
        # What reads logs accepts no others.
        validate=validate.Range(-999_999_999, 999_999_999),
        metadata={"description": "Null when there is none."},
    )
    dropped = _number(0, "Lines that the runner could not keep.", load_default=0)
    next = _number(1, "The number behind the last line's.", required=True)


class AttemptSchema(Schema):
    """An attempt. While it holds its lease, only this runner may append."""

    attempt = fields.Integer(required=True)
    token = fields.String(required=True)
    next = fields.Integer(required=True, metadata={"description": "The number of its first line."})


class ComparedSchema(Schema):
    """Up to where the log has the same lines."""

    next = fields.Integer(
        required=True,
        metadata={
            "description": "The number behind the last line that is the same, of those that were read at once: ask"
            " again from there. `first` when not even that one is the same."
        },
    )
    differs = fields.Boolean(required=True, metadata={"description": "True when line `next` is there and another one."})


class NextSchema(Schema):
    """The log's next number."""

    next = fields.Integer(
        required=True, allow_none=True, metadata={"description": "The next line's number; null after a mere renewal."}
    )
    safe = fields.Boolean(
        metadata={"description": "With `safe`: true if all below `next` is safe, false if the service cannot say."}
    )
