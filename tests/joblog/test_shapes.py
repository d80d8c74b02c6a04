"""The shape of a line: what it omits, what it keeps, and its cost."""

import random
import time
from hashlib import blake2b

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from chronoverse.joblog.shapes import MAX_SHAPES, PackedShapes, ShapeHasher, ShapeSet
from tests.support.examples import CHARACTERS


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ("started in 3.21 seconds, pid 4711", "started in #, pid #"),
        ("x=-5 y=+3 z=1.5e-07", "x=# y=# z=#"),
        ("2026-03-03T10:00:05.123Z INFO ready", "# INFO ready"),
        ("2026-03-03 10:00:05,123 +0100 ready", "# ready"),
        ("Tue Mar  3 10:00:05 PM 2026 ready", "# ready"),
        ("[03/Mar/2026:10:00:05 +0000] ready", "[#] ready"),
        ("Mayor Sunday Amber", "Mayor Sunday Amber"),
        ("commit 3fa85f6 of 3FA85F6457174562", "commit # of #"),
        ("facade decade feedface deadbee1", "facade decade feedface #"),
        ("id=3fa85f64-5717-4562-b3fc-2c963f66afa6,", "id=#,"),
        ("id=abcdefab-5717-4562-b3fc-2c963f66afa6,", "id=#,"),
        ("at 0x7ffe12ab: crash", "at #: crash"),
        ("from 10.0.0.3:5022 to [fe80::1%eth0]:80 and ::1", "from # to [#]:# and #"),
        ("mac 00:1b:44:11:3a:b7 00-1b-44-11-3a-b7", "mac #"),
        ("std::vector<int>::at a::b", "std::vector<int>::at a::b"),
        ("pod api-x7k2p9q4w1z8", "pod api-#"),
        ("SHA256:eTB5IS6SpNnh8Chv1bf/5RVHKedjGZ1pxOWKhheS238", "#"),
        ("integrity sha512-abC/+defghijklmnopqrstuvwxyzABCDEFGHIJ== ok", "integrity # ok"),
        ("utf8 x86_64 sha256 libfoo.so.6 test_13", "utf# x# sha# libfoo.so.# test_#"),
        ("/tmp/pytest-of-ci/pytest-3/test_x0/a.txt:12: error", "#/pytest-#/test_x#/a.txt:#: error"),
        ("/var/tmp/cc1x.o '/dev/shm/q' /run/user/1000/bus", "# '#' #"),
        ("/private/var/folders/ab/c_1/T/x1/a.txt", "#/a.txt"),
        ("C:\\Users\\me\\AppData\\Local\\Temp\\x1\\a.txt", "#\\a.txt"),
        ("/builds/tmpab12cd34/a.txt /builds/tmp.Xy12Ab34Cd/b", "/builds/#/a.txt /builds/#/b"),
        ("/home/ci/project/src/a.c", "/home/ci/project/src/a.c"),
        ("took 980ms", "took #"),
        ("took 1.02 s", "took #"),
        ("took 1m 3.2s", "took #"),
        ("took 1h2m3.5s", "took #"),
        ("12.3 MB at 4.5 MB/s", "# at #"),
        ("5 \u00b5s, 5\u00b5s", "#"),
        ("5 miles, 3 sheep", "# miles, # sheep"),
        ("lines 1, 2, 3 and 4", "lines # and #"),
        ("\x1b[31m=====\x1b[0m 3 failed \x1b[1m=======", "== # failed =="),
        ("  12   passed\t3 failed ", "# passed # failed"),
        ("\u2501\u2501\u2501\u2501\u2501 45%", "\u2501\u2501 #%"),
        ("a -- b, a == b", "a -- b, a == b"),
        ("\x1b]0;title 12\x07text", "text"),
        ("", ""),
        ("origin +373722bd1f:refs/heads/main", "origin +#:refs/#"),
        ("/overlay2/947b10f5aa/merged", "/overlay#/#/merged"),
        ("app_1.2.0_5fb206a3.tar 7_55018400-e29b-41d4-a716-446655440000", "app_#_#.tar #_#"),
        ("1.4.0-beta1 1.4.0-rc2-gbe12345 1.4.0-5-g12ab34cd 1.4.0-alphabet", "#-alphabet"),
        ("Switched to a new branch 'topic/x'", "Switched to a new branch '#'"),
        ("checkout --force -B topic/x refs/remotes/origin/topic/x", "checkout --force -B # refs/#"),
        ("ref: topic/x", "ref: #"),
        ("HEAD is now at 0a1b2c3 Fix the totals", "HEAD is now at # #"),
        ("Secret source: Actions", "Secret source: #"),
        ("Contents: read", "#"),
        ("Error: read", "Error: read"),
        ("[==>      ] 12%", "[#] #%"),
        ("[=========>] 100%", "[#] #%"),
        (
            "/home/ci/_temp/ab12-cd/run.sh /x/.mesonpy-a1b2c3d4/b /lib/~aBc12D/y",
            "/home/ci/_temp/#/run.sh /x/.mesonpy-#/b /lib/#/y",
        ),
        ("assets/index-DiwrgTda.js web-polyfill.js", "assets/index-#.js web-polyfill.js"),
    ],
)
def test_what_differs_from_run_to_run_has_a_placeholder(message: str, expected: str) -> None:
    """Everything else stays."""
    assert ShapeHasher().shape(message) == expected


def test_lines_have_equal_hashes_when_they_have_equal_shapes() -> None:
    """Other processes and later versions read sets of hashes, so a hash must never change."""
    first, second, third = ShapeHasher().hashes(["took 12 ms", "took 1.3 s", "took too long"])
    assert first == second != third
    assert ShapeHasher().hashes(["took 1 ms"]) == [15398201453281826935]


@given(
    st.lists(
        st.text(CHARACTERS, max_size=20)
        | st.sampled_from(
            ["\x1b[0m", "\n", "a\nb", "\ud800", "took 12 ms", "deadbee0", "x deadbee0", "\x1b[deadbee0", "0"]
        ),
        max_size=5,
    )
)
def test_messages_are_hashed_together_as_each_alone(messages: list[str]) -> None:
    """Messages can contain anything, even newlines from a foreign runner."""
    hasher = ShapeHasher()
    assert hasher.hashes(messages) == [found for each in messages for found in ShapeHasher().hashes([each])]
    assert hasher.hashes(messages) == hasher.hashes(messages)


@given(
    st.sampled_from(["", "id=", "request_id:", "(", "[", 'key="', "<"]),
    st.from_regex(
        r"[0-9a-f]{8}-([0-9a-f]{4}-){3}[0-9a-f]{12}|[0-9A-F]{8,40}|[a-f]{3}[0-9][0-9a-f]{4,30}",
        fullmatch=True,
        alphabet=CHARACTERS,
    ),
    st.sampled_from(["", ",", ")", '"]', ">.", ";"]),
)
def test_an_id_in_a_word_is_masked(before: str, found: str, after: str) -> None:
    """Whatever its digits, and also among other masked words."""
    if found.isalpha():
        found = f"0{found}"
    assert ShapeHasher().shape(before + found + after) == f"{before}#{after}"
    assert ShapeHasher().shape(f"x/{before}{found}{after}") == f"x/{before}#{after}"


_PARTS = (
    "deadbeef 0a1b2c3d abcdefab-1234-abcd-abcd-abcdefabcdef 12345678-1234-1234-1234-123456789012 0 12 0x tmp /tmp/ g Z"
    ' ms SHA256: a ff 00 \x1b[0m \x1b [0m T + e- Mar /ab/ [ ... - _ . : / = ( " '
)


@given(st.lists(st.sampled_from([" ", *_PARTS.split()]), max_size=9))
@example(["\x1b", "\x1b[0m", "[", "deadbeef"])
def test_a_hash_is_that_of_the_shape(parts: list[str]) -> None:
    """Lines that differ only in ids are looked up as one line, without changing the shape."""
    message = "".join(parts)
    digest = blake2b(ShapeHasher().shape(message).encode(), digest_size=8).digest()
    assert ShapeHasher().hashes([message]) == [int.from_bytes(digest, "little")]


#: Parts of lines, whose repetition could take quadratic time.
PARTS = (
    "deadbee0 |12345678-1234-1234-1234-123456789012 |deadbeef=|\x1b\x1b[0m[0m|0|a|a0|0a|0:|a:|0:a|0-|-0|"
    "0 |0,|0, |0s |/tmp/|/tmp|/tmp/a|/var/folders/|/var/folders/a|....,,,,|ab-|abcdefab-|\\|=|C:\\Users\\|"
    "C:\\Users\\a\\AppData|SHA0:|sha0-a|0/Mar/|/tmpaaaaaa|0e|0e+|\x1b[|\x1b]|# |Mar |━|[=>|0-rc.0|0-g0a|"
    "+0a0a0a|branch '|-ab0|~a0|refs/"
)


@pytest.mark.parametrize("part", PARTS.split("|"))
def test_the_time_is_linear(part: str) -> None:
    """Four times 60,000 characters take about 0.2 s. With quadratic time, they would take minutes."""
    began = time.process_time()
    for end in ("", "!"):
        message = part * (60_000 // len(part)) + end
        ShapeHasher().shape(message)
        ShapeHasher().hashes([message])
    assert time.process_time() - began < 2


@pytest.mark.parametrize("seed", range(5))
def test_a_packed_set_has_the_first_line_of_each_shape(seed: int) -> None:
    """Like a dict, also for missing shapes. Line numbers have up to 48 bits; larger ones are unknown."""
    choice, shapes, first = random.Random(seed), ShapeSet(), dict[int, int]()
    for _ in range(30):
        hashes = [
            choice.choice([choice.randrange(9), 2**64 - choice.randrange(1, 9)]) for _ in range(choice.randrange(6))
        ]
        numbers = sorted(choice.choice([choice.randrange(1, 99), 2**32, 2**48 - 1, 2**48]) for _ in hashes)
        shapes.add(hashes, numbers)
        for shape, number in zip(hashes, numbers, strict=True):
            first[shape] = min(number, first.get(shape, number))
    data = shapes.to_bytes()
    packed = PackedShapes(data)
    assert (packed.size, packed.is_full, [*packed.hashes]) == (len(data), False, sorted(first))
    for shape in [*range(10), *range(2**64 - 10, 2**64)]:
        assert shapes.first.get(shape) == first.get(shape)
        assert packed.first_line(shape) == (None if shape not in first else first[shape] % 2**48)  # beyond: 0
    body = data[16:]
    for damaged in (data[:-1], data + b"x", data[:20], b"x" + data[1:], b""):
        with pytest.raises(ValueError, match="not a set of shapes"):
            PackedShapes(damaged)
    for other in (body[:-1], body + b"x", body[:7], b""):
        with pytest.raises(ValueError, match="not a set of shapes"):
            PackedShapes(blake2b(other, digest_size=16).digest() + other)


def test_a_set_of_too_many_shapes_is_full() -> None:
    """It is then permanently empty. With one less, it has all."""
    shapes = ShapeSet()
    shapes.add(range(MAX_SHAPES), range(1, MAX_SHAPES + 1))
    assert (shapes.is_full, len(shapes.first)) == (False, MAX_SHAPES)
    shapes.add([MAX_SHAPES], [MAX_SHAPES + 1])
    shapes.add([1], [1])
    assert (shapes.is_full, shapes.first) == (True, {})
    packed = PackedShapes(shapes.to_bytes())
    assert (packed.is_full, [*packed.hashes], packed.first_line(1)) == (True, [], None)
