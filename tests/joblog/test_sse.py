"""The codec of Server-Sent Events: the WHATWG standard's examples, and streams cut at any position."""

from collections.abc import Iterable
from itertools import pairwise

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from chronoverse.joblog import sse
from chronoverse.joblog.sse import Decoder
from chronoverse.joblog.sse import ServerSentEvent as Event
from tests.support.examples import CHARACTERS

BOM = b"\xef\xbb\xbf"


def decode(*chunks: bytes, decoder: Decoder | None = None) -> list[Event]:
    """All events of a stream that arrives in ``chunks``."""
    decoder = decoder or Decoder()
    return [event for chunk in chunks for event in decoder.feed(chunk)]


def cut(stream: bytes, positions: Iterable[int]) -> list[bytes]:
    """``stream`` in chunks that end at ``positions``."""
    bounds = [0, *sorted(position for position in positions if position <= len(stream)), len(stream)]
    return [stream[start:stop] for start, stop in pairwise(bounds)]


def messages(*data: str, id: str = "") -> list[Event]:
    return [Event("message", each, id) for each in data]


@pytest.mark.parametrize(
    ("stream", "events"),
    [
        (
            b"data: This is the first message.\n\n"
            b"data: This is the second message, it\ndata: has two lines.\n\n"
            b"data: This is the third message.\n\n",
            messages(
                "This is the first message.",
                "This is the second message, it\nhas two lines.",
                "This is the third message.",
            ),
        ),
        (
            b"event: add\ndata: 73857293\n\nevent: remove\ndata: 2153\n\nevent: add\ndata: 113411\n\n",
            [Event("add", "73857293", ""), Event("remove", "2153", ""), Event("add", "113411", "")],
        ),
        (b"data: YHOO\ndata: +2\ndata: 10\n\n", messages("YHOO\n+2\n10")),
        (
            b": test stream\n\ndata: first event\nid: 1\n\ndata:second event\nid\n\ndata:  third event\n\n",
            messages("first event", id="1") + messages("second event", " third event"),
        ),
        (b"data\n\ndata\ndata\n\ndata:", messages("", "\n")),
        (b"data:test\n\ndata: test\n\n", messages("test", "test")),
        # So far the examples of section 9.2.6. What follows is in its text. LF CR is two line ends, CR LF is one.
        (b"data: a\n\rdata: b\r\n\r\n", messages("a", "b")),
        # An id with NUL is ignored.
        (b"id: 1\ndata: a\n\nid: 2\0\ndata: b\n\n", messages("a", "b", id="1")),
        # An event's name is for its block, also if that has no data.
        (
            b"event: log\ndata: a\n\ndata: b\n\nevent: end\n\ndata: c\n\n",
            [Event("log", "a", ""), *messages("b", "c")],
        ),
        # Unknown fields, no colon, and bytes that are not UTF-8.
        (b"foo: 1\nbar\nData: 2\n data: 3\ndata : 4\n\n", []),
        (b"data: a\xff\xc3\ndata: \xe2\x82\n\n", messages("a\ufffd\ufffd\n\ufffd")),
        # Heartbeats before, between, after and inside blocks.
        (
            b":\n"
            + sse.frame("log", b"a", id=1)
            + b":\n:\n:\ndata: x\n:\n\n"
            + sse.frame("log", b"b", id=2)
            + b": c\n",
            [Event("log", "a", "1"), *messages("x", id="1"), Event("log", "b", "2")],
        ),
    ],
)
def test_the_standards_examples(stream: bytes, events: list[Event]) -> None:
    assert decode(stream) == events


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"], ids=["LF", "CRLF", "CR"])
def test_any_line_end_at_any_chunk_boundary(end: bytes) -> None:
    """All line ends are equivalent, wherever a chunk ends. Only the byte after a CR shows whether it is a CR LF."""
    stream = b"event: log\ndata: a\ndata: b\nid: 7\n\n: comment\n\ndata: c\n\n".replace(b"\n", end) + b":"

    for position in range(len(stream) + 1):
        assert decode(*cut(stream, [position])) == [Event("log", "a\nb", "7"), Event("message", "c", "7")]


@pytest.mark.parametrize("piece", [b"x" * 1_000, b"data: " + b"x" * 994 + b"\n"], ids=["line", "block"])
def test_an_endless_block_is_an_error(piece: bytes) -> None:
    """It would fill the client's memory. In small chunks, the longest block still takes linear time to decode."""
    chunks = [b"data: ", *[piece] * 16_000]
    (event,) = decode(*chunks, b"\n\n", *chunks, decoder=(decoder := Decoder()))
    assert len(event.data) > 15_000_000
    with pytest.raises(ValueError, match="an event of more than 16,777,216 bytes"):
        decode(*[piece] * 1_000, decoder=decoder)


def test_a_byte_order_mark_is_dropped_only_at_the_very_start() -> None:
    """If it is complete. Any other one is part of a field name, which is then unknown."""
    once, twice = BOM + b"data: a\n\n", BOM + BOM + b"data: b\n\n"

    assert [decode(*cut(once, [position])) for position in range(5)] == [[Event("message", "a", "")]] * 5
    assert decode(twice) == []
    assert decode(b"data: a\n\n", BOM + b"data: b\n\n") == [Event("message", "a", "")]
    assert decode(b"\xef", b"\xbbdata: a\ndata: b\n\n") == [Event("message", "b", "")]
    assert decode(b"", b"\xef", b"", b"\xbb", b"\xbf", b"data: b\n\n") == [Event("message", "b", "")]


def test_an_id_lasts_until_the_next_one() -> None:
    """Blocks without an id have the last one. An empty id resets it. A block with only an id dispatches nothing."""
    decoder = Decoder("4")
    events = decode(b"data: a\n\nid: 5\ndata: b\n\ndata: c\n\nid:\ndata: d\n\n", decoder=decoder)

    assert [event.id for event in events] == ["4", "5", "5", ""]
    assert decoder.last_event_id == ""
    assert decode(sse.cursor(9), decoder=decoder) == []
    assert decoder.last_event_id == "9"
    stream = sse.frame("log", b"{}", id=12)
    for length in range(len(stream)):
        assert decode(stream[:length], decoder=(cut_off := Decoder("11"))) == []
        assert cut_off.last_event_id == "11", "an incomplete block does not move the cursor"


@pytest.mark.parametrize("value", ["", "-1", "+1", "1.5", "1 ", " 1", "1e3", "1_0", "a", "\uff11", "\u00b2"], ids=ascii)
def test_retry_is_a_number_of_milliseconds(value: str) -> None:
    """A block with only this field dispatches nothing, and keeps the id. Values other than ASCII digits are ignored."""
    decoder = Decoder("3")
    for good in ("0", "007", "3000"):
        assert decode(f"retry: {good}\n\n".encode(), decoder=decoder) == []
        assert decoder.retry_ms == int(good)
    assert decode(sse.retry(2417), f"retry: {value}\n\n".encode(), decoder=decoder) == []
    assert (decoder.retry_ms, decoder.last_event_id) == (2417, "3")


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
    """No text can end its line and forge a field."""
    assert sse.fold(text) == folded


names = st.from_regex(r"[a-z]{1,8}", fullmatch=True, alphabet=CHARACTERS)
one_line = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\r\n"))
frames = st.lists(st.tuples(names, one_line, st.none() | st.integers(0, 10**15 - 1)), max_size=8)


@given(frames=frames, positions=st.lists(st.integers(0, 400)), heartbeats=st.booleans())
@example(frames=[("log", "a\0\u2028\u2029\x85\x0b\x0c\x1c\x1d\x1eb", 1)], positions=[0, 0, 400], heartbeats=True)
@example(frames=[("end", ": ", None)], positions=[], heartbeats=True)
def test_frames_are_decoded_however_they_are_cut(
    frames: list[tuple[str, str, int | None]], positions: list[int], heartbeats: bool
) -> None:
    """The decoder returns the encoded events, wherever chunks end. Only CR and LF end a line."""
    comment = sse.HEARTBEAT if heartbeats else b""
    stream = comment.join([sse.frame(name, data.encode(), id=number) for name, data, number in frames])
    expected, last = [], ""
    for name, data, number in frames:
        last = last if number is None else str(number)
        expected.append(Event(name, data, last))

    assert decode(*cut(stream, positions)) == expected


@given(
    chunks=st.lists(
        st.sampled_from([b"\r", b"\n", b"data", b"id", b":", b" ", b"1", b"\0", BOM, b"\xef"]) | st.binary(max_size=40)
    )
)
def test_any_bytes_mean_the_same_in_any_chunks(chunks: list[bytes]) -> None:
    """Random bytes and parts of fields raise no error, and give the same events in any chunks."""
    whole = b"".join(chunks)
    assert decode(*chunks) == decode(*(bytes([byte]) for byte in whole)) == decode(whole)
