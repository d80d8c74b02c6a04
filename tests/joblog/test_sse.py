"""The codec of Server-Sent Events, by the WHATWG standard's own examples and by everything that cuts bytes."""

from collections.abc import Iterable
from itertools import pairwise

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from chronoverse.joblog import sse
from chronoverse.joblog.sse import Decoder, Event

BOM = b"\xef\xbb\xbf"


def decode(*chunks: bytes, decoder: Decoder | None = None) -> list[Event]:
    """All events of a stream that arrives in ``chunks``."""
    decoder = decoder or Decoder()
    return [event for chunk in chunks for event in decoder.feed(chunk)]


def cut(stream: bytes, places: Iterable[int]) -> list[bytes]:
    """``stream`` in pieces, cut at ``places``."""
    bounds = [0, *sorted(place for place in places if place <= len(stream)), len(stream)]
    return [stream[start:stop] for start, stop in pairwise(bounds)]


@pytest.mark.parametrize(
    ("stream", "events"),
    [
        pytest.param(
            b"data: This is the first message.\n\n"
            b"data: This is the second message, it\ndata: has two lines.\n\n"
            b"data: This is the third message.\n\n",
            [
                Event("message", "This is the first message.", ""),
                Event("message", "This is the second message, it\nhas two lines.", ""),
                Event("message", "This is the third message.", ""),
            ],
            id="messages",
        ),
        pytest.param(
            b"event: add\ndata: 73857293\n\nevent: remove\ndata: 2153\n\nevent: add\ndata: 113411\n\n",
            [Event("add", "73857293", ""), Event("remove", "2153", ""), Event("add", "113411", "")],
            id="event types",
        ),
        pytest.param(
            b"data: YHOO\ndata: +2\ndata: 10\n\n",
            [Event("message", "YHOO\n+2\n10", "")],
            id="three lines of data",
        ),
        pytest.param(
            b": test stream\n\ndata: first event\nid: 1\n\ndata:second event\nid\n\ndata:  third event\n\n",
            [
                Event("message", "first event", "1"),
                Event("message", "second event", ""),
                Event("message", " third event", ""),
            ],
            id="comment, ids, one space taken away",
        ),
        pytest.param(
            b"data\n\ndata\ndata\n\ndata:",
            [Event("message", "", ""), Event("message", "\n", "")],
            id="data without a value, a block that never ends",
        ),
        pytest.param(
            b"data:test\n\ndata: test\n\n",
            [Event("message", "test", "")] * 2,
            id="the space after the colon is no part of the value",
        ),
    ],
)
def test_the_standards_examples(stream: bytes, events: list[Event]) -> None:
    """Each example stream of the standard's section 9.2.6 gives the events it names."""
    assert decode(stream) == events


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"], ids=["LF", "CRLF", "CR"])
def test_any_line_end_at_any_chunk_boundary(end: bytes) -> None:
    """The three line ends mean the same wherever two chunks meet; a last CR is settled by the byte behind it."""
    stream = b"event: log\ndata: a\ndata: b\nid: 7\n\n: comment\n\ndata: c\n\n".replace(b"\n", end) + b":"

    for place in range(len(stream) + 1):
        assert decode(*cut(stream, [place])) == [Event("log", "a\nb", "7"), Event("message", "c", "7")]


def test_one_byte_at_a_time() -> None:
    """A stream with every line end and characters of every length comes through bytewise."""
    stream = BOM + "data: aé€😀\r\ndata: b\rid: 1\n\r\ndata: c\n\n".encode()

    assert decode(*(bytes([byte]) for byte in stream)) == [
        Event("message", "aé€😀\nb", "1"),
        Event("message", "c", "1"),
    ]


def test_mixed_line_ends_make_an_empty_line() -> None:
    """LF CR is two line ends, CR LF one."""
    assert decode(b"data: a\n\rdata: b\r\n\r\n") == [Event("message", "a", ""), Event("message", "b", "")]


def test_a_byte_order_mark_is_dropped_only_at_the_very_start() -> None:
    """One mark before the first line is no part of it; another one makes the field an unknown one."""
    once, twice = BOM + b"data: a\n\n", BOM + BOM + b"data: b\n\n"

    assert [decode(*cut(once, [place])) for place in range(5)] == [[Event("message", "a", "")]] * 5
    assert decode(twice) == []
    assert decode(b"data: a\n\n", BOM + b"data: b\n\n") == [Event("message", "a", "")]


def test_what_begins_like_a_byte_order_mark_and_is_none() -> None:
    """Its bytes are not swallowed."""
    assert decode(b"\xef", b"\xbbdata: a\ndata: b\n\n") == [Event("message", "b", "")]
    assert decode(b"", b"\xef", b"", b"\xbb", b"\xbf", b"data: b\n\n") == [Event("message", "b", "")]


def test_an_id_with_nul_is_ignored() -> None:
    """The field is skipped, the id before it stays, its block still counts."""
    assert decode(b"id: 1\ndata: a\n\nid: 2\0\ndata: b\n\n") == [Event("message", "a", "1"), Event("message", "b", "1")]


def test_an_id_lasts_until_the_next_one() -> None:
    """Blocks without an id carry the last one on; an empty one takes it away."""
    decoder = Decoder("4")
    events = decode(b"data: a\n\nid: 5\ndata: b\n\ndata: c\n\nid:\ndata: d\n\n", decoder=decoder)

    assert [event.id for event in events] == ["4", "5", "5", ""]
    assert decoder.last_event_id == ""


def test_an_id_only_block_moves_the_cursor_and_dispatches_nothing() -> None:
    """Which is what ``cursor`` is for."""
    decoder = Decoder("7")

    assert decode(sse.cursor(9), decoder=decoder) == []
    assert decoder.last_event_id == "9"


def test_a_torn_block_does_not_move_the_cursor() -> None:
    """Wherever a frame is cut off, the client resumes before it."""
    stream = sse.frame("log", b"{}", id=12)

    for length in range(len(stream)):
        decoder = Decoder("11")
        assert decode(stream[:length], decoder=decoder) == []
        assert decoder.last_event_id == "11"


def test_an_event_name_lasts_for_its_block_only() -> None:
    """Also when the block had no data and was dropped."""
    assert decode(b"event: log\ndata: a\n\ndata: b\n\nevent: end\n\ndata: c\n\n") == [
        Event("log", "a", ""),
        Event("message", "b", ""),
        Event("message", "c", ""),
    ]


def test_heartbeats_dispatch_nothing() -> None:
    """Before, between and after frames, and inside a block too."""
    frames = sse.frame("log", b"a", id=1), sse.frame("log", b"b", id=2)
    stream = sse.HEARTBEAT + frames[0] + 3 * sse.HEARTBEAT + b"data: x\n" + sse.HEARTBEAT + b"\n" + frames[1] + b": c\n"

    assert decode(stream) == [Event("log", "a", "1"), Event("message", "x", "1"), Event("log", "b", "2")]


def test_unknown_fields_and_lines_without_a_colon_are_ignored() -> None:
    """As the standard says; names are not trimmed and not folded."""
    assert decode(b"foo: 1\nbar\nData: 2\n data: 3\ndata : 4\n\n") == []


@pytest.mark.parametrize("value", ["3000", "0", "007"])
def test_retry_is_a_number_of_milliseconds(value: str) -> None:
    """It dispatches nothing."""
    decoder = Decoder()

    assert decode(f"retry: {value}\n\n".encode(), decoder=decoder) == []
    assert decoder.retry_ms == int(value)


@pytest.mark.parametrize("value", ["", "-1", "+1", "1.5", "1 ", " 1", "1e3", "1_0", "a", "\uff11", "\u00b2"], ids=ascii)
def test_retry_takes_ascii_digits_only(value: str) -> None:
    """Anything else leaves the reconnection time alone."""
    decoder = Decoder()

    assert decode(b"retry: 5\n", f"retry: {value}\n\n".encode(), decoder=decoder) == []
    assert decoder.retry_ms == 5


def test_the_retry_block() -> None:
    """It sets the time, dispatches nothing and leaves the id alone."""
    decoder = Decoder("3")

    assert decode(sse.retry(2417), decoder=decoder) == []
    assert (decoder.retry_ms, decoder.last_event_id) == (2417, "3")


@pytest.mark.parametrize("character", ["\u2028", "\u2029", "\x85", "\x0b", "\x0c", "\x1c", "\x1d", "\x1e", "\0"])
def test_only_cr_and_lf_end_a_line(character: str) -> None:
    """What ``str.splitlines`` takes for a line end is data."""
    assert decode(sse.frame("log", f"a{character}b".encode())) == [Event("log", f"a{character}b", "")]


def test_bytes_that_are_not_utf8_are_replaced() -> None:
    """They never stop a stream."""
    assert decode(b"data: a\xff\xc3\n", b"data: \xe2\x82\n\n") == [Event("message", "a\ufffd\ufffd\n\ufffd", "")]


def test_the_bytes_of_a_frame() -> None:
    """Event, data, retry, and the id last."""
    assert sse.frame("connected", b"{}", retry_ms=2417) == b"event: connected\ndata: {}\nretry: 2417\n\n"
    assert sse.frame("end", b"{}", id=4, retry_ms=1) == b"event: end\ndata: {}\nretry: 1\nid: 4\n\n"
    assert sse.frame("log", b"", id=0) == b"event: log\ndata: \nid: 0\n\n"


@pytest.mark.parametrize(
    ("text", "folded"),
    [
        ("plain", b"plain"),
        ("a\nb", b"a b"),
        ("a\r\n\r\nb\rc", b"a b c"),
        ("\nevent: end\n\n", b"event: end"),
        ("é\u2028b", "é\u2028b".encode()),
        ("\ud800", b"?"),
        ("\r\n", b""),
    ],
)
def test_folding_makes_one_line_of_data(text: str, folded: bytes) -> None:
    """No text can end its line, and so no text can forge a field."""
    assert sse.fold(text) == folded


names = st.from_regex(r"[a-z]{1,8}", fullmatch=True)
one_line = st.text(st.characters(codec="utf-8", exclude_characters="\r\n"))
frames = st.lists(st.tuples(names, one_line, st.none() | st.integers(0, 10**15 - 1)), max_size=8)


@given(frames=frames, places=st.lists(st.integers(0, 400)), heartbeats=st.booleans())
@example(frames=[("log", "\0\u2028", 1), ("end", ": ", None)], places=[0, 0, 400], heartbeats=True)
def test_frames_come_back_however_they_are_cut(
    frames: list[tuple[str, str, int | None]], places: list[int], heartbeats: bool
) -> None:
    """Encoded and fed in any chunking, frames are the events they were."""
    comment = sse.HEARTBEAT if heartbeats else b""
    stream = comment.join([sse.frame(name, data.encode(), id=number) for name, data, number in frames])
    expected, last = [], ""
    for name, data, number in frames:
        last = last if number is None else str(number)
        expected.append(Event(name, data, last))

    assert decode(*cut(stream, places)) == expected


@given(text=st.text(st.characters()), number=st.integers(1, 10**15 - 1))
def test_folded_text_is_always_one_frame(text: str, number: int) -> None:
    """Whatever a message says, its frame is one event."""
    events = decode(sse.frame("error", sse.fold(text), id=number) + sse.frame("log", b"{}"))

    assert [(event.event, event.id) for event in events] == [("error", str(number)), ("log", str(number))]


@given(chunks=st.lists(st.binary(max_size=40)), places=st.lists(st.integers(0, 400)))
def test_any_bytes_mean_the_same_in_any_chunking(chunks: list[bytes], places: list[int]) -> None:
    """Garbage raises nothing, and what it means does not hang on how it is cut."""
    stream = b"".join(chunks)

    assert decode(*cut(stream, places)) == decode(stream)


@given(pieces=st.lists(st.sampled_from([b"\r", b"\n", b"data", b"id", b":", b" ", b"1", b"\0", BOM, b"\xef"])))
def test_fields_of_any_make_mean_the_same_in_any_chunking(pieces: list[bytes]) -> None:
    """The same with bytes that mean something, one piece a chunk."""
    assert decode(*pieces) == decode(b"".join(pieces))
