"""Where a job's time went: the pauses before its lines, in a compact form, compared with those of good runs.

The *pause* before a line is the time since the previous line. A line is recognized in another run by its shape, and by
the number of earlier lines with that shape. ``docs/answers.md`` describes the rules and their limits.
"""

import struct
import zlib
from bisect import bisect_left
from collections import deque
from collections.abc import Collection, Iterator, Sequence
from hashlib import blake2b
from itertools import accumulate, chain, count, repeat
from operator import add, attrgetter, sub
from statistics import median
from typing import Final, NamedTuple

from chronoverse.joblog.model import seconds_of
from chronoverse.joblog.shapes import MAX_SHAPES

#: Must change when a line's key or the format of a packed timeline changes.
VERSION: Final = 1
#: Maximum lines of a log kept for comparison with other runs. Shorter logs keep all lines.
MAX_ANCHORS: Final = 4_096
#: Maximum bytes of a packed timeline, even if it does not compress.
MAX_TIMELINE_BYTES: Final = 2**17 + 2**10
#: Maximum pauses in an answer.
MAX_LISTED: Final = 20

#: Longer logs keep three sets of lines. First, those with the longest pauses, each with the line before it.
_MAX_LONGEST: Final = 1_776
#: Second, samples of all other lines, selected by their keys, so that each run keeps the same ones.
_MAX_SAMPLES: Final = 512
#: Third, the last lines.
_RECENT: Final = 32
#: An excess at or below any of these is noise: ms, a fraction of the run, a fraction of the slowest good run's pause.
_NOISE_MS: Final = 250
_NOISE_OF_TOTAL: Final = 0.03
_NOISE_OF_PAUSE: Final = 0.3
_DIGEST_BYTES: Final = 16
#: A key has 48 bits. Between two logs of 4,096 anchors, two lines are confused once in 8 million cases.
_KEY_MASK: Final = 2**47 - 1
#: Set in the key of the first line of a shape.
_IS_FIRST: Final = 2**47
#: Maximum stored value. Only a clock that jumps between centuries exceeds it.
_LARGEST: Final = 2**62


class Spread(NamedTuple):
    """The minimum, median and maximum of some times, in ms."""

    least: int
    median: int
    most: int

    @classmethod
    def of(cls, times: Collection[int]) -> "Spread":
        """The spread of ``times``, which must not be empty."""
        return cls(min(times), round(median(times)), max(times))

    def to_json(self) -> dict[str, float]:
        """As JSON, in seconds."""
        return {name: value / 1000 for name, value in self._asdict().items()}


class Anchor(NamedTuple):
    """A line that can be recognized in another run. Times are in ms.

    ``number``: the line's number. ``key``: identifies its shape, and its index among lines of that shape. ``pause``:
    time since the previous line. ``elapsed``: time since the log's first line.
    """

    number: int
    key: int
    pause: int
    elapsed: int


class Timeline(NamedTuple):
    """The times of one log, in ms, with at most :data:`MAX_ANCHORS` ``anchors`` in order.

    ``lines`` counts all lines, numbered ``first`` to ``last``. ``total`` is the time between these two lines,
    ``after_last`` the time from the last line to the job's end, or 0 if unknown. Pauses before lines that are not
    anchors are at most ``shortest``, which is None if all lines are anchors.
    """

    lines: int
    first: int
    last: int
    total: int
    after_last: int
    shortest: int | None
    anchors: Sequence[Anchor]

    def to_bytes(self) -> bytes:
        """The packed timeline: a BLAKE2b hash of the compressed data, then that data."""
        packed = zlib.compress(_columns(self), 6)
        return blake2b(packed, digest_size=_DIGEST_BYTES).digest() + packed

    @classmethod
    def from_bytes(cls, data: bytes) -> "Timeline":
        """Unpacks the result of :meth:`to_bytes`. Raises ValueError for invalid data."""
        digest, packed = data[:_DIGEST_BYTES], data[_DIGEST_BYTES:]
        if digest != blake2b(packed, digest_size=_DIGEST_BYTES).digest():
            raise ValueError("not a timeline, or damaged")
        values = _values(packed)
        if len(values) < 7 or values[0] != VERSION or len(values) % 4 != 3:
            raise ValueError("a timeline of another version")
        lines, first, last, total, after_last, cut = values[1:7]
        size = len(values) // 4 - 1
        numbers, keys, pauses, rests = (values[7 + size * column : 7 + size * (column + 1)] for column in range(4))
        elapsed = accumulate(map(add, pauses, rests))
        anchors = tuple(map(Anchor, accumulate(numbers), keys, pauses, elapsed))
        # Untrusted. JSON has no larger numbers.
        largest = (anchors[-1].number, anchors[-1].elapsed) if anchors else ()
        if max(*values[1:7], *largest) > _LARGEST:
            raise ValueError("a timeline without a log")
        return cls(lines, first, last, total, after_last, cut - 1 if cut else None, anchors)

    def strip(self, points: int = 500) -> list[tuple[int, int]]:
        """At most ``points`` pairs (ms since the first line, line number), ascending, spread evenly over the time."""
        if not self.lines:
            return []
        found: list[tuple[int, int]] = []
        step = max(1, -(-self.total // max(1, points // 2 - 1)))
        # The first line after a gap is not an anchor, but the next line gives its time.
        anchors = [
            point
            for anchor in self.anchors
            for point in ((anchor.elapsed - anchor.pause, anchor.number - 1), (anchor.elapsed, anchor.number))
        ]
        # The last line before each step and the first after it, so that a long pause keeps both ends.
        for elapsed, number in [(0, self.first), *anchors, (self.total, self.last)]:
            if len(found) > 1 and found[-1][0] // step == found[-2][0] // step == elapsed // step:
                found[-1] = (elapsed, number)
            elif not found or number > found[-1][1]:
                found.append((elapsed, number))
        return found


def _columns(timeline: Timeline) -> bytes:
    """The numbers of a timeline as 64-bit values: the lowest byte of each, then the second of each, and so on.

    Most of the higher bytes are 0, so they compress well.
    """
    numbers, keys, pauses, elapsed = zip(*timeline.anchors, strict=True) if timeline.anchors else ((), (), (), ())
    shortest = 0 if timeline.shortest is None else timeline.shortest + 1
    values = [
        *(VERSION, timeline.lines, timeline.first, timeline.last, timeline.total, timeline.after_last, shortest),
        *_differences(numbers),
        *keys,
        *pauses,
        *map(sub, _differences(elapsed), pauses),
    ]
    if max(values) > _LARGEST:
        values = [min(value, _LARGEST) for value in values]
    raw = struct.pack(f"<{len(values)}Q", *values)
    return b"".join(raw[byte::8] for byte in range(8))


def _values(packed: bytes) -> Sequence[int]:
    """The numbers of a packed timeline. Raises ValueError if invalid."""
    most = 8 * (7 + 4 * MAX_ANCHORS)
    try:
        unpacker = zlib.decompressobj()
        planes = unpacker.decompress(packed, most)
    except zlib.error as error:
        raise ValueError("not a timeline") from error
    if not unpacker.eof or unpacker.unused_data or len(planes) % 8:
        raise ValueError("not a timeline")
    raw = bytearray(len(planes))
    size = len(planes) // 8
    for byte in range(8):
        raw[byte::8] = planes[size * byte : size * (byte + 1)]
    return struct.unpack(f"<{size}Q", raw)


class _Keys(dict[int, Iterator[int]]):
    """Iterators over the keys of each shape's lines. Shapes beyond :data:`MAX_SHAPES` have the key 0."""

    def __missing__(self, shape: int) -> Iterator[int]:
        if len(self) >= MAX_SHAPES:
            return repeat(0)
        first = (shape & _KEY_MASK) + 1
        self[shape] = found = chain((first + _IS_FIRST,), count(first + 1))
        return found


#: The values of an anchor. A plain tuple is created in a third of the time.
_Row = tuple[int, int, int, int]


class TimelineBuilder:
    """Builds a timeline from a log's lines, in order. Takes about 20 MB of memory at most."""

    def __init__(self) -> None:
        self._keys = _Keys()
        self._lines = self._first = self._last = self._total = self._last_time = 0
        #: All lines, up to :data:`MAX_ANCHORS`.
        self._all: list[_Row] = []
        #: If there are more, those with the longest pauses: (minus the pause, key, line, the line before it).
        self._longest: list[tuple[int, int, _Row, _Row | None]] = []
        self._threshold = 0
        self._samples: list[_Row] = []
        self._sample_mask = 0
        self._recent: deque[_Row | None] = deque((None,), maxlen=_RECENT)

    def add(self, hashes: Sequence[int], numbers: Sequence[int], timestamps: Sequence[str]) -> None:
        """Adds lines: the hashes of their shapes, their numbers, and their timestamps.

        Lines can be missing before and among them. Raises ValueError if numbers do not ascend.
        """
        if not numbers:
            return
        if numbers[0] <= self._last:
            raise ValueError(f"line {numbers[0]} comes after line {self._last}")
        pauses = self._read_pauses(timestamps)
        if not self._lines:
            self._first, self._last = numbers[0], numbers[0] - 1
        elapsed = list(accumulate(pauses, initial=self._total))
        keys = list(map(next, map(self._keys.__getitem__, hashes)))
        unknown = self._unknown(keys, numbers)

        def row(index: int) -> _Row | None:
            return None if index in unknown else (numbers[index], keys[index], pauses[index], elapsed[index + 1])

        if self._lines <= MAX_ANCHORS:
            rows = zip(numbers, keys, pauses, elapsed[1:], strict=True)
            self._all += [each for index, each in enumerate(rows) if index not in unknown] if unknown else rows
        else:
            threshold, mask, before = self._threshold, self._sample_mask, self._recent[-1]
            for index in [index for index, pause in enumerate(pauses) if pause > threshold]:
                if found := row(index):
                    self._longest.append((-found[2], found[1], found, row(index - 1) if index else before))
            self._samples += filter(None, map(row, [index for index, key in enumerate(keys) if not key & mask]))
            self._recent.extend(map(row, range(max(0, len(numbers) - _RECENT), len(numbers))))
        self._lines += len(numbers)
        self._last, self._total = numbers[-1], elapsed[-1]
        if self._lines > MAX_ANCHORS:
            self._cut()

    def _read_pauses(self, timestamps: Sequence[str]) -> list[int]:
        """The pause before each line. A line without a valid time gets the previous line's time."""
        # Many lines have the same time.
        known = {text: round(1000 * seconds) for text in {*timestamps} if (seconds := seconds_of(text))}
        before = self._last_time if self._lines else next(filter(None, map(known.get, timestamps)), 0)
        times = [before := known.get(text, before) for text in timestamps]
        pauses = [max(0, pause) for pause in map(sub, times, chain(times[:1], times))]
        pauses[0] = max(0, times[0] - self._last_time) if self._lines else 0
        self._last_time = before
        return pauses

    def _unknown(self, keys: Sequence[int], numbers: Sequence[int]) -> set[int]:
        """The lines that cannot be anchors, because their index within their shape, or their pause, is unknown."""
        found: set[int] = set()
        if len(self._keys) >= MAX_SHAPES:
            found.update(index for index, key in enumerate(keys) if not key)
        if numbers[-1] - self._last != len(numbers):
            steps = map(sub, numbers, chain((self._last,), numbers))
            found.update(index for index, step in enumerate(steps) if step != 1)
        return found

    def _cut(self) -> None:
        """Drops the shortest pauses, and every second sample, if there are too many."""
        if self._all:
            for row, last in zip(self._all, chain((None,), self._all), strict=False):
                self._longest.append((-row[2], row[1], row, last if last and last[0] == row[0] - 1 else None))
            self._samples = self._all
            self._recent.extend(self._all[-_RECENT:])
            self._all = []
        if len(self._longest) > 2 * _MAX_LONGEST:
            self._longest.sort()
            del self._longest[_MAX_LONGEST:]
            self._threshold = -self._longest[-1][0]
        while len(self._samples) > _MAX_SAMPLES:
            self._sample_mask = 2 * self._sample_mask + 1
            self._samples = [row for row in self._samples if not row[1] & self._sample_mask]

    def timeline(self, ended_at: str | None = None) -> Timeline:
        """The timeline of all lines so far. ``ended_at`` is when the job ended, if it has."""
        shortest, kept = None, self._all
        if self._lines > MAX_ANCHORS:
            longest = sorted(self._longest)[:_MAX_LONGEST]
            shortest = -longest[-1][0] if longest else 0
            pairs = chain.from_iterable(each[2:] for each in longest)
            kept = sorted({row for row in (*pairs, *self._samples, *self._recent) if row})
        anchors = tuple(map(Anchor._make, kept))
        end = seconds_of(ended_at)
        after_last = 0 if end is None or not self._lines else max(0, round(1000 * end) - self._last_time)
        return Timeline(self._lines, self._first, self._last, self._total, after_last, shortest, anchors)


class Pause(NamedTuple):
    """The pause before line ``number``, in ms; the usual pause there; and the excess over the slowest good run.

    ``usual`` and ``excess`` are None without good runs. ``usual`` is 0 for a line that no good run has. An excess
    within the noise is 0.
    """

    number: int
    ms: int
    usual: Spread | None
    excess: int | None


class Profile(NamedTuple):
    """Times of a run and of good runs, in ms; the run's pauses that are longer than usual; its longest pauses."""

    total: int
    usual: Spread | None
    slower: Sequence[Pause]
    pauses: Sequence[Pause]


def compare(timeline: Timeline, good: Sequence[Timeline]) -> Profile:
    """Compares a job with good runs. Sorts ``slower`` by excess and ``pauses`` by length, both descending."""
    longest = sorted((-anchor.pause, index) for index, anchor in enumerate(timeline.anchors) if anchor.pause)
    usual = Spread.of([each.total for each in good]) if good else None
    floor = max(_NOISE_MS, _NOISE_OF_TOTAL * min(usual.median, timeline.total)) if usual else _LARGEST
    # Only these pauses can exceed the noise, or be among the longest.
    wanted = [index for rank, (pause, index) in enumerate(longest) if -pause > floor or rank < MAX_LISTED]
    # Runs without a line in common with the job are not comparable.
    runs = [each for each in (_compare(timeline, run, wanted) for run in good) if each]
    found: list[Pause] = []
    for row, index in enumerate(wanted):
        number, _, pause, _ = timeline.anchors[index]
        if not runs:
            found.append(Pause(number, pause, None, None))
            continue
        known = Spread.of([there for run in runs if (there := run[row][1]) is not None] or [0])
        excess = min(run[row][0] for run in runs)
        is_above = excess > max(floor, known.most - known.least)
        found.append(Pause(number, pause, known, excess if is_above else 0))
    slower = sorted((each for each in found if each.excess), key=attrgetter("excess"), reverse=True)
    return Profile(timeline.total, usual, slower[:MAX_LISTED], found[:MAX_LISTED])


def _compare(timeline: Timeline, good: Timeline, wanted: Sequence[int]) -> list[tuple[int, int | None]]:
    """For each ``wanted`` anchor: how much longer its pause is than in the good run, and that run's pause.

    Different lines can precede an anchor in the two runs, so the times since the last common line are compared, too.
    The first value is the smaller excess, or 0 if that is noise; the second is None if the good run lacks the line.
    """
    common = _common(timeline, good)
    if not common:
        return []
    here = [timeline.anchors[index].elapsed for index in common]
    there = [good.anchors[index].elapsed for index in common.values()]
    more = [*map(_above_noise, _differences(here), _differences(there)), _LARGEST]
    indexes = [*common]
    found: list[tuple[int, int | None]] = []
    for index in wanted:
        pause = good.anchors[common[index]].pause if index in common else good.shortest
        own = _above_noise(timeline.anchors[index].pause, pause or 0)
        found.append((min(own, more[bisect_left(indexes, index)]), pause))
    return found


def _above_noise(here: int, there: int) -> int:
    return here - there if here - there > _NOISE_OF_PAUSE * there else 0


def _differences(values: Sequence[int]) -> list[int]:
    return list(map(sub, values, chain((0,), values)))


def _common(timeline: Timeline, good: Timeline) -> dict[int, int]:
    """The largest set of anchors that both timelines have in the same order: a map from indexes to ``good`` indexes.

    This is a longest increasing subsequence, as in a patience diff. Lines with a unique shape count three times,
    because they are certainly the same.
    """
    by_key = {anchor.key: index for index, anchor in enumerate(good.anchors)}
    matched = {index: by_key[anchor.key] for index, anchor in enumerate(timeline.anchors) if anchor.key in by_key}
    if [*matched.values()] == sorted(matched.values()):
        return matched
    keys = {anchor.key for anchor in timeline.anchors}
    # For each length, the subsequence with the lowest end: that end, and its index in ``timeline``.
    ends: list[int] = []
    tails: list[int] = []
    before: dict[int, int | None] = {}
    for index, good_index in matched.items():
        length = bisect_left(ends, 3 * good_index)
        before[index] = tails[length - 1] if length else None
        key = timeline.anchors[index].key
        second = (key ^ _IS_FIRST) + 1
        for more in range(3 if key & _IS_FIRST and second not in by_key and second not in keys else 1):
            ends[length + more : length + more + 1] = [3 * good_index + more]
            tails[length + more : length + more + 1] = [index]
    kept: dict[int, int] = {}
    last = tails[-1] if tails else None
    while last is not None:
        kept[last] = matched[last]
        last = before[last]
    return dict(reversed(kept.items()))


class Progress(NamedTuple):
    """How long a running job has been silent, the usual pause after its last line, and the estimated time left, in ms.

    ``left`` is None unless at least three good runs contain one of this job's latest lines.
    """

    silent: int
    usual: Spread | None
    left: Spread | None


def progress(timeline: Timeline, good: Sequence[Timeline], silent: int) -> Progress:
    """Estimates a running job's progress from good runs. The job's last line came ``silent`` ms ago."""
    usual: list[int] = []
    left: list[int] = []
    for run in good:
        common = _common(timeline, run)
        last = max(common, default=-1)
        if last < max(0, len(timeline.anchors) - _RECENT):
            continue
        here, there = timeline.anchors[last], run.anchors[common[last]]
        end = run.total + run.after_last
        following = run.anchors[common[last] + 1] if common[last] + 1 < len(run.anchors) else None
        next_at = following.elapsed if following else end
        # The job has not reached the next line. If it is silent for longer than usual, the time left stays constant.
        left.append(end - min(there.elapsed + timeline.total - here.elapsed + silent, next_at))
        if here.number == timeline.last:
            is_next = run.shortest is None or following is None or following.number == there.number + 1
            usual.append(next_at - there.elapsed if is_next else run.shortest or 0)
    return Progress(silent, Spread.of(usual) if usual else None, _wider(left) if len(left) >= 3 else None)


def _wider(times: Sequence[int]) -> Spread:
    """The spread of ``times``, with wider margins.

    The spread of five runs contains the next run in two of three cases. With these margins: in five of six cases.
    """
    least, middle, most = Spread.of(times)
    margin = (most - least) // (len(times) - 2)
    return Spread(max(0, least - margin), middle, most + margin)
