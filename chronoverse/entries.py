"""What the entries of a log's stream mean, whoever wrote them. Pure, and nothing in them is trusted."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final

from chronoverse.joblog import MAX_NUMBER, End, Gap, Line, Status, Stray, parse_exit_code, parse_number

#: What a foreign entry without a timestamp is shown with: valid, and plainly not a real time.
NO_TIMESTAMP: Final = "1970-01-01T00:00:00.000Z"

Entry = Line | Gap | End | Stray
#: An entry as the store hands it over: id, then field, value, field, value, …
RawEntry = Sequence[Any]


def read_entries(entries: Iterable[RawEntry], after: int, first: int = 1) -> Iterator[Entry]:
    """What the raw ``entries`` that follow line ``after`` say, in order, every number accounted for.

    Anybody may have written them, so nothing here can fail: what can be shown is a Line, numbers that
    are not there are a Gap (``trimmed`` below ``first``, the first number the store still has), and an
    entry without a number of its own is a Stray. Nothing follows an End, or a Stray beyond all numbers.
    """
    cursor = after
    for entry_id, fields in entries:
        number = entry_number(entry_id)
        if number > MAX_NUMBER:
            yield Stray(_text(entry_id), last=True)
            return
        if number <= cursor:
            yield Stray(_text(entry_id))
            continue
        if number > cursor + 1:
            yield from _gaps(cursor + 1, number - 1, first)
        cursor = number
        entry = _entry(number, fields)
        yield entry
        if type(entry) is End:
            return


def in_sequence(entries: Sequence[RawEntry], after: int) -> bool:
    """Whether the entries' ids look like one number after the other from ``after`` on, so that no gap is among them."""
    return not entries or entry_number(entries[-1][0]) == after + len(entries)


def _gaps(start: int, stop: int, first: int) -> Iterator[Gap]:
    if start < first:
        yield Gap(start, min(stop, first - 1), "trimmed")
    if stop >= first:
        yield Gap(max(start, first), stop, "missing")


def entry_number(entry_id: bytes) -> int:
    """The whole number of a Redis entry id."""
    return int(entry_id.partition(b"-")[0])


def _text(value: bytes) -> str:
    return value.decode("utf-8", "replace")


def _entry(number: int, fields: Sequence[bytes]) -> Line | Gap | End:
    if len(fields) == 6 and fields[0] == b"timestamp" and fields[2] == b"message" and fields[4] == b"stream":
        stream = "stderr" if fields[5] == b"stderr" else "stdout"
        return Line(number, fields[1].decode("utf-8", "replace"), fields[3].decode("utf-8", "replace"), stream)
    named = dict(zip(fields[::2], fields[1::2], strict=False))
    if named.get(b"event") == b"end":
        return read_terminal(number, fields)
    if b"message" not in named:
        return Gap(number, number, "malformed")
    return Line(
        number,
        _text(named.get(b"timestamp", NO_TIMESTAMP.encode())),
        _text(named[b"message"]),
        "stderr" if named.get(b"stream") == b"stderr" else "stdout",
        named.get(b"partial") == b"1",
    )


def read_terminal(number: int, fields: Sequence[bytes]) -> End:
    """The terminal entry out of its Redis fields. What a foreign runner left out is filled in."""
    named = dict(zip(fields[::2], fields[1::2], strict=False))
    status = _text(named.get(b"status", b""))
    known = status in Status.__members__ and Status(status).terminal
    exit_code = named.get(b"exit_code", b"")
    return End(
        number,
        Status(status) if known else (Status.COMPLETED if exit_code in (b"", b"0") else Status.FAILED),
        parse_exit_code(_text(exit_code)),
        _count(named.get(b"lines"), number - 1),
        _count(named.get(b"dropped"), 0),
        _text(named[b"timestamp"]) if b"timestamp" in named else None,
    )


def _count(value: bytes | None, default: int) -> int:
    number = parse_number(_text(value)) if value is not None else None
    return default if number is None else number
