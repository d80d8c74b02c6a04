"""Searching the archive, frame by frame; which lines match, :mod:`chronoverse.archive.prefilter` says."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

from chronoverse.archive.codec import unpack
from chronoverse.archive.prefilter import Prefilter, Work
from chronoverse.archive.reader import ArchiveReader
from chronoverse.joblog.chunk import Frame
from chronoverse.joblog.matcher import Matcher
from chronoverse.joblog.values import JobRef, Line


def _at_once(look: Callable[[], list[Line]]) -> list[Line]:
    return look()


class FoundLines(NamedTuple):
    """Lines of one frame that match, in the order asked for, and the last number looked at."""

    lines: list[Line]
    place: int


def search(
    archive: ArchiveReader,
    job: JobRef,
    matcher: Matcher,
    place: int,
    *,
    descending: bool = False,
    wanted: Callable[[Line], bool] | None = None,
    since: str | None = None,
    until: str | None = None,
    work: Work = _at_once,
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
    sieve = Prefilter(matcher, work, pause)

    def skip(frame: Frame) -> bool:
        return bool(frame.latest) and (frame.latest < (since or "") or (until is not None and frame.earliest > until))

    for frame, packed in archive.packed(job, place, descending=descending, skip=skip):
        pause()
        lines = [] if packed is None else sieve.lines(unpack(frame, packed))
        edge = place
        place = frame.first if descending else frame.last
        if descending:
            lines = [line for line in reversed(lines) if line.sequence_num < edge]
        elif lines and lines[0].sequence_num <= edge:
            lines = [line for line in lines if line.sequence_num > edge]
        yield FoundLines([line for line in lines if wanted(line)] if wanted else lines, place)
