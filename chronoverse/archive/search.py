"""Searching the archive, frame by frame; which lines match, :mod:`chronoverse.archive.prefilter` says."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

from chronoverse.archive.codec import decompress_frame
from chronoverse.archive.prefilter import HeavyRunner, Prefilter
from chronoverse.archive.reader import ArchiveReader
from chronoverse.joblog.chunk import Frame
from chronoverse.joblog.matcher import Matcher
from chronoverse.joblog.values import JobRef, Line


def _run_here(look: Callable[[], list[Line]]) -> list[Line]:
    return look()


class FoundLines(NamedTuple):
    """Lines of one frame that match, in the order asked for, and the last number looked at."""

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
    pause: Callable[[], object] = bool,
) -> Iterator[FoundLines]:
    """The lines that match and are ``wanted``, strictly after ``place``, or before it; a frame at a time.

    ``since`` and ``until`` are times as ``iso_timestamp`` spells them: frames are left out that are earlier or later
    as a whole; which lines of the others are, ``wanted`` says. ``work`` calls what it is given: what a heavy expression
    finds in :data:`~chronoverse.archive.prefilter.PART_BYTES` or a line, up to a second. That waits for nothing, and
    may be done by another thread. ``pause`` is called for each line that a text finds, for each part that was looked
    through, and before and behind the unpacking of a frame, which is some 0.1 ms: so nothing between two calls takes
    much longer, a read aside. ``place`` is at most one past the archive's last number when ``descending``.

    Raises: :class:`ArchiveUnavailable`, :class:`ArchiveDamaged`, and what the archive's index raises.
    """
    prefilter = Prefilter(matcher, run_heavy, pause)

    def skip(frame: Frame) -> bool:
        return bool(frame.latest) and (frame.latest < (since or "") or (until is not None and frame.earliest > until))

    for frame, packed in archive.scan_frames(job, cursor, descending=descending, skip=skip):
        pause()
        lines = [] if packed is None else prefilter.matching_lines(decompress_frame(frame, packed))
        edge = cursor
        cursor = frame.first if descending else frame.last
        if descending:
            lines = [line for line in reversed(lines) if line.sequence_num < edge]
        elif lines and lines[0].sequence_num <= edge:
            lines = [line for line in lines if line.sequence_num > edge]
        yield FoundLines([line for line in lines if predicate(line)] if predicate else lines, cursor)
