"""Bytes become lines: none is lost or too long, and no character is split, however the bytes arrive."""

import random

import pytest

from chronoverse.joblog.line_splitter import LineBatch, LineSplitter
from chronoverse.joblog.secret_forms import SecretForms
from tests.support.bench import NOW

PIECES = ["\n", "\n", "a", "bc" * 5, "\N{EURO SIGN}", "\N{GRINNING FACE}" * 4, "é", "\r", "\n\n", "x" * 70]


@pytest.mark.parametrize("seed", range(60))
def test_lines_are_what_was_written(seed: int) -> None:
    """Too long lines become parts, each as long as possible unless flushed earlier."""
    choice = random.Random(seed)
    text = "".join(choice.choices(PIECES, k=choice.randrange(60))).encode()
    most, flushes = choice.choice([4, 7, 64]), choice.random() < 0.5
    splitter, batches, at = LineSplitter("stderr", most, SecretForms(None)), list[LineBatch](), 0
    while at < len(text):
        size = choice.choice([1, 3, 50, 500])
        batches += splitter.feed(text[at : at + size], NOW)
        at += size
        if flushes and choice.random() < 0.3:
            batches += splitter.flush()
    batches += splitter.close()
    entries = [(message, batch.partial) for batch in batches for message in batch.messages()]
    assert {(batch.stream, batch.timestamp) for batch in batches} <= {("stderr", NOW)}
    assert sum(batch.lines for batch in batches) == len(entries)
    written = b"".join(message + b"\n" * (not partial) for message, partial in entries)
    assert written == text + b"\n" * (bool(text) and not text.endswith(b"\n"))
    for message, partial in entries:
        message.decode()
        assert b"\n" not in message
        assert len(message) <= most
        assert not partial or flushes or len(message) > most - 4


@pytest.mark.parametrize("character", "\x80\u07ff\u0800\uffff\U00010000\U0010ffff")
def test_a_flush_splits_no_character(character: str) -> None:
    """The first and last ones of each length."""
    data = character.encode()
    for cut in range(1, len(data)):
        splitter = LineSplitter("stdout", 64, SecretForms(None))
        assert splitter.feed(b"a" + data[:cut], NOW) == []
        batches = [*splitter.flush(), *splitter.feed(data[cut:], NOW), *splitter.flush()]
        assert [each.text.decode() for each in batches] == ["a", character]


@pytest.mark.parametrize("end", ["newline", "flush", "close"])
@pytest.mark.parametrize(
    ("most", "text", "parts"), [(7, "pin1", ["[masked", "]"]), (10, "pin1\N{EURO SIGN}", ["[masked]", "\N{EURO SIGN}"])]
)
def test_a_mask_that_is_longer_than_a_line_is_cut(end: str, most: int, text: str, parts: list[str]) -> None:
    splitter = LineSplitter("stdout", most, SecretForms([("short", "pin[0-9]")]))
    batches = splitter.feed(text.encode() + b"\n" * (end == "newline"), NOW)
    batches += splitter.flush() if end == "flush" else splitter.close()
    assert [message.decode() for batch in batches for message in batch.messages()] == parts
