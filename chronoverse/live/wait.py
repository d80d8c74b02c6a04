"""What somebody who waits for a line learns from a viewer. Pure.

A wait has a viewer inside. So lost runners, gaps, redactions, archived lines, expired tokens and workers that shut down
are handled once, in the viewer.
"""

from typing import Any, Final

import orjson

from chronoverse.joblog import sse
from chronoverse.joblog.model import Job
from chronoverse.live.feed import SLICE_BYTES
from chronoverse.live.viewer import Viewer

#: Gaps that an answer names. A foreign log may have one for each entry. The others are counted.
MAX_GAPS: Final = 100
#: Bytes of the lines of an answer, as of what a viewer holds that does not read. The first line is there in any case.
MAX_LINES_BYTES: Final = SLICE_BYTES
#: The outcome, by why the wait is over or its viewer is done. With any other reason the log cannot be read.
_OUTCOMES: Final = {
    "matched": "matched",
    "end": "ended",
    **dict.fromkeys(("age", "drain", "expired", "left", "slow"), "timeout"),
}


class Wait:
    """Reads the frames of a viewer. It is over when a line has come that matches.

    Up to ``limit`` lines that are there then may be read as well. With a ``limit`` of 0 only the end of the job counts.
    """

    __slots__ = ("_limit", "_room", "cursor", "error", "gaps", "is_full", "lines", "more_gaps")

    def __init__(self, *, limit: int) -> None:
        self._limit = limit
        self._room = MAX_LINES_BYTES
        #: The JSON of each line that matches.
        self.lines: tuple[str, ...] = ()
        #: Whether there is no room for further lines, or further ones do not matter.
        self.is_full = False
        #: The number of the last of these lines.
        self.cursor = 0
        #: Lines that cannot be had any more, as in the frames, and how many such frames came after these.
        self.gaps: tuple[dict[str, Any], ...] = ()
        self.more_gaps = 0
        #: The text of the last ``error`` frame.
        self.error = ""

    def feed(self, frames: bytes) -> None:
        """Reads the next frames, whole ones. What comes after the last line that has room is ignored."""
        if self.is_full:
            return
        for event in sse.Decoder().feed(frames):
            if event.event == "log" and self._limit:
                self._room -= len(event.data)
                if self.lines and self._room < 0:
                    self.is_full = True
                    return
                self.lines += (event.data,)
                self.cursor = int(event.id)
                if len(self.lines) == self._limit:
                    self.is_full = True
                    return
            elif event.event == "gap":
                if len(self.gaps) < MAX_GAPS:
                    self.gaps += (orjson.loads(event.data),)
                else:
                    self.more_gaps += 1
            elif event.event == "error":
                self.error = event.data

    @property
    def is_over(self) -> bool:
        """Whether a line has come."""
        return bool(self.lines)

    def outcome(self, viewer: Viewer) -> str | None:
        """``matched``, ``ended`` or ``timeout``. None when the log cannot be read; then :attr:`error` says why.

        Makes the wait's reason the viewer's, so that it is counted as such.
        """
        viewer.reason = "matched" if self.lines else viewer.reason
        return _OUTCOMES.get(viewer.reason)

    def to_json(self, outcome: str, viewer: Viewer, job: Job, *, with_lines: bool) -> bytes:
        """The answer. ``job`` was just fetched. ``with_lines`` adds all lines, not only the first."""
        lines = [orjson.Fragment(line) for line in self.lines]
        body: dict[str, Any] = {
            "outcome": outcome,
            "log": lines[0] if lines else None,
            "cursor": self.cursor if self.is_full else viewer.cursor,
            "job": job.to_json(),
        }
        if with_lines:
            body["logs"] = lines
        if self.gaps:
            body["gaps"] = self.gaps
        if self.more_gaps:
            body["more_gaps"] = self.more_gaps
        return orjson.dumps(body)
