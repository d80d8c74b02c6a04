"""Converts Airflow's log records to lines, and back.

A line has the record's text, then a tab and the other fields as JSON:

    the order was late\t{"logger":"shop","filename":"shop.py","lineno":12,"level":"warning"}

Lines that a task prints have no JSON. If a record has several lines, such as a traceback, the JSON follows the first
line, and includes the number of lines.
"""

from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import orjson

from chronoverse.joblog.model import seconds_of

#: The fields that Airflow adds to printed lines, by stream. They are not published.
_PRINTED: Final[Mapping[str, Mapping[str, Any]]] = {
    "stdout": {"level": "info", "logger": "task.stdout"},
    "stderr": {"level": "error", "logger": "task.stderr"},
}
_OF_THE_TRY: Final = ("dag_id", "run_id", "task_id", "map_index", "try_number", "ti_id")
_LINES: Final = "chronoverse_lines"
_STEP: Final = timedelta(microseconds=1)
_CAUSE: Final = "The above exception was the direct cause of the following exception:"
_CONTEXT: Final = "During handling of the above exception, another exception occurred:"


def lines_of_record(record: Mapping[str, Any]) -> tuple[str, str, float | None]:
    """The stream, lines (each with a newline) and Unix time of a structlog record."""
    rest = {name: value for name, value in record.items() if name not in _OF_THE_TRY}
    lines = str(rest.pop("event", "")).split("\n")
    time = rest.pop("timestamp", None)
    for name in ("error_detail", "exception"):
        if isinstance(rest.get(name), list):
            lines += _traceback(rest.pop(name))
    stream = "stderr" if rest.get("level") in ("warning", "error", "critical") else "stdout"
    if len(lines) > 1:
        rest[_LINES] = len(lines)
    if rest != _PRINTED[stream] or _split(lines[0])[0] != lines[0]:
        lines[0] += f"\t{_encode_any(rest)}"
    seconds = time.timestamp() if isinstance(time, datetime) else seconds_of(time if isinstance(time, str) else None)
    return stream, "\n".join([*lines, ""]), seconds


def records_of_lines(lines: Iterable[Mapping[str, Any]]) -> Iterator[str]:
    """Yields the records of ``lines`` (the service's JSON) as JSON. A record reports missing lines by number.

    Makes each record at least a microsecond later than the previous one, as Airflow merges equal records of one time.
    """
    record: dict[str, Any] = {}
    wanted, next_number = 0, 1
    last = datetime.fromtimestamp(0, UTC)
    for numbers, timestamp, stream, text in _whole_lines(lines):
        if numbers.start > next_number:
            if wanted:
                yield _encode(record)
            wanted, last = 0, last + _STEP
            end = "" if numbers.start == next_number + 1 else f" to {numbers.start - 1}"
            yield notice(f"the log does not have line {next_number}{end}", last)
        next_number = numbers.stop
        if wanted:
            wanted -= 1
            record["event"] += f"\n{text}"
        else:
            event, rest = _split(text)
            wanted = int(rest.pop(_LINES, 1)) - 1
            last = max(last + _STEP, datetime.fromisoformat(timestamp))
            record = {"timestamp": last.isoformat(), "event": event, **(rest or _PRINTED[stream])}
        if not wanted:
            yield _encode(record)
    if wanted:
        yield _encode(record)


def notice(text: str, at: datetime | None = None) -> str:
    time = (at or datetime.now(UTC)).isoformat()
    return _encode({"timestamp": time, "event": text, "level": "error", "logger": "chronoverse"})


def _encode(record: Mapping[str, Any]) -> str:
    return orjson.dumps(record).decode()


def _encode_any(rest: Mapping[str, Any]) -> str:
    """The JSON of values of any type. Values that JSON does not support become text."""
    try:
        return orjson.dumps(rest, default=str, option=orjson.OPT_NON_STR_KEYS).decode()
    except TypeError:  # raised for large integers and unpaired surrogates
        return _encode({str(name): str(value).encode("utf-8", "replace").decode() for name, value in rest.items()})


def _whole_lines(lines: Iterable[Mapping[str, Any]]) -> Iterator[tuple[range, str, str, str]]:
    """Yields the numbers, timestamp, stream and text of each line. Joins the parts of long lines."""
    numbers, timed, text = range(0), ("", ""), ""
    for line in lines:
        number = line["sequence_num"]
        if numbers and number != numbers.stop:  # the end of a long line is missing
            yield numbers, *timed, text
            numbers, text = range(0), ""
        numbers = range(numbers.start if numbers else number, number + 1)
        timed = line["timestamp"], line["stream"]
        text += line["message"]
        if not line.get("partial"):
            yield numbers, *timed, text
            numbers, text = range(0), ""
    if numbers:
        yield numbers, *timed, text


def _split(line: str) -> tuple[str, dict[str, Any]]:
    """The text of a line, and the JSON object after its last tab (empty if there is none)."""
    text, tab, last = line.rpartition("\t")
    if tab and last.startswith("{"):
        try:
            rest = orjson.loads(last)
        except orjson.JSONDecodeError:
            return line, {}
        return text, rest
    return line, {}


def _traceback(stacks: list[Any]) -> Iterator[str]:
    between = ""
    for stack in reversed(stacks):
        if between:
            yield from ("", between, "")
        between = _CAUSE if stack.get("is_cause") else _CONTEXT
        if frames := stack.get("frames"):
            yield "Traceback (most recent call last):"
        for frame in frames or ():
            yield f'  File "{frame["filename"]}", line {frame["lineno"]}, in {frame["name"]}'
        name, value = stack.get("exc_type"), stack.get("exc_value")
        yield from (f"{name}: {value}" if value else f"{name}").split("\n")
        for group in stack.get("exceptions") or ():
            yield from _traceback(group)
