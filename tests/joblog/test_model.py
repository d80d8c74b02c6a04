"""The values of a log: lines in Redis, SSE and JSON, the parser of numbers, and arbitrary entries."""

import json
from collections.abc import Sequence
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
from tests.support.reading import redis_fields

NOW = "2026-03-03T10:00:05.123Z"
Raw = tuple[bytes, list[bytes]]

#: The timestamp of a line whose runner gave none.
NO_TIMESTAMP: Final = "1970-01-01T00:00:00.000Z"


def raw(entry_id: str, *fields: str | bytes) -> Raw:
    """An entry as the store returns it."""
    return entry_id.encode(), [field if isinstance(field, bytes) else field.encode() for field in fields]


def line(number: int) -> Raw:
    """The entry of a valid line."""
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
    st.one_of(st.just(NOW), st.text()),
    st.text(),
    st.sampled_from(["stdout", "stderr"]),
    st.booleans(),
)


@given(line=lines)
@example(line=Line(1, NOW, "\0\u2028\x85\x0b\r\n\nevent: end\ndata: x\n\n", "stderr"))
@example(line=Line(MAX_NUMBER, NOW, "", "stdout", partial=True))
def test_a_line_can_be_read_back_from_redis(line: Line) -> None:
    """From its Redis fields."""
    entry = raw(f"{line.sequence_num}-0", *redis_fields(line))

    assert list(read_entries([entry], line.sequence_num - 1)) == [line]


@given(line=lines)
@example(line=Line(1, NOW, "\0\u2028\x85\x0b\r\n\nevent: end\ndata: x\n\nid: 9\n\n", "stderr"))
def test_a_line_can_be_read_back_from_sse(line: Line) -> None:
    """Its frame is one event, whose id is the number and whose data is the line."""
    [event] = Decoder().feed(line.to_frame())

    assert (event.event, event.id) == ("log", str(line.sequence_num))
    assert Line.from_json(json.loads(event.data)) == line


@given(line=lines)
def test_a_line_can_be_read_back_from_json(line: Line) -> None:
    """The keys are in the published order; ``partial`` is present only if true."""
    keys = ["timestamp", "message", "sequence_num", "stream"] + ["partial"] * line.partial

    assert list(line.to_json()) == keys
    assert Line.from_json(json.loads(json.dumps(line.to_json()))) == line


def test_the_published_bytes_of_a_line() -> None:
    """Compact JSON with keys in the published order. The id comes last."""
    message = "Starting workflow execution"
    frame = Line(1, NOW, message, "stdout").to_frame()

    assert frame == (
        b"event: log\n"
        b'data: {"timestamp":"2026-03-03T10:00:05.123Z","message":"Starting workflow execution",'
        b'"sequence_num":1,"stream":"stdout"}\n'
        b"id: 1\n\n"
    )
    assert b'"stream":"stdout","partial":true}\n' in Line(1, NOW, message, "stdout", partial=True).to_frame()


def test_the_published_bytes_of_a_gap() -> None:
    """It has no id: only lines and the end move a client's cursor."""
    assert Gap(2, 900, "trimmed").to_frame() == b'event: gap\ndata: {"from":2,"to":900,"reason":"trimmed"}\n\n'


@pytest.mark.parametrize("status", [Status.COMPLETED, Status.FAILED, Status.CANCELED])
def test_the_published_bytes_of_the_end(status: Status) -> None:
    """They are equal for all of these statuses."""
    end = End(1548, status, 0, 1547, 0, NOW)

    assert end.to_frame(30) == b'event: end\ndata: {"status":"stream_ended"}\nid: 1548\n\n'


def test_the_published_bytes_of_a_lost_job() -> None:
    """An error event with the id of the end, so the client's next reconnect gets 204."""
    assert End(8, Status.LOST, None, 7, 0, NOW).to_frame(30) == (
        b"event: error\ndata: runner lost: nothing heard from it for 30 s\nid: 8\n\n"
    )


def test_the_published_bytes_of_a_running_job() -> None:
    """The ``job`` event has what is known while the job runs."""
    job = Job(JobRef("wf_1", "job_1"), Status.RUNNING, attempt=1, started_at=NOW, first=1, last=1200)

    assert job.to_frame() == (
        b"event: job\n"
        b'data: {"status":"RUNNING","attempt":1,"first_sequence_num":1,"last_sequence_num":1200,'
        b'"started_at":"2026-03-03T10:00:05.123Z","labels":{}}\n\n'
    )


def test_the_published_bytes_of_an_ended_job() -> None:
    """Four more keys; ``exit_code`` is null if unknown."""
    job = Job(JobRef("w", "j"), Status.LOST, 2, None, NOW, NOW, None, 7, 3, 1, 7, End(8, Status.LOST, None, 7, 3, NOW))

    assert job.to_frame() == (
        b"event: job\n"
        b'data: {"status":"LOST","attempt":2,"first_sequence_num":1,"last_sequence_num":7,'
        b'"started_at":"2026-03-03T10:00:05.123Z","exit_code":null,"lines":7,"dropped":3,'
        b'"finished_at":"2026-03-03T10:00:05.123Z","labels":{}}\n\n'
    )


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


@pytest.mark.parametrize("text", [*SIGNED, *SPACED, *SPELT, *NOT_ASCII, *LONG], ids=lambda text: ascii(text)[:24])
def test_a_text_that_is_not_a_number_is_refused(text: str) -> None:
    """Some of these texts would be accepted by ``int``."""
    assert parse_number(text) is None


@pytest.mark.parametrize(
    ("text", "number"),
    [("0", 0), ("1", 1), ("0007", 7), ("999999999999999", MAX_NUMBER), ("000000000000000", 0), ("1000000000", 10**9)],
)
def test_a_number_is_accepted(text: str, number: int) -> None:
    """One to fifteen digits, with any leading zeros."""
    assert parse_number(text) == number


@given(text=st.text())
def test_a_parsed_number_is_its_digits(text: str) -> None:
    """The parser raises no error, and accepts only ASCII digits."""
    number = parse_number(text)

    assert number is None or (text.lstrip("0") or "0") == str(number)


@pytest.mark.parametrize(
    ("text", "code"),
    [("0", 0), ("137", 137), ("-9", -9), ("", None), ("x", None), ("1.0", None), ("1\n", None), ("9" * 10, None)],
)
def test_exit_codes(text: str, code: int | None) -> None:
    """A positive or negative integer. Any other text is an unknown exit code."""
    assert parse_exit_code(text) == code


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, NO_TIMESTAMP),
        (1772532005.125, "2026-03-03T10:00:05.125Z"),
        (1772532005, "2026-03-03T10:00:05.000Z"),
    ],
)
def test_timestamps_have_milliseconds_and_a_z(seconds: float, text: str) -> None:
    """Always three digits, even zeros."""
    assert iso_timestamp(seconds) == text


@pytest.mark.parametrize("text", ["wf_abc123", "a", "A" * 128, "0.9-_", "7f3c2a4e-0d1b-4c55-9a5e-0b8f6a1d2c3e"])
def test_good_identifiers(text: str) -> None:
    """Up to 128 letters, digits, dots, underscores and dashes."""
    assert IDENTIFIER.fullmatch(text)


@pytest.mark.parametrize("text", ["", "A" * 129, ".a", "-a", "_a", "..", *"*?%{", "[a]", "{x}", "a/b", "a:b", "a;x=1"])
def test_bad_identifiers(text: str) -> None:
    """They are empty or too long, or have a special meaning in keys, paths or patterns."""
    assert not IDENTIFIER.fullmatch(text)


@pytest.mark.parametrize("character", [*" \n\r\0\x7f\x85\u00e9\u0661\u017f\u212a\u2028\ufffd", "\r\n"], ids=ascii)
def test_identifiers_are_printable_ascii(character: str) -> None:
    """Other characters are refused everywhere, so that no identifier can forge a line of our log."""
    for text in (f"a{character}", f"a{character}b", f"{character}b"):
        assert not IDENTIFIER.fullmatch(text)


def test_only_two_statuses_are_not_terminal() -> None:
    assert [status for status in Status if not status.terminal] == [Status.PENDING, Status.RUNNING]


@pytest.mark.parametrize(
    ("ids", "after", "first", "found"),
    [
        pytest.param([1, 2, 3], 0, 1, [1, 2, 3], id="nothing missing"),
        pytest.param([], 5, 9, [], id="nothing at all"),
        pytest.param([5, 6], 4, 1, [5, 6], id="from the middle"),
        pytest.param([5], 0, 5, [(1, 4, "trimmed"), 5], id="trimmed"),
        pytest.param([5], 0, 1, [(1, 4, "missing"), 5], id="missing"),
        pytest.param([9], 0, 5, [(1, 4, "trimmed"), (5, 8, "missing"), 9], id="trimmed, then missing"),
        pytest.param([9], 6, 5, [(7, 8, "missing"), 9], id="missing above what was trimmed"),
        pytest.param([9], 3, 100, [(4, 8, "trimmed"), 9], id="trimmed further while it was read"),
        pytest.param([1, 2, 4, 7], 0, 1, [1, 2, (3, 3, "missing"), 4, (5, 6, "missing"), 7], id="gaps"),
        pytest.param([3, 4, 5], 4, 1, ["out of sequence 3-0", "out of sequence 4-0", 5], id="not after the cursor"),
    ],
)
def test_every_number_is_accounted_for(ids: list[int], after: int, first: int, found: list[object]) -> None:
    """Each number is a line, or in a gap with the right reason."""
    assert numbers([line(number) for number in ids], after, first) == found


@pytest.mark.parametrize(("said", "start"), [("1", 3), ("2", 3), ("3", 3), ("4", 4), ("5", 5), ("6", 5), ("x", 5)])
def test_lost_lines_begin_after_those_that_were_read(said: str, start: int) -> None:
    """Whatever the entry says. Numbers in between are missing."""
    lost = (b"5-0", [b"event", b"lost", b"from", said.encode()])
    missing = [Gap(3, start - 1, "missing")] if start > 3 else []
    assert [*read_entries([lost], 2)] == [*missing, Gap(start, 5, "lost")]


def test_a_second_id_with_the_same_number_is_out_of_sequence() -> None:
    """``5-1`` after ``5-0`` is reported, and the numbering continues without it."""
    entries = [line(5), raw("5-1", "message", "x"), raw("5-2", "event", "end"), line(6)]

    assert numbers(entries, after=4) == [5, "out of sequence 5-1", "out of sequence 5-2", 6]


def test_an_id_with_a_second_part_may_be_a_line() -> None:
    """``5-1`` without ``5-0`` is line 5."""
    assert numbers([raw("5-1", "message", "x")], after=4) == [5]


def test_an_id_made_by_the_server_is_a_number_after_a_large_gap() -> None:
    """``XADD … *`` generates ids from the time in ms. All earlier numbers were never written."""
    entries = [line(1), raw("1772532005123-0", "message", "x"), raw("1772532005123-1", "message", "y")]

    assert numbers(entries) == [1, (2, 1772532005122, "missing"), 1772532005123, "out of sequence 1772532005123-1"]


@pytest.mark.parametrize("entry_id", ["0-1", "1000000000000000-0", "18446744073709551615-18446744073709551615"])
def test_an_id_that_is_not_a_valid_number_is_out_of_sequence(entry_id: str) -> None:
    """Clients never get a number that is not a valid offset."""
    assert numbers([raw(entry_id, "message", "x")]) == [f"out of sequence {entry_id}"]
    entries = [(entry_id.encode(), [b"message", b"x"]), (b"1-0", [b"message", b"after"])]
    first, *others = read_entries(entries, 0)
    # Nothing can follow an id beyond the largest number.
    is_last = not entry_id.startswith("0")
    assert (first, len(others)) == (OutOfSequence(entry_id, is_last), int(not is_last))


def test_the_largest_number_is_still_a_line() -> None:
    """It has fifteen digits."""
    assert numbers([line(MAX_NUMBER)], after=MAX_NUMBER - 1) == [MAX_NUMBER]


def test_missing_fields_of_a_foreign_line_have_defaults() -> None:
    """Only the message is required."""
    assert list(read_entries([raw("1-0", "message", "x")], 0)) == [Line(1, NO_TIMESTAMP, "x", "stdout")]


@pytest.mark.parametrize(
    ("stream", "shown"),
    [("stderr", "stderr"), ("stdout", "stdout"), ("STDERR", "stdout"), ("", "stdout"), (b"\xff", "stdout")],
)
@pytest.mark.parametrize("more", [(), ("host", "a")], ids=["plain", "with another field"])
def test_the_stream_of_a_foreign_line_is_stdout_or_stderr(
    stream: str | bytes, shown: str, more: tuple[str, ...]
) -> None:
    """Any other name means stdout. Unknown fields are ignored."""
    entry = raw("1-0", "timestamp", NOW, "message", "x", "stream", stream, *more)

    assert list(read_entries([entry], 0)) == [Line(1, NOW, "x", shown)]


def test_fields_in_any_order() -> None:
    """As a foreign runner may write them."""
    entry = raw("1-0", "partial", "1", "stream", "stderr", "message", "x", "timestamp", NOW)

    assert list(read_entries([entry], 0)) == [Line(1, NOW, "x", "stderr", partial=True)]


@pytest.mark.parametrize(("value", "partial"), [("1", True), ("0", False), ("true", False), ("", False)])
def test_only_a_partial_of_1_marks_a_partial_line(value: str, partial: bool) -> None:
    [entry] = read_entries([raw("1-0", "message", "x", "partial", value)], 0)

    assert entry == Line(1, NO_TIMESTAMP, "x", "stdout", partial)


def test_bytes_that_are_not_utf8_are_replaced() -> None:
    """In every field, in any order of fields."""
    usual = raw("1-0", "timestamp", b"\xff", "message", b"a\xff\xed\xa0\x80\0", "stream", "stdout")
    other = raw("2-0", "message", b"\xc3", "timestamp", b"\xfe")

    assert list(read_entries([usual, other], 0)) == [
        Line(1, "\ufffd", "a\ufffd\ufffd\ufffd\ufffd\0", "stdout"),
        Line(2, "\ufffd", "\ufffd", "stdout"),
    ]


@pytest.mark.parametrize("fields", [["foo", "bar"], ["timestamp", NOW, "stream", "stdout"], ["event", "start"], []])
def test_an_entry_without_a_message_is_a_gap(fields: list[str]) -> None:
    """With its number and the reason ``malformed``, but without its content."""
    assert numbers([line(1), raw("2-0", *fields), line(3)]) == [1, (2, 2, "malformed"), 3]


def test_nothing_follows_the_end() -> None:
    """Entries after the terminal entry are ignored."""
    entries = [line(1), raw("2-0", "event", "end"), line(3), raw("4-0", "event", "end")]

    assert numbers(entries) == [1, "end 2"]


def test_a_complete_terminal_entry() -> None:
    """As written by our runner."""
    fields = "event", "end", "status", "FAILED", "lines", "6", "dropped", "2", "timestamp", NOW, "exit_code", "137"

    assert list(read_entries([raw("7-0", *fields)], 6)) == [End(7, Status.FAILED, 137, 6, 2, NOW)]


@pytest.mark.parametrize(
    ("fields", "end"),
    [
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
def test_an_incomplete_terminal_entry(fields: list[str | bytes], end: End) -> None:
    """Missing and invalid fields get defaults."""
    assert list(read_entries([raw("7-0", "event", "end", *fields)], 6)) == [end]


def test_a_line_may_have_a_field_named_event() -> None:
    """Only the value ``end`` ends a log."""
    assert numbers([raw("1-0", "event", "ended", "message", "x")]) == [1]


keys = st.sampled_from([b"timestamp", b"message", b"stream", b"event", b"status", b"exit_code", b"lines", b"partial"])
values = st.sampled_from([b"end", b"", b"stderr", b"1", b"COMPLETED", b"\xff\x00"]) | st.binary(max_size=6)
fields = st.lists(st.tuples(keys, values), max_size=4).map(lambda pairs: [item for pair in pairs for item in pair])
small, any_number = st.integers(0, 12), st.integers(0, 2**64 - 1)
entry_ids = st.tuples(small | any_number, st.integers(0, 2))


@given(
    contents=st.lists(st.tuples(entry_ids, fields), max_size=12),
    after=st.integers(0, 8),
    first=st.integers(0, 14),
)
def test_numbers_are_contiguous_whatever_the_entries_are(
    contents: list[tuple[tuple[int, int], list[bytes]]], after: int, first: int
) -> None:
    """After the offset, every number appears once and in order, as a line, in a gap, or as the end."""
    contents = sorted(contents, key=itemgetter(0))
    entries = [(b"%d-%d" % entry_id, fields) for entry_id, fields in contents]
    expected = after + 1

    for entry in read_entries(entries, after, first):
        if isinstance(entry, Gap):
            assert expected == entry.first <= entry.last
            expected = entry.last + 1
        elif not isinstance(entry, OutOfSequence):
            assert entry.sequence_num == expected
            expected += 1


@given(ids=st.lists(entry_ids, max_size=12, unique=True), after=st.integers(0, 8), first=st.integers(0, 14))
def test_no_number_is_left_out(ids: list[tuple[int, int]], after: int, first: int) -> None:
    """In stored order, every number up to the last valid one is a line or in a gap."""
    entries = [raw(f"{number}-{part}", "message", "x") for number, part in sorted(ids)]
    known = [after, *(number for number, _ in ids if after < number <= MAX_NUMBER)]

    read = [entry for entry in read_entries(entries, after, first) if not isinstance(entry, OutOfSequence)]
    last_numbers = [entry.last if isinstance(entry, Gap) else entry.sequence_num for entry in read]
    assert max(last_numbers, default=after) == max(known)


@given(contents=st.lists(st.tuples(entry_ids, fields), max_size=12), after=st.integers(0, 8))
def test_every_value_that_was_read_can_be_sent(contents: list[tuple[tuple[int, int], list[bytes]]], after: int) -> None:
    """As one event."""
    for entry in read_entries([(b"%d-%d" % entry_id, fields) for entry_id, fields in contents], after):
        if not isinstance(entry, OutOfSequence):
            frame = entry.to_frame(30) if isinstance(entry, End) else entry.to_frame()
            assert len(list(Decoder().feed(frame))) == 1


@pytest.mark.parametrize(
    ("ids", "after", "answer"),
    [
        (["1-0", "2-0", "3-0"], 0, True),
        ([], 7, True),
        (["8-0"], 7, True),
        (["2-0", "3-0"], 0, False),
        (["1-0", "3-0"], 0, False),
        (["9999999999999999-0"], 0, False),
    ],
)
def test_in_sequence(ids: list[str], after: int, answer: bool) -> None:
    """True if the entries continue after ``after`` without a gap. Only the last entry is checked."""
    entries: list[Any] = [raw(entry_id, "message", "x") for entry_id in ids]

    assert in_sequence(entries, after) is answer
