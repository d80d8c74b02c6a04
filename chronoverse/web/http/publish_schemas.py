"""Bodies of a runner's requests (open, append, end), and the answers. Validation and OpenAPI are made from these."""

import re
from collections.abc import Mapping
from typing import Any, Final

from marshmallow import Schema, ValidationError, fields, validate, validates

from chronoverse.joblog.labels import MAX_LABELS, check_labels
from chronoverse.joblog.model import MAX_LINE_BYTES, MAX_NUMBER, STREAMS, Status
from chronoverse.web.http.schemas import QueryInteger, answer, boolean, integer, matching, one_of, text

#: Lines of one append. With more, the script would block the store for longer than a millisecond or two.
MAX_LINES: Final = 500
#: The highest first number of lines that are named as lost, and the most of them at once. A log that has used up its
#: numbers cannot end. A runner that writes a million lines a second reaches this number after five days.
MAX_LOST: Final = 5 * 10**11

_TIMESTAMP: Final = re.compile(r"[0-9]{4}-[01][0-9]-[0-3][0-9]T[0-2][0-9]:[0-5][0-9]:[0-6][0-9]\.[0-9]{3}Z")
_KEYS: Final = frozenset({"timestamp", "message", "stream", "partial"})


class JsonInteger(QueryInteger):
    """An integer in a body, as JSON Schema defines it: 2.0 is one, and true is not."""

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


class NewLineSchema(Schema):
    """A line to append. Its number is ``first`` plus its index in the list."""

    timestamp = matching(_TIMESTAMP.pattern, "ISO 8601, UTC, milliseconds.", required=True)
    message = matching(r"[^\n]*", "UTF-8 without a newline, at most CHRONOVERSE_MAX_LINE_BYTES bytes.", required=True)
    stream = one_of(STREAMS, required=True)
    partial_ = boolean("True when the next line of the stream continues this one.", data_key="partial")


class UncheckedList(fields.List[Mapping[str, Any]]):
    """A list of objects that is not checked object by object, which takes 20 ms for 500 lines."""

    def _deserialize(self, value: Any, attr: str | None, data: Mapping[str, Any] | None, **kwargs: Any) -> Any:
        if not isinstance(value, list):
            raise ValidationError("must be a list of lines")
        return value


def _find_error(line: Any, max_line_bytes: int) -> str | None:
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
    # A runner cuts lines by their original bytes. Each U+FFFD, of three bytes, may have replaced one byte that is not
    # UTF-8.
    if 4 * len(message) > max_line_bytes and len(message.encode()) - 2 * message.count("\ufffd") > max_line_bytes:
        return f"message must have at most {max_line_bytes} bytes: send a longer line in partial pieces"
    return None


class LabelsField(fields.Dict):
    """The labels of a job, by their keys. They are loaded as :data:`~chronoverse.joblog.labels.Labels`."""

    def __init__(self) -> None:
        description = "Set once: a different value for an existing label is refused, and nothing changes."
        # For OpenAPI. What check_labels() says is clearer.
        value = fields.String(metadata={"minLength": 1, "maxLength": 256, "pattern": r"^[^\x00-\x1f\x7f-\x9f]+$"})
        bounds = {"maxProperties": MAX_LABELS}
        super().__init__(fields.String(), value, load_default=tuple, metadata={"description": description, **bounds})

    def _deserialize(self, value: Any, attr: str | None, data: Mapping[str, Any] | None, **kwargs: Any) -> Any:
        try:
            return check_labels(value)
        except ValueError as error:
            raise ValidationError(str(error)) from error


class RegisterBody(Schema):
    labels = LabelsField()


class RunnerBody(Schema):
    """What all requests of an attempt have."""

    token = matching(
        "[0-9a-f]{32,128}",
        "Chosen by the runner, unguessable, the same for all requests of an attempt.",
        error="must be 32 to 128 hexadecimal digits",
        required=True,
    )


class AttemptBody(RunnerBody):
    first = JsonInteger(
        "Where given: refuse with GAP, and change nothing, if the first line would get another number.",
        1,
        load_default=None,
    )
    labels = LabelsField()


class OpenedBody(RunnerBody):
    """What the requests of an attempt have that is open already."""

    attempt = JsonInteger(
        "The number that opening it has returned. Any other is refused with 409, FENCED.", 1, required=True
    )


class LinesBody(OpenedBody):
    """Appends consecutive lines, of at most ``max_line_bytes`` each. No lines at all only renew the lease."""

    first = JsonInteger("The first line's number.", 1, MAX_NUMBER - MAX_LINES, required=True)
    lines = UncheckedList(fields.Nested(NewLineSchema), required=True, validate=validate.Length(max=MAX_LINES))
    safe = JsonBoolean(
        load_default=False, metadata={"description": "Without lines: ask below which number all lines are safe."}
    )

    def __init__(self, max_line_bytes: int = MAX_LINE_BYTES) -> None:
        super().__init__()
        self._max_line_bytes = max_line_bytes

    @validates("lines")
    def _check_lines(self, lines: list[Any], **kwargs: Any) -> None:
        for index, line in enumerate(lines):
            if error := _find_error(line, self._max_line_bytes):
                raise ValidationError(f"{index}: {error}")


class LostBody(OpenedBody):
    """Names consecutive lines as lost: neither the log nor the runner has them any more."""

    first = JsonInteger("The first line's number: the log's next.", 1, MAX_LOST, required=True)
    count = JsonInteger("How many lines.", 1, MAX_LOST, required=True)


class CompareBody(Schema):
    """Asks whether a log has these lines of a runner unchanged, also after the job's end."""

    first = JsonInteger("The first line's number.", 1, MAX_NUMBER - MAX_LINES, required=True)
    lines = fields.List(
        matching("[0-9a-f]{64}", error="must be 64 hexadecimal digits"),
        required=True,
        validate=validate.Length(1, MAX_LINES),
        metadata={"description": "SHA-256 of each line as `/logs/raw?format=jsonl` has it, without the newline."},
    )


class EndBody(OpenedBody):
    status = one_of(
        [status.value for status in Status if status is not Status.RUNNING],
        "PENDING ends the attempt, and not the job, which waits for its next attempt. LOST is for what is delivered of"
        " a runner that was killed.",
        required=True,
    )
    # What reads logs accepts no other codes.
    exit_code = JsonInteger("Null when there is none.", -999_999_999, 999_999_999, allow_none=True, load_default=None)
    counts = JsonBoolean(
        load_default=False,
        metadata={
            "description": "With PENDING: the job will end with this exit code, FAILED, unless it ends with a larger"
            " one, or is CANCELED or LOST."
        },
    )
    dropped = JsonInteger("Lines that the runner dropped.", 0, load_default=0)
    next = JsonInteger("One past the last line number.", 1, required=True)


#: While an attempt holds its lease, only its runner may append.
AttemptSchema: Final = answer(
    "Attempt", {"attempt": integer(), "token": text(), "next": integer("The number of its first line.")}
)
#: Up to where the log has the same lines.
ComparedSchema: Final = answer(
    "Compared",
    {
        "next": integer(
            "The number behind the last line that is the same, of those that were read at once: ask again from there."
            " `first` when not even that one is the same."
        ),
        "differs": boolean("True when line `next` is there and another one."),
    },
)
NextSchema: Final = answer(
    "Next",
    {"next": integer("The next line's number; null after a mere renewal.", allow_none=True)},
    {"safe": boolean("With `safe`: true if all below `next` is safe, false if the service cannot say.")},
)
