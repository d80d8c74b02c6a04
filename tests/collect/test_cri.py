"""Lines in CRI format, whatever the chunks of bytes."""

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from chronoverse.collect.cri import LONG_BYTES, CriReader
from chronoverse.joblog.line_splitter import LineBatch
from chronoverse.joblog.secret_forms import SecretForms
from tests.collect.node import cri_line
from tests.support.examples import CHARACTERS
from tests.support.secret_keys import GITHUB, MASKED_PEM, PEM

AT = 1_772_532_005.123456789
OFF = SecretForms(None)
Read = list[tuple[str, str, str, bool]]


def lines_of(batches: list[LineBatch]) -> Read:
    """Each line's time, stream, text, and whether it is partial."""
    return [(each.timestamp, each.stream, text.decode(), each.partial) for each in batches for text in each.messages()]


def read(data: bytes, max_line_bytes: int = 65_536) -> Read:
    reader = CriReader(max_line_bytes, OFF)
    return lines_of(reader.feed(data) + reader.close())


@pytest.mark.parametrize(
    ("time", "timestamp"),
    [
        ("2026-03-03T10:00:05.123456789Z", "2026-03-03T10:00:05.123Z"),
        ("2026-03-03T10:00:05.1Z", "2026-03-03T10:00:05.100Z"),
        ("2026-03-03T10:00:05Z", "2026-03-03T10:00:05.000Z"),
        ("2026-03-03T12:00:05.123456789+02:00", "2026-03-03T10:00:05.123Z"),
    ],
)
def test_times_have_any_number_of_digits(time: str, timestamp: str) -> None:
    """containerd omits trailing zeros, conmon writes the zone."""
    assert read(f"{time} stdout F a b  c \n{time} stderr F \n{time} stderr F\n".encode()) == [
        (timestamp, "stdout", "a b  c ", False),
        (timestamp, "stderr", "", False),
        (timestamp, "stderr", "", False),
    ]


def test_each_millisecond_is_a_separate_batch() -> None:
    """Only lines with the same one are read together."""
    found = read(b"".join(cri_line(f"{at}", at=AT + at / 10_000) for at in (0, 4, 10, 100)))
    assert [(time[-4:], text) for time, _, text, _ in found] == [
        *zip(("123Z", "123Z", "124Z", "133Z"), ("0", "4", "10", "100"), strict=True)
    ]


def test_a_foreign_line_after_a_restart_is_in_the_stream_of_the_line_before() -> None:
    """With its time. An unfinished partial line is still there."""
    before = CriReader(65_536, OFF)
    before.feed(cri_line("out", at=AT) + cri_line("beg", "stderr", "P", at=AT + 1))
    reader = CriReader(65_536, OFF, orjson.loads(orjson.dumps(before.state())))
    [(time, stream, text, _)] = lines_of(reader.feed(b"foreign\n") + reader.close())
    assert (time[-5:], stream, text) == (".123Z", "stderr", "begforeign")
    assert time > read(cri_line("out", at=AT))[0][0]


def test_partial_lines_are_joined_for_each_stream() -> None:
    """All tags except the first are ignored. A character's bytes can be split between them."""
    data = cri_line("beg\xc3".encode("latin-1"), tag="P", at=AT) + cri_line("oops", "stderr", "P:x:y", at=AT)
    data += cri_line("\xa9inning".encode("latin-1"), tag="F:z", at=AT) + cri_line("!", "stderr", at=AT)

    assert [text for _, _, text, _ in read(data)] == ["begéinning", "oops!"]
    # Their rest can be in a gap.
    reader = CriReader(10, OFF)
    pieces = [("out", "x" * 7), ("out", "x" * 7), ("err", "y")]
    batches = [reader.feed(cri_line(text, f"std{stream}", "P")) for stream, text in pieces]
    batches += [reader.close(is_torn=True), reader.feed(cri_line("z"))]
    found = [line[2:] for each in batches for line in lines_of(each)]
    assert found == [("x" * 10, True), ("x" * 4, True), ("y", True), ("z", False)]


def test_a_long_line_is_cut_as_by_run() -> None:
    """Joined parts have the limit of a line, and so does one line of the file, however long."""
    joined = b"".join(cri_line("x" * 7, tag="P", at=AT) for _ in range(3)) + cri_line("end", at=AT)
    alone = cri_line("short", at=AT) + cri_line("x" * 11, at=AT)
    cut = ("x" * 10, True)
    assert [line[2:] for line in read(joined, 10)] == [cut, cut, ("xend", False)]
    assert [line[2:] for line in read(alone, 10)] == [("short", False), cut, ("x", False)]

    text = "y" * (3 * LONG_BYTES) + "z"
    data, reader = cri_line(text, at=AT) + cri_line("next", "stderr", at=AT), CriReader(65_536, OFF)
    pieces = [reader.feed(data[start : start + LONG_BYTES]) for start in range(0, len(data), LONG_BYTES)]
    found = [line for each in pieces for line in lines_of(each)]
    assert "".join(each for _, stream, each, _ in found if stream == "stdout") == text
    assert max(len(each) for _, _, each, _ in found) == 65_536
    assert found[-1][1:] == ("stderr", "next", False)
    # A mask can be longer than a password.
    text = "https" + "://a:abcd@h"
    found = lines_of(CriReader(len(text), SecretForms()).feed(cri_line(text)))
    assert "".join(line[2] for line in found) == "https" + "://a:[masked]@h"
    assert max(len(line[2]) for line in found) == len(text)


def test_torn_and_foreign_lines_are_kept_unchanged() -> None:
    """A file can end within a tag, a text or a character. The next one starts with a new line."""
    reader = CriReader(65_536, OFF)
    batches = reader.feed(cri_line("whole", at=AT) + cri_line("é".encode(), "stderr", at=AT)[:-2])
    batches += reader.end_file() + reader.feed(cri_line("next", at=AT) + b"2026-03-03T10:00:05Z stdo")
    batches += (
        reader.end_file() + reader.feed(b"Error: no space left\n2026-03-03T10:00:05Z stdout X x\n\n") + reader.close()
    )
    batches += reader.feed(b"2026-02-30T10:00:05.123456789Z stdout F no such day\n-  F a\n")
    batches += reader.feed(b"  F b\n") + reader.feed(b"-  F c\n")

    assert [text for _, _, text, _ in lines_of(batches)] == [
        "whole",
        "\N{REPLACEMENT CHARACTER}",
        "next",
        "2026-03-03T10:00:05Z stdo",
        "Error: no space left",
        "2026-03-03T10:00:05Z stdout X x",
        "",
        "2026-02-30T10:00:05.123456789Z stdout F no such day",
        *("-  F a", "  F b", "-  F c"),
    ]


file_lines = st.builds(
    cri_line,
    st.one_of(
        st.binary(max_size=30),
        st.text(CHARACTERS, max_size=30).map(str.encode),
        st.sampled_from([GITHUB[:9], GITHUB[9:], f"{GITHUB[9:]} end", f"{'w' * 25} {GITHUB[:9]}"]).map(str.encode),
    ).map(lambda text: text.replace(b"\n", b"")),
    st.sampled_from(["stdout", "stderr"]),
    st.sampled_from(["F", "P"]),
    st.sampled_from([AT, AT + 0.0004, AT + 1]),
)


@pytest.mark.parametrize(("most", "forms"), [(8, OFF), (32, SecretForms())], ids=["plain", "masked"])
@given(
    st.lists(st.one_of(file_lines, st.just(b"2026 torn\n")), max_size=8),
    st.lists(st.tuples(st.integers(1, 60), st.booleans()), max_size=8),
)
def test_lines_do_not_depend_on_chunks(
    most: int, forms: SecretForms, file: list[bytes], reads: list[tuple[int, bool]]
) -> None:
    """Nor on readers that continue with another one's state."""
    text = b"".join(file)
    whole = CriReader(most, forms)
    expected = lines_of(whole.feed(text) + whole.close())
    reader, batches, at = CriReader(most, forms), [], 0
    for size, is_restarted in [*reads, (len(text), False)]:
        batches += reader.feed(text[at : at + size])
        at = min(len(text), at + size)
        if is_restarted:
            at -= len(reader.rest)
            reader = CriReader(most, forms, orjson.loads(orjson.dumps(reader.state())))
    batches += reader.feed(text[at:]) + reader.close()
    assert lines_of(batches) == expected


@pytest.mark.parametrize("is_restarted", [False, True])
def test_secrets_known_by_their_form_are_masked(is_restarted: bool) -> None:
    """In whole and partial lines, and in a private key with agent restarts between its lines."""
    forms = SecretForms()
    pieces = [cri_line(f"with {GITHUB[:9]}", tag="P"), cri_line(f"{GITHUB[9:]} in it")]
    data = [cri_line(f"token {GITHUB}"), *pieces, *map(cri_line, PEM), cri_line("fine"), cri_line(GITHUB, "stderr")]
    reader = CriReader(65_536, forms)
    found: Read = []
    for line in data:
        found += lines_of(reader.feed(line))
        if is_restarted:
            reader = CriReader(65_536, forms, orjson.loads(orjson.dumps(reader.state())))
    expected = ["token [masked]", "with [masked] in it", *MASKED_PEM, "fine", "[masked]"]
    assert [text for _, _, text, _ in found + lines_of(reader.close())] == expected


def test_a_private_key_in_a_long_line_is_masked_across_a_restart() -> None:
    """The line's part from before the restart reveals that the rest belongs to a key."""
    forms, text = SecretForms(), orjson.dumps({"key": "\n".join([PEM[0], *PEM[3:]]), "id": 7})
    for cut in range(20, len(text), 3):
        reader = CriReader(256, forms)
        found = lines_of(reader.feed(cri_line(text[:cut], tag="P")))
        reader = CriReader(256, forms, orjson.loads(orjson.dumps(reader.state())))
        shown = "".join(piece for _, _, piece, _ in found + lines_of(reader.feed(cri_line(text[cut:]))))
        assert shown.replace("[masked]", "") == '{"key":"","id":7}', cut
