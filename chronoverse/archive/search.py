"""Searches the archived part of a log, frame by frame. :mod:`chronoverse.archive.prefilter` searches one frame."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

from chronoverse.archive.codec import decompress_frame
from chronoverse.archive.prefilter import HeavyRunner, Prefilter
from chronoverse.archive.reader import ArchiveReader
from chronoverse.joblog.chunk import Frame
from chronoverse.joblog.matcher import Matcher
from chronoverse.joblog.values import JobRef, Line


def _run_here(find: Callable[[], list[Line]]) -> list[Line]:
    return find()


class FoundLines(NamedTuple):
    """The matching lines of one frame in the order of the search, and the last number that was searched."""

    lines: list[Line]
    cursor: int


def search(
    archive: ArchiveReader,
    job: JobRef,
    matcher: Matcher,
    cursor: int,
    *,
    descending: bool = False,
    predicate: Callable[[Line], bool] | None = None,
    since: str | None = None,
    until: str | None = None,
    run_heavy: HeavyRunner = _run_here,
    pause: Callable[[], object] = lambda: None,
) -> Iterator[FoundLines]:
    """The lines after ``cursor``, or before it, that match and that ``predicate`` accepts; one frame at a time.

    ``since`` and ``until`` are times as ``iso_timestamp`` formats them. They only leave out frames whose lines are all
    earlier or later; ``predicate`` must check the lines of the others. When ``descending``, ``cursor`` is at most the
    archive's last number and 1.

    ``run_heavy`` calls the function that it is given, perhaps in another thread. The function searches
    :data:`~chronoverse.archive.prefilter.PART_BYTES`, or one line, for an expensive expression, which takes up to a
    second without any waiting. ``pause`` is called for each line that a text was found in, after each searched part,
    and before and after a frame is decompressed. That takes 0.1 ms, and apart from reads nothing between two calls
    takes much longer.

    Raises: :class:`ArchiveUnavailable`, :class:`ArchiveDamaged`, and what the archive's index raises.
    """
    prefilter = Prefilter(matcher, run_heavy, pause)

    def skip(frame: Frame) -> bool:
        return bool(frame.latest) and (frame.latest < (since or "") or (until is not None and frame.earliest > until))

    for frame, data in archive.scan_frames(job, cursor, descending=descending, skip=skip):
        pause()
        lines = [] if data is None else prefilter.matching_lines(decompress_frame(frame, data))
        previous = cursor
        cursor = frame.first if descending else frame.last
        if descending:
            lines = [line for line in reversed(lines) if line.sequence_num < previous]
        elif lines and lines[0].sequence_num <= previous:
            lines = [line for line in lines if line.sequence_num > previous]
        yield FoundLines([line for line in lines if predicate(line)] if predicate else lines, cursor)
