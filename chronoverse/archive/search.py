"""Filters the archived part of a log, frame by frame. :mod:`chronoverse.archive.prefilter` searches one frame."""

from collections.abc import Iterator
from typing import NamedTuple, Protocol

from chronoverse.archive.codec import decompress_frame
from chronoverse.archive.reader import ArchiveReader
from chronoverse.joblog.chunk import Frame
from chronoverse.joblog.values import JobRef, Line


class FrameFilter(Protocol):
    """Finds the lines of a frame that are wanted, such as :class:`chronoverse.archive.prefilter.Prefilter`."""

    def matching_lines(self, text: bytes) -> list[Line]:
        """The lines of a frame's JSON Lines that are wanted, in order."""


class FoundLines(NamedTuple):
    """The matching lines of one frame in the order of the search, and the last number that was searched."""

    lines: list[Line]
    cursor: int


def search(
    archive: ArchiveReader,
    job: JobRef,
    frame_filter: FrameFilter,
    cursor: int,
    *,
    descending: bool = False,
    since: str | None = None,
    until: str | None = None,
) -> Iterator[FoundLines]:
    """The lines after ``cursor``, or before it, that ``frame_filter`` finds, frame by frame.

    ``since`` and ``until`` are times as ``iso_timestamp`` formats them. They only leave out frames whose lines are all
    earlier or later. The caller must check the times of the lines that were found. When ``descending``, ``cursor`` is
    at most the archive's last number and 1.

    Raises :class:`ArchiveUnavailable`, :class:`ArchiveDamaged`, and what the archive's index raises.
    """

    def skip(frame: Frame) -> bool:
        return bool(frame.latest) and (frame.latest < (since or "") or (until is not None and frame.earliest > until))

    for frame, data in archive.scan_frames(job, cursor, descending=descending, skip=skip):
        lines = [] if data is None else frame_filter.matching_lines(decompress_frame(frame, data))
        previous = cursor
        cursor = frame.first if descending else frame.last
        if descending:
            lines = [line for line in reversed(lines) if line.sequence_num < previous]
        elif lines and lines[0].sequence_num <= previous:
            lines = [line for line in lines if line.sequence_num > previous]
        yield FoundLines(lines, cursor)
