"""Masking: for any secrets and any chunks of bytes, the masked text is published, and no secret."""

import random
import time
from collections.abc import Iterable
from functools import partial
from math import isinf
from pathlib import Path

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from chronoverse.errors import InvalidMask
from chronoverse.runner.capture.line_assembler import LineAssembler
from chronoverse.runner.capture.masking import MAX_BYTES, Masks, load_masks
from tests.support.parameters import long_after

NOW = "2026-03-03T10:00:05.123Z"

#: Few distinct bytes, so that secrets overlap, share prefixes, contain each other, and occur by chance.
parts = st.lists(st.sampled_from([b"a", b"b", b"ab", b"\n", b"abab", "é".encode(), b"\xff"]), max_size=12)
texts = parts.map(b"".join)
secrets = texts.filter(lambda text: len(text.decode("utf-8", "replace").strip("\n")) >= 4)


def masked(masks: Masks, chunks: Iterable[bytes]) -> bytes:
    result = rest = b""
    for chunk in chunks:
        text, rest = masks.mask_decided(rest + chunk)
        result += text
    return result + masks.mask(rest)


def parts_of(secret: bytes) -> list[bytes]:
    """The parts of a secret that must not be published."""
    whole = secret.strip(b"\n")
    return [whole, *(line for line in whole.split(b"\n") if len(line.decode("utf-8", "replace")) >= 4)]


@given(st.lists(secrets, min_size=1, max_size=4), st.lists(texts))
@example([b"aaaabbbb", b"bbbbcccc"], [b"aaaabbbbbb", b"bbcccc"])
def test_any_chunks_give_the_masked_text_and_no_secret(given_secrets: list[bytes], chunks: list[bytes]) -> None:
    """The result equals that for the whole text, however it is split into chunks."""
    masks = Masks(given_secrets)
    result = masked(masks, chunks)
    assert result == masks.mask(b"".join(chunks))
    assert not [part for secret in given_secrets for part in parts_of(secret) if part in result]


@given(st.lists(secrets, min_size=1, max_size=4), st.lists(texts), st.lists(st.integers(0, 3)))
def test_every_secret_becomes_a_mask(given_secrets: list[bytes], between: list[bytes], order: list[int]) -> None:
    """Other text is unchanged, as long as no secret spans two parts."""
    masks = Masks(given_secrets)
    chunks: list[bytes] = []
    expected: list[bytes] = []
    for number, text in zip(order, between, strict=False):
        plain = b"<%b>" % text
        assume(masks.mask(plain) == plain)
        secret = given_secrets[number % len(given_secrets)].strip(b"\n")
        chunks += [plain, secret]
        expected += [plain, b"\n".join(b"***" if line else b"" for line in secret.split(b"\n"))]
    result = masked(masks, chunks)
    assert result == b"".join(expected) or any(b"\n" in secret for secret in given_secrets)
    assert result.count(b"\n") == b"".join(chunks).count(b"\n")


@given(st.lists(secrets, min_size=1, max_size=3), st.lists(texts), st.integers(4, 20), st.sets(st.integers(0, 20)))
def test_no_partial_line_shows_a_secret(
    given_secrets: list[bytes], chunks: list[bytes], limit: int, quiet: set[int]
) -> None:
    """Joined, all batches of the capture are the masked text, including flushes in between."""
    masks = Masks(given_secrets)
    assembler = LineAssembler("stdout", limit, masks)
    batches = []
    for number, chunk in enumerate(chunks):
        batches += assembler.feed(chunk, NOW, float(number))
        if number in quiet:
            batches += assembler.flush_due(number + 1.0)
    batches += assembler.close()
    joined = b"".join(batch.text + (b"" if batch.partial else b"\n") for batch in batches)
    whole = masks.mask(b"".join(chunks))
    assert joined == (whole if whole.endswith(b"\n") or not joined else whole + b"\n")
    assert not [part for secret in given_secrets for part in parts_of(secret) if part in joined]


@pytest.mark.parametrize("size", [1, 2, 3, 100])
def test_a_secret_is_masked_however_it_arrives(size: int) -> None:
    """Of two secrets that begin at a position, the longest, although the shorter one was complete earlier."""
    text = b"token-of-mine token-of tok token-of-mine"
    chunks = [text[at : at + size] for at in range(0, len(text), size)]
    assert masked(Masks([b"token", b"token-of-mine"]), chunks) == b"*** ***-of tok ***"


def test_a_secret_of_three_lines_is_masked_line_by_line() -> None:
    """Even if its lines are indented or apart; they remain separate lines."""
    masks = Masks([b"first line\r\n  second line\r\nthird\r\n"])
    text = b"key: first line\n     second line\n--\nthird\n"
    assert masks.mask(text) == b"key: ***\n     ***\n--\n***\n"


@pytest.mark.parametrize(
    ("secret", "text", "expected"),
    [
        (b"hunter2 \n", b"is hunter2, not hunter\n", b"is ***, not hunter\n"),
        (b"\t hunter2\r\n \n", b"hunter2\nx", b"***\nx"),
        (b"{ \nlong enough\n} \n", b"{\nlong enough\n}\n{}", b"***\n***\n***\n{}"),
        (b"{ \nlong enough\n} \n", b"{ \nlong enough\n} \n{}", b"***\n***\n*** \n{}"),
    ],
)
def test_blanks_at_the_ends_of_a_secret_are_not_part_of_it(secret: bytes, text: bytes, expected: bytes) -> None:
    """An editor can leave them in the file, and the program that reads the secret can strip them."""
    assert masked(Masks([secret]), [text]) == expected


def test_a_progress_bar_cannot_hide_a_secret() -> None:
    """The text is masked after overwritten states have been dropped."""
    assembler = LineAssembler("stdout", masks=Masks([b"ab\ncd"]))
    batches = [*assembler.feed(b"ab\nxx", NOW, 0.0), *assembler.feed(b"\rcd\n", NOW, 0.1), *assembler.close()]
    assert [batch.text for batch in batches] == [b"***\n***"]


def test_only_the_beginning_of_a_secret_is_held_back() -> None:
    """A flush does not publish it."""
    assembler = LineAssembler("stdout", masks=Masks([b"hunter2"]))
    batches = [*assembler.feed(b"password: hunt", NOW, 0.0), *assembler.flush_due(1.0)]
    assert [batch.text for batch in batches] == [b"password: "]
    assert isinf(assembler.due)
    assert [batch.text for batch in [*assembler.feed(b"er2", NOW, 2.0), *assembler.flush_due(3.0)]] == [b"***"]


@pytest.mark.parametrize(
    "secret", [b"", b"abc", b"abc\n", b"abc  ", b"\n\n\n\n\n", "äöü".encode(), b"x" * (MAX_BYTES + 1)]
)
def test_too_short_or_too_long_a_secret_is_rejected(secret: bytes, tmp_path: Path) -> None:
    """The error does not contain the secret. A file is not cut to a secret that is short enough."""
    (path := tmp_path / "secret").write_bytes(secret)
    for load in (partial(Masks, [secret]), partial(load_masks, files=[path])):
        with pytest.raises(InvalidMask, match="a secret to mask") as refused:
            load()
        assert "abc" not in str(refused.value)


def test_secrets_are_loaded_from_values_variables_and_files(tmp_path: Path) -> None:
    """Including bytes that are not UTF-8."""
    (tmp_path / "key").write_bytes(b"in the file\n")
    environ = {"TOKEN": "in the \udcff variable"}
    masks = load_masks(["given"], ["TOKEN"], [tmp_path / "key"], environ)
    assert masks.mask(b"given, in the \xff variable, in the file") == b"***, ***, ***"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"values": ["abc"]}, "--mask: a secret to mask must have at least 4"),
        ({"names": ["UNSET"]}, "--mask-env UNSET: the variable is not set"),
        ({"names": ["EMPTY"]}, "--mask-env EMPTY: the variable is empty"),
        ({"names": ["SHORT"]}, "--mask-env SHORT: a secret to mask must have at least 4"),
        ({"files": [Path("/no/such/file")]}, "--mask-file /no/such/file: No such file"),
        ({"files": [Path("/")]}, "--mask-file /: Is a directory"),
        ({"files": [Path("/dev/null")]}, "--mask-file /dev/null: a secret to mask must have at least 4"),
    ],
)
def test_an_option_without_a_valid_secret_is_an_error(options: dict[str, list[str]], message: str) -> None:
    """A log must not look masked when it is not."""
    with pytest.raises(InvalidMask, match=f"^{message}"):
        load_masks(**options, environ={"EMPTY": "", "SHORT": "abc"})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("secret", "text"),
    [
        (b"a" * 4_000 + b"b", b"a" * 200_000),
        (b"ab" * 2_000 + b"c", b"ab" * 100_000),
        (random.Random(1).randbytes(4_000).replace(b"\n", b"n"), random.Random(2).randbytes(200_000)),
        (b"word", b"a word word\n" * 16_000),
    ],
    ids=["one byte", "two bytes", "random", "word"],
)
@pytest.mark.parametrize("size", long_after(1, [4_096, 16, 400_000]))
def test_masking_takes_linear_time(secret: bytes, text: bytes, size: int) -> None:
    """Even for text that resembles the beginning of the secret almost everywhere."""
    masks = Masks([secret])
    started = time.process_time()
    masked(masks, (text[start : start + size] for start in range(0, len(text), size)))
    assert time.process_time() - started < 4


def test_a_large_secret_can_arrive_byte_by_byte() -> None:
    """While 64 KiB are held back, each further byte remains cheap."""
    secret = bytes(random.Random(1).choices(range(32, 128), k=60_000))
    started = time.process_time()
    assert masked(Masks([secret]), (secret[at : at + 1] for at in range(len(secret)))) == b"***"
    assert time.process_time() - started < 5
