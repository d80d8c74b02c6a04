"""The values of a log: lines in Redis, SSE and JSON, the parser of numbers, and arbitrary entries."""

import json
from collections.abc import Sequence
from dataclasses import replace
from operator import itemgetter
from typing import Any, Final

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from chronoverse.joblog.entries import in_sequence, read_entries
from chronoverse.joblog.model import (
    IDENTIFIER,
    MAX_NUMBER,
    End,
    Gap,
    Job,
    JobRef,
    Line,
    OutOfSequence,
    Status,
    iso_timestamp,
    parse_exit_code,
    parse_number,
)
from chronoverse.joblog.sse import Decoder
from tests.support.examples import CHARACTERS
from tests.support.reading import redis_fields

NOW = "2026-03-03T10:00:05.123Z"
Raw = tuple[bytes, list[bytes]]

#: The timestamp of a line whose runner gave none.
NO_TIMESTAMP: Final = "1970-01-01T00:00:00.000Z"


def raw(entry_id: str, *fields: str | bytes) -> Raw:
    return entry_id.encode(), [field if isinstance(field, bytes) else field.encode() for field in fields]


def line(number: int) -> Raw:
    return raw(f"{number}-0", "timestamp", NOW, "message", f"line {number}", "stream", "stdout")


def numbers(entries: Sequence[Raw], after: int = 0, first: int = 1) -> list[object]:
    """What was read, in short: a line's number, a gap's (first, last, reason), ``end 3``, ``out of sequence 5-1``."""
    short: list[object] = []
    for entry in read_entries(entries, after, first):
        if isinstance(entry, Line):
            short.append(entry.sequence_num)
        elif isinstance(entry, Gap):
            short.append((entry.first, entry.last, entry.reason))
        elif isinstance(entry, End):
            short.append(f"end {entry.sequence_num}")
        else:
            short.append(f"out of sequence {entry.entry_id}")
    return short


lines = st.builds(
    Line,
    st.integers(1, MAX_NUMBER),
    st.one_of(st.just(NOW), st.text(CHARACTERS)),
    st.text(CHARACTERS),
    st.sampled_from(["stdout", "stderr"]),
    st.booleans(),
)


@given(line=lines)
@example(line=Line(1, NOW, "\0\u2028\x85\x0b\r\n\nevent: end\ndata: x\n\nid: 9\n\n", "stderr"))
@example(line=Line(MAX_NUMBER, NOW, "", "stdout", partial=True))
def test_a_line_can_be_read_back(line: Line) -> None:
    """From its Redis fields, its JSON, and its SSE frame, which is one event with the number as its id."""
    assert list(read_entries([raw(f"{line.sequence_num}-0", *redis_fields(line))], line.sequence_num - 1)) == [line]
    keys = ["timestamp", "message", "sequence_num", "stream"] + ["partial"] * line.partial
    assert list(line.to_json()) == keys
    assert Line.from_json(json.loads(json.dumps(line.to_json()))) == Line.decode(line.encode()) == line
    [event] = Decoder().feed(line.to_frame())
    assert (event.event, event.id) == ("log", str(line.sequence_num))
    assert Line.from_json(json.loads(event.data)) == line


RUNNING: Final = Job(JobRef("wf_1", "job_1"), Status.RUNNING, attempt=1, started_at=NOW, first=1, last=1200)
LOST: Final = End(8, Status.LOST, None, 7, 3, NOW)


@pytest.mark.parametrize(
    ("frame", "published"),
    [
        (
            Line(1, NOW, "Starting workflow execution", "stdout").to_frame(),
            b'event: log\ndata: {"timestamp":"2026-03-03T10:00:05.123Z","message":"Starting workflow execution",'
            b'"sequence_num":1,"stream":"stdout"}\nid: 1\n\n',
        ),
        (
            Line(2, NOW, "", "stderr", partial=True).to_frame(),
            b'event: log\ndata: {"timestamp":"2026-03-03T10:00:05.123Z","message":"","sequence_num":2,'
            b'"stream":"stderr","partial":true}\nid: 2\n\n',
        ),
        # Only lines and the end move a client's cursor. After the end, the client's next reconnect gets 204.
        (Gap(2, 900, "trimmed").to_frame(), b'event: gap\ndata: {"from":2,"to":900,"reason":"trimmed"}\n\n'),
        *(
            (LOST._replace(status=each).to_frame(30), b'event: end\ndata: {"status":"stream_ended"}\nid: 8\n\n')
            for each in (Status.COMPLETED, Status.FAILED, Status.CANCELED)
        ),
        (LOST.to_frame(30), b"event: error\ndata: runner lost: nothing heard from it for 30 s\nid: 8\n\n"),
        (
            RUNNING.to_frame(),
            b'event: job\ndata: {"status":"RUNNING","attempt":1,"first_sequence_num":1,"last_sequence_num":1200,'
            b'"started_at":"2026-03-03T10:00:05.123Z","labels":{}}\n\n',
        ),
        (
            RUNNING.ended(LOST).to_frame(),
            b'event: job\ndata: {"status":"LOST","attempt":1,"first_sequence_num":1,"last_sequence_num":7,'
            b'"started_at":"2026-03-03T10:00:05.123Z","exit_code":null,"lines":7,"dropped":3,'
            b'"finished_at":"2026-03-03T10:00:05.123Z","labels":{}}\n\n',
        ),
    ],
)
def test_the_published_bytes_of_a_frame(frame: bytes, published: bytes) -> None:
    assert frame == published


@pytest.mark.parametrize(("cursor", "lost"), [(6, None), (7, ""), (8, "8 to 8"), (20, "8 to 20")])
def test_a_reader_past_the_end_has_lines_that_the_store_lost(cursor: int, lost: str | None) -> None:
    """The log ends with number 8, after seven lines. Before the last one, more lines follow."""
    frames = replace(RUNNING, end=LOST).end_of_log(cursor, 30)
    ends = {None: None, "": RUNNING.closing_frames(LOST, 30)}
    assert frames == ends.get(lost, f"event: error\ndata: the store lost lines {lost} of this log\n\n".encode())


def test_a_jobs_json_has_the_published_keys() -> None:
    """In the published order. ``lines`` of a running job is its last line's number."""
    assert list(Job(JobRef("w", "j"), Status.RUNNING, last=4).to_json().items()) == [
        ("workflow_id", "w"),
        ("id", "j"),
        ("status", "RUNNING"),
        ("attempt", 0),
        ("created_at", None),
        ("started_at", None),
        ("finished_at", None),
        ("exit_code", None),
        ("lines", 4),
        ("dropped", 0),
        ("first_sequence_num", 1),
        ("last_sequence_num", 4),
        ("labels", {}),
    ]


SIGNED = ("-1", "+5", "-", "+")
SPACED = (" 7 ", "7 ", " 7", "12\n", "\n12", "7\x85", "7\u2028", "7\0", "")
SPELT = ("1_000", "0x10", "1e3", "1.0", "NaN", "5-0", "5-1", "$", ">", "5,7")
NOT_ASCII = ("\uff11\uff12", "\u00b2", "\u0663", "\u0967", "\u2167", "\ud800")
LONG = ("9" * 16, "0" * 16, str(2**53 + 1), str(2**63), str(2**64 - 1), str(2**64), "9" * 5000)


NUMBERS: Final = {"0": 0, "1": 1, "0007": 7, "9" * 15: MAX_NUMBER, "0" * 15: 0, "1000000000": 10**9}


@pytest.mark.parametrize("text", [*NUMBERS, *SIGNED, *SPACED, *SPELT, *NOT_ASCII, *LONG], ids=lambda text: text[:24])
def test_a_number_has_one_to_fifteen_ascii_digits(text: str) -> None:
    """Python's ``int`` would accept some of the other texts."""
    assert parse_number(text) == NUMBERS.get(text)


@pytest.mark.parametrize(
    ("text", "code"),
    [("0", 0), ("137", 137), ("-9", -9), ("", None), ("x", None), ("1.0", None), ("1\n", None), ("9" * 10, None)],
)
def test_exit_codes(text: str, code: int | None) -> None:
    """A positive or negative integer. Any other text is an unknown exit code."""
    assert parse_exit_code(text) == code


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, NO_TIMESTAMP), (1772532005.125, "2026-03-03T10:00:05.125Z"), (1772532005, "2026-03-03T10:00:05.000Z")],
)
def test_timestamps_have_milliseconds_and_a_z(seconds: float, text: str) -> None:
    """Always three digits, even zeros."""
    assert iso_timestamp(seconds) == text


BAD_CHARACTERS: Final = [*"*?[{:;/\\ \n\r\0\x7f\x85\u00e9\u0661\u017f\u212a\u2028\ufffd", "\r\n"]


@pytest.mark.parametrize(
    ("text", "is_valid"),
    [
        *((each, True) for each in ("wf_abc123", "a", "A" * 128, "0.9-_", "7f3c2a4e-0d1b-4c55-9a5e-0b8f6a1d2c3e")),
        *((each, False) for each in ("", "A" * 129, ".a", "-a", "_a", "..")),
        *((text, False) for each in BAD_CHARACTERS for text in (f"a{each}", f"a{each}b", f"{each}b")),
    ],
    ids=ascii,
)
def test_identifiers_are_safe_in_keys_paths_patterns_and_log_lines(text: str, is_valid: bool) -> None:
    assert bool(IDENTIFIER.fullmatch(text)) is is_valid


@pytest.mark.parametrize(
    ("entries", "after", "first", "found"),
    [
        pytest.param([1, 2, 3], 0, 1, [1, 2, 3], id="nothing missing"),
        pytest.param([], 5, 9, [], id="nothing at all"),
        pytest.param([5, 6], 4, 1, [5, 6], id="from the middle"),
        pytest.param([MAX_NUMBER], MAX_NUMBER - 1, 1, [MAX_NUMBER], id="the largest number"),
        pytest.param([5], 0, 5, [(1, 4, "trimmed"), 5], id="trimmed"),
        pytest.param([5], 0, 1, [(1, 4, "missing"), 5], id="missing"),
        pytest.param([9], 0, 5, [(1, 4, "trimmed"), (5, 8, "missing"), 9], id="trimmed, then missing"),
        pytest.param([9], 6, 5, [(7, 8, "missing"), 9], id="missing above what was trimmed"),
        pytest.param([9], 3, 100, [(4, 8, "trimmed"), 9], id="trimmed further while it was read"),
        pytest.param([1, 2, 4, 7], 0, 1, [1, 2, (3, 3, "missing"), 4, (5, 6, "missing"), 7], id="gaps"),
        pytest.param([3, 4, 5], 4, 1, ["out of sequence 3-0", "out of sequence 4-0", 5], id="not after the cursor"),
        pytest.param(
            [5, raw("5-1", "message", "x"), raw("5-2", "event", "end"), 6],
            4,
            1,
            [5, "out of sequence 5-1", "out of sequence 5-2", 6],
            id="several ids with a number",
        ),
        pytest.param([raw("5-1", "message", "x")], 4, 1, [5], id="only a second id with a number"),
        pytest.param(
            [1, raw("1772532005123-0", "message", "x")],
            1772532005121,
            1,
            ["out of sequence 1-0", (1772532005122, 1772532005122, "missing"), 1772532005123],
            id="an id made by the server",
        ),
        pytest.param([1, raw("2-0", "event", "end"), 3, raw("4-0", "event", "end")], 0, 1, [1, "end 2"], id="the end"),
        pytest.param([raw("1-0", "event", "ended", "message", "x")], 0, 1, [1], id="another event"),
        *(
            pytest.param([1, raw("2-0", *fields), 3], 0, 1, [1, (2, 2, "malformed"), 3], id=f"no message: {fields}")
            for fields in (["foo", "bar"], ["timestamp", NOW, "stream", "stdout"], ["event", "start"], [])
        ),
    ],
)
def test_every_number_is_accounted_for(entries: list[Any], after: int, first: int, found: list[object]) -> None:
    """Each number is a line, the end, or in a gap with the right reason. Here a number means a valid line."""
    assert numbers([line(each) if isinstance(each, int) else each for each in entries], after, first) == found


@pytest.mark.parametrize(
    ("said", "start"),
    [*((each, 3) for each in "123"), ("4", 4), *((each, 5) for each in ("5", "6", "0", "x", "\0", None))],
)
def test_lost_lines_begin_after_those_that_were_read(said: str | None, start: int) -> None:
    """Whatever the entry says, if anything. Numbers in between are missing."""
    lost = (b"5-0", [b"event", b"lost", *([b"from", said.encode()] if said is not None else [])])
    missing = [Gap(3, start - 1, "missing")] if start > 3 else []
    assert [*read_entries([lost], 2)] == [*missing, Gap(start, 5, "lost")]


@pytest.mark.parametrize("entry_id", ["0-1", "1000000000000000-0", "18446744073709551615-18446744073709551615"])
def test_an_id_that_is_not_a_valid_number_is_out_of_sequence(entry_id: str) -> None:
    """Clients never get a number that is not a valid offset."""
    entries = [(entry_id.encode(), [b"message", b"x"]), (b"1-0", [b"message", b"after"])]
    first, *others = read_entries(entries, 0)
    # Nothing can follow an id beyond the largest number.
    is_last = not entry_id.startswith("0")
    assert (first, len(others)) == (OutOfSequence(entry_id, is_last), int(not is_last))


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        (("message", "x"), Line(1, NO_TIMESTAMP, "x", "stdout")),
        # In any order, with any other fields.
        (("partial", "1", "stream", "stderr", "message", "x", "timestamp", NOW), Line(1, NOW, "x", "stderr", True)),
        *(
            (("timestamp", NOW, "message", "x", "stream", stream, *more), Line(1, NOW, "x", shown))
            for more in ((), ("host", "a"))
            for stream, shown in (
                ("stderr",) * 2,
                ("stdout",) * 2,
                ("STDERR", "stdout"),
                ("", "stdout"),
                (b"\xff", "stdout"),
            )
        ),
        *((("message", "x", "partial", value), Line(1, NO_TIMESTAMP, "x", "stdout")) for value in ("0", "true", "")),
        (
            ("timestamp", b"\xff", "message", b"a\xff\xed\xa0\x80\0", "stream", "stdout"),
            Line(1, "\ufffd", "a\ufffd\ufffd\ufffd\ufffd\0", "stdout"),
        ),
        (("message", b"\xc3", "timestamp", b"\xfe"), Line(1, "\ufffd", "\ufffd", "stdout")),
    ],
)
def test_a_foreign_line(fields: tuple[str | bytes, ...], expected: Line) -> None:
    """Only the message is required. Invalid UTF-8 is replaced, and any unknown stream means stdout."""
    assert list(read_entries([raw("1-0", *fields)], 0)) == [expected]


@pytest.mark.parametrize(
    ("fields", "end"),
    [
        # As our runner writes it.
        (
            ["status", "FAILED", "lines", "6", "dropped", "2", "timestamp", NOW, "exit_code", "137"],
            End(7, Status.FAILED, 137, 6, 2, NOW),
        ),
        ([], End(7, Status.COMPLETED, None, 6, 0, None)),
        (["status", "COMPLETED", "exit_code", "0"], End(7, Status.COMPLETED, 0, 6, 0, None)),
        (["exit_code", "0"], End(7, Status.COMPLETED, 0, 6, 0, None)),
        (["exit_code", "3"], End(7, Status.FAILED, 3, 6, 0, None)),
        (["exit_code", "-9"], End(7, Status.FAILED, -9, 6, 0, None)),
        (["exit_code", "oops"], End(7, Status.FAILED, None, 6, 0, None)),
        (["status", "RUNNING"], End(7, Status.COMPLETED, None, 6, 0, None)),
        (["status", "done", "exit_code", "1"], End(7, Status.FAILED, 1, 6, 0, None)),
        (["status", b"\xff"], End(7, Status.COMPLETED, None, 6, 0, None)),
        (["status", "LOST", "timestamp", NOW], End(7, Status.LOST, None, 6, 0, NOW)),
        (["status", "CANCELED", "exit_code", "0"], End(7, Status.CANCELED, 0, 6, 0, None)),
        (["lines", "x", "dropped", "-1"], End(7, Status.COMPLETED, None, 6, 0, None)),
        (["lines", "5000", "dropped", "4"], End(7, Status.COMPLETED, None, 5000, 4, None)),
    ],
)
def test_a_terminal_entry(fields: list[str | bytes], end: End) -> None:
    """Missing and invalid fields get defaults."""
    assert list(read_entries([raw("7-0", "event", "end", *fields)], 6)) == [end]


keys = st.sampled_from([b"timestamp", b"message", b"stream", b"event", b"status", b"exit_code", b"lines", b"partial"])
values = st.sampled_from([b"end", b"", b"stderr", b"1", b"COMPLETED", b"\xff\x00"]) | st.binary(max_size=6)
fields = st.lists(st.tuples(keys, values), max_size=4).map(lambda pairs: [item for pair in pairs for item in pair])
small, any_number = st.integers(0, 12), st.integers(0, 2**64 - 1)
entry_ids = st.tuples(small | any_number, st.integers(0, 2))


@given(contents=st.lists(st.tuples(entry_ids, fields), max_size=12), after=st.integers(0, 8), first=st.integers(0, 14))
def test_numbers_are_contiguous_whatever_the_entries_are(
    contents: list[tuple[tuple[int, int], list[bytes]]], after: int, first: int
) -> None:
    """After the offset, every number appears once and in order, as a line, in a gap, or as the end: one event each.

    Up to the end, no number is left out.
    """
    contents = sorted(contents, key=itemgetter(0))
    expected, ended = after + 1, False
    for entry in read_entries([(b"%d-%d" % entry_id, fields) for entry_id, fields in contents], after, first):
        if isinstance(entry, OutOfSequence):
            continue
        ended = isinstance(entry, End)
        number, last = (entry.first, entry.last) if isinstance(entry, Gap) else (entry.sequence_num,) * 2
        assert expected == number <= last
        expected = last + 1
        frame = entry.to_frame(30) if isinstance(entry, End) else entry.to_frame()
        assert len(list(Decoder().feed(frame))) == 1
    assert ended or expected > max([after, *(number for (number, _), _ in contents if number <= MAX_NUMBER)])


@pytest.mark.parametrize(
    ("ids", "after", "answer"),
    [
        (["1-0", "2-0", "3-0"], 0, True),
        ([], 7, True),
        (["8-0"], 7, True),
        (["2-0", "3-0"], 0, False),
        (["1-0", "3-0"], 0, False),
        (["2-0", "2-1"], 0, False),
        (["9999999999999999-0"], 0, False),
    ],
)
def test_in_sequence(ids: list[str], after: int, answer: bool) -> None:
    """True if the entries continue after ``after`` without a gap. Only the first and last entries are checked."""
    entries: list[Any] = [raw(entry_id, "message", "x") for entry_id in ids]

    assert in_sequence(entries, after) is answer
