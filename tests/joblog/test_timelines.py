"""Where a job's time went: its timeline, the comparison with good runs, and its remaining time."""

import random
import struct
import zlib
from collections.abc import Sequence
from hashlib import blake2b
from itertools import accumulate, pairwise

import pytest

from chronoverse.joblog import timelines
from chronoverse.joblog.model import iso_timestamp
from chronoverse.joblog.shapes import MAX_SHAPES
from chronoverse.joblog.timelines import (
    MAX_ANCHORS,
    MAX_TIMELINE_BYTES,
    VERSION,
    Spread,
    Timeline,
    TimelineBuilder,
    compare,
    progress,
)

BEGIN = 1_772_000_000_000


def built(
    times: Sequence[int], shapes: Sequence[int] | None = None, numbers: Sequence[int] | None = None, end: int = 0
) -> Timeline:
    """The timeline of lines at these ms. Without ``shapes``, each line has a unique shape."""
    builder = TimelineBuilder()
    stamps = [iso_timestamp((BEGIN + time) / 1000) for time in times]
    shapes = shapes or [1_000_003 * (each + 1) for each in range(len(times))]
    numbers = numbers or range(1, len(times) + 1)
    # In pieces, as in the archive.
    for start in range(0, len(times), 1_000):
        part = slice(start, start + 1_000)
        builder.add(shapes[part], numbers[part], stamps[part])
    return builder.timeline(iso_timestamp((BEGIN + end) / 1000) if end else None)


def pauses(timeline: Timeline) -> list[tuple[int, int]]:
    return [(anchor.number, anchor.pause) for anchor in timeline.anchors]


def test_a_pause_is_the_time_since_the_line_before() -> None:
    """A clock that goes back counts as 0."""
    timeline = built([0, 10, 10, 25], end=40)
    assert pauses(timeline) == [(1, 0), (2, 10), (3, 0), (4, 15)]
    assert (timeline.lines, timeline.first, timeline.last) == (4, 1, 4)
    assert (timeline.total, timeline.after_last, timeline.shortest) == (25, 15, None)
    assert built([500, 400], end=200).after_last == 0


def test_an_invalid_time_is_replaced_by_the_previous_lines() -> None:
    """Lines without a time have the beginning of 1970."""
    builder = TimelineBuilder()
    stamps = ["?", "2026-03-03T10:00:05.500Z", "1970-01-01T00:00:00.000Z", "2026-03-03T12:00:07.500+02:00", ""]
    builder.add([1, 2, 3, 4, 5], range(1, 6), stamps)
    builder.add([6, 7], [6, 7], ["nothing", "2026-03-03T10:00:07.501Z"])
    timeline = builder.timeline("neither")
    assert [pause for _, pause in pauses(timeline)] == [0, 0, 0, 2_000, 0, 0, 1]
    assert timeline.after_last == 0


def test_any_text_can_be_in_place_of_a_time() -> None:
    """As a foreign runner may write it."""
    choice = random.Random(8)
    for _ in range(400):
        texts = [list(iso_timestamp((BEGIN + choice.randrange(10**6)) / 1000)) for _ in range(3)]
        for _ in range(choice.randrange(4)):
            text = choice.choice(texts)
            place = choice.randrange(len(text) + 1)
            text[place : place + choice.randrange(3)] = choice.choices(
                '0123456789-:T.Z,[]{}"\n e+\ud800', k=choice.randrange(3)
            )
        texts.append(list(",".join(map("".join, texts[:2]))))
        builder = TimelineBuilder()
        builder.add(range(4), range(1, 5), ["".join(text) for text in texts])
        assert [anchor.number for anchor in builder.timeline().anchors] == [1, 2, 3, 4]


def test_a_time_with_an_exponent_is_invalid() -> None:
    """As a number it would be a fraction, which cannot be stored."""
    builder = TimelineBuilder()
    builder.add(
        [1, 2, 3], [1, 2, 3], ["2026-03-03T10:00:05.000Z", "2026-03-03T10:00:06.e03Z", "2026-03-03T10:00:05.123Z"]
    )
    timeline = Timeline.from_bytes(builder.timeline().to_bytes())
    assert pauses(timeline) == [(1, 0), (2, 0), (3, 123)]


def test_pauses_are_right_whatever_minutes_and_days_are_between() -> None:
    choice = random.Random(3)
    steps = [0, 1, 999, 1_000, 39_999, 40_000, 59_999, 60_000, 3_600_000, 86_400_000, -1, -999, -60_000, -86_400_000]
    times = [*accumulate(choice.choices(steps, k=3_000), initial=0)]
    expected = [max(0, after - before) for before, after in pairwise(times)]
    timeline = built(times)
    assert pauses(timeline) == [*enumerate([0, *expected], 1)]
    assert [anchor.elapsed for anchor in timeline.anchors] == [*accumulate(expected, initial=0)]


def test_a_pause_across_missing_numbers_belongs_to_no_line() -> None:
    timeline = built([0, 10, 500, 510], numbers=[4, 5, 90, 91])
    assert pauses(timeline) == [(4, 0), (5, 10), (91, 10)]
    assert timeline.total == 510


def test_lines_that_do_not_ascend_are_refused() -> None:
    builder = TimelineBuilder()
    builder.add([1, 2], [5, 6], ["", ""])
    with pytest.raises(ValueError, match="line 6 comes after line 6"):
        builder.add([3, 4], [6, 7], ["", ""])


def test_no_line_and_one_line() -> None:
    builder = TimelineBuilder()
    builder.add([], [], [])
    nothing, one = builder.timeline("2026-03-03T10:00:05.500Z"), built([7])
    assert nothing == Timeline(0, 0, 0, 0, 0, None, ())
    for timeline in (nothing, one):
        assert Timeline.from_bytes(timeline.to_bytes()) == timeline
        for good in ([], [nothing] * 3, [one] * 3):
            assert compare(timeline, good).slower == compare(timeline, good).pauses == []
    assert (nothing.strip(), one.strip()) == ([], [(0, 1)])
    assert progress(one, [one] * 3, 9).left == Spread(0, 0, 0)
    assert progress(nothing, [one] * 3, 9).left is None


def test_a_long_log_keeps_its_longest_pauses() -> None:
    """Also the lines before them, and lines from all over the log."""
    choice = random.Random(5)
    times, waited = [0], {}
    for number in range(2, 20_001):
        pause = 0 if 8_000 < number < 14_000 else choice.randrange(100)
        if number % 100 == 0:
            pause = waited[number] = 1_000 + number
        times.append(times[-1] + pause)
    timeline = built(times, [choice.getrandbits(64) for _ in times])
    kept = dict(pauses(timeline))
    assert len(kept) <= MAX_ANCHORS
    assert waited.items() <= kept.items()
    assert {number - 1 for number in waited} <= kept.keys()
    others = kept.keys() - {each - step for each in waited for step in (0, 1)}
    assert all(any(low <= each < low + 1_000 for each in others) for low in range(1, 20_000, 1_000))
    assert timeline.shortest is not None
    left_out = [number for number in range(2, 20_001) if number not in kept]
    assert max(times[number - 1] - times[number - 2] for number in left_out) <= timeline.shortest < 100
    assert all(times[anchor.number - 1] == anchor.elapsed for anchor in timeline.anchors)
    strip = timeline.strip()
    assert (strip[0], strip[-1]) == ((0, 1), (times[-1], 20_000))
    assert strip == sorted(strip)
    assert len({number for _, number in strip}) == len(strip) <= 500
    # The last lines of a log that has just become too long for all of them.
    size = MAX_ANCHORS + 1
    assert [each.number for each in built([*range(size)]).anchors[-32:]] == [*range(size - 31, size + 1)]
    # A long pause keeps both of its ends.
    long = [number for number, pause in waited.items() if pause > times[-1] / 240]
    assert len(long) > 10
    assert {(times[each - 1], each) for number in long for each in (number - 1, number)} <= {*strip}
    assert Timeline.from_bytes(timeline.to_bytes()) == timeline


def test_a_timeline_never_exceeds_its_size() -> None:
    """The worst case of a foreign runner: all values as large and random as possible."""
    choice = random.Random(6)
    numbers = sorted(choice.sample(range(1, 10**15, 10), 5_000))
    numbers = [number + step for number in numbers for step in range(5)]
    times = [choice.randrange(10**14) for _ in numbers]
    timeline = built(times, [choice.getrandbits(64) for _ in numbers], numbers)
    packed = timeline.to_bytes()
    assert 60_000 < len(packed) <= MAX_TIMELINE_BYTES
    assert Timeline.from_bytes(packed) == timeline


def test_memory_is_limited_for_logs_of_any_length() -> None:
    """Lines with shapes beyond the limit are never anchors. Earlier shapes are still counted."""
    builder = TimelineBuilder()
    size = 5_000
    stamps = [iso_timestamp((BEGIN + each) / 1000) for each in range(size)]
    for start in range(0, MAX_SHAPES + 4 * size, size):
        builder.add([1, *range(start + 2, start + size + 1)], range(start + 1, start + size + 1), stamps)
    timeline = builder.timeline()
    assert len(builder._keys) <= MAX_SHAPES
    assert len(builder._longest) <= 2 * MAX_ANCHORS
    assert timeline.lines == MAX_SHAPES + 4 * size
    beyond = [anchor.number for anchor in timeline.anchors if anchor.number > MAX_SHAPES + 2 * size]
    assert beyond == []


@pytest.mark.parametrize("damage", ["cut", "flipped", "other"])
def test_a_damaged_timeline_is_refused(damage: str) -> None:
    packed = built([0, 5, 9_000, 9_001]).to_bytes()
    for place in range(len(packed)):
        data = packed[:place] if damage == "cut" else bytearray(packed)
        if isinstance(data, bytearray):
            data[place] ^= 1 << place % 8
        if damage == "other":
            data = bytes(random.Random(place).randbytes(place))
        with pytest.raises(ValueError, match="timeline"):
            Timeline.from_bytes(bytes(data))


def timeline_of(values: list[int], more: bytes = b"") -> Timeline:
    """The timeline read from these numbers: their lowest bytes come first, then the next ones, and so on."""
    raw = struct.pack(f"<{len(values)}Q", *values)
    packed = zlib.compress(b"".join(raw[byte::8] for byte in range(8))) + more
    return Timeline.from_bytes(blake2b(packed, digest_size=16).digest() + packed)


def test_invalid_timelines_are_refused() -> None:
    """Another version or length, too large or too many numbers, or trailing data."""
    head = [VERSION, 9, 1, 9, 8, 0, 0]
    for count in range(16):
        values = (head + [1] * 9)[:count]
        if count in (7, 11, 15):
            assert len(timeline_of(values).anchors) == (count - 7) // 4
        else:
            with pytest.raises(ValueError, match="another version"):
                timeline_of(values)
    most = 4 * MAX_ANCHORS
    assert len(timeline_of(head + [0] * most).anchors) == MAX_ANCHORS
    assert timeline_of([*head[:4], 2**62, 0, 3]) == Timeline(9, 1, 9, 2**62, 0, 2, ())
    wrong = (
        [VERSION + 1, *head[1:]],
        [*head[:4], 2**62 + 1, 0, 0],
        [*head, 2**62, 1, 0, 0, 0, 0, 0, 0],
        head + [0] * (most + 4),
    )
    for values in wrong:
        with pytest.raises(ValueError, match="timeline"):
            timeline_of(values)
    with pytest.raises(ValueError, match="not a timeline"):
        timeline_of(head, b"x")
    # Anybody with write access to the archive can write one with a valid hash.
    anchors = (timelines.Anchor(2**62, 1, 0, 0), timelines.Anchor(2**63, 2, 0, 0))
    with pytest.raises(ValueError, match="without a log"):
        Timeline.from_bytes(Timeline(2, 1, 2, 0, 0, None, anchors).to_bytes())


def test_a_pause_beyond_every_good_run_is_slower() -> None:
    good = [built([0, 1_000 + each, 5_000, 6_000]) for each in (0, 40, 10, 20, 30)]
    profile = compare(built([0, 1_010, 5_010, 9_010]), good)
    assert profile.total == 9_010
    assert profile.usual == Spread(6_000, 6_000, 6_000)
    assert profile.slower == [(4, 3_000 + 1_000, Spread(1_000, 1_000, 1_000), 3_000)]
    assert [(each.number, each.ms) for each in profile.pauses] == [(3, 4_000), (4, 4_000), (2, 1_010)]


def test_without_good_runs_the_longest_pauses_are_said() -> None:
    profile = compare(built([0, 10, 40]), [])
    assert (profile.usual, profile.slower) == (None, [])
    assert profile.pauses == [(3, 30, None, None), (2, 10, None, None)]


def test_a_run_without_a_common_line_says_nothing() -> None:
    timeline, other = built([0, 10, 40_000]), built([0, 5], [77_777, 88_888])
    profile = compare(timeline, [other, built([])])
    assert (profile.usual, profile.slower) == (Spread(0, 2, 5), [])
    assert profile.pauses == [(3, 39_990, None, None), (2, 10, None, None)]
    (found,) = compare(timeline, [other, built([0, 10, 1_000])]).slower
    assert found == (3, 39_990, Spread(990, 990, 990), 39_000)


@pytest.mark.parametrize(
    ("usual", "noise"),
    [
        # 3 % of the run of 100 s.
        ([[500, 99_500]], 3_000),
        # 30 % of the slowest good run's pause.
        ([[20_000, 80_000], [19_000, 80_000]], 6_000),
        # The difference between the good runs.
        ([[10_000, 90_000], [5_500, 90_000]], 4_500),
        # A quarter of a second.
        ([[100, 900]], 250),
    ],
)
def test_what_is_within_the_noise_is_not_slower(usual: list[list[int]], noise: int) -> None:
    good = [built([0, first, first + second]) for first, second in usual]
    first, second = usual[0]
    assert compare(built([0, first + noise, first + noise + second]), good).slower == []
    (found,) = compare(built([0, first + noise + 1, first + noise + second + 1]), good).slower
    assert (found.number, found.excess) == (2, noise + 1)


def test_other_lines_in_between_are_not_a_delay() -> None:
    """A long step is followed by a different line than in the good runs, by an additional one, or by one less."""
    good = [built([0, 10_000, 10_005, 20_000], [1, 2, 3, 4])] * 3
    for shapes, times in (
        ([1, 9, 3, 4], [0, 10_000, 10_005, 20_000]),
        ([1, 9, 2, 3, 4], [0, 9_000, 10_000, 10_005, 20_000]),
        ([1, 2, 4], [0, 10_000, 20_000]),
        ([1, 4], [0, 20_000]),
    ):
        assert compare(built(times, shapes), good).slower == []
    found = compare(built([0, 9_000, 10_000, 19_000, 29_000], [1, 2, 9, 3, 4]), good).slower
    assert found == [(4, 9_000, Spread(5, 5, 5), 8_995), (3, 1_000, Spread(0, 0, 0), 1_000)]


def test_a_missing_repetition_does_not_shift_the_others() -> None:
    """Each part has a line of its own and a common one. The first part lacks the second."""

    def log(skipped: int | None, seconds: Sequence[int]) -> Timeline:
        times, shapes = [0], [99]
        for part, each in enumerate(seconds):
            times.append(times[-1] + 10)
            shapes.append(100 + 1_000 * part)
            if part != skipped:
                times.append(times[-1] + 1_000 * each)
                shapes.append(77)
        return built(times, shapes)

    good = [log(None, [1, 30, 1, 20, 1, 40, 1, 1])] * 3
    assert compare(log(0, [1, 30, 1, 20, 1, 40, 1, 1]), good).slower == []
    assert compare(good[0], [log(0, [1, 30, 1, 20, 1, 40, 1, 1])] * 3).slower == []
    (found,) = compare(log(0, [1, 30, 1, 20, 11, 40, 1, 1]), good).slower
    assert found.ms == 11_000


def test_a_line_that_a_cut_good_run_left_out_paused_as_long_as_its_shortest_one() -> None:
    good = built([0, 100, 5_000, 9_000])
    cut = good._replace(shortest=150, anchors=good.anchors[2:])
    (found,) = compare(built([0, 4_000, 8_900, 12_900]), [cut] * 3).slower
    assert found == (2, 4_000, Spread(150, 150, 150), 3_850)


def test_the_time_left_is_what_good_runs_needed_from_here() -> None:
    good = [built([0, 1_000, 2_000 + each, 3_000 + each], end=4_000 + each) for each in (0, 300, 600)]
    running = built([0, 1_500])
    # The margin is the distance between minimum and maximum.
    assert progress(running, good, 400).left == Spread(2_600 - 600, 2_900, 3_200 + 600)
    assert progress(running, good, 400).usual == Spread(1_000, 1_300, 1_600)
    assert Spread(1, 2_500, 61_000).to_json() == {"least": 0.001, "median": 2.5, "most": 61.0}
    # While it is silent for longer than usual, the time after the next line remains.
    assert progress(running, good, 90_000).left == Spread(2_000, 2_000, 2_000)
    assert progress(running, good[:2], 400).left is None
    assert progress(running, good[:2], 400).usual == Spread(1_000, 1_150, 1_300)


def test_the_time_left_is_not_guessed_after_lines_that_no_good_run_has() -> None:
    good = [built([0, 1_000, 2_000], [1, 2, 3])] * 3
    times = range(0, 100, 2)
    assert progress(built(times, [1, *range(900, 900 + 7 * 49, 7)]), good, 0) == (0, None, None)
    soon = progress(built([0, 1_000, 1_300], [1, 2, 7_000]), good, 100)
    assert (soon.usual, soon.left) == (None, Spread(600, 600, 600))
