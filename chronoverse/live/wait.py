"""What somebody who waits for a line learns from a viewer. Pure.

A wait has a viewer inside. So lost runners, gaps, redactions, archived lines, expired tokens and workers that shut down
are handled once, in the viewer.
"""

from typing import Any, Final

import orjson

from chronoverse.joblog import sse
from chronoverse.joblog.values import Job
from chronoverse.live.viewer import Viewer

#: Gaps of one answer. A foreign log may have one for each entry. The wait then ends early, and the next one goes on.
MAX_GAPS: Final = 100
#: The outcome, by why the wait is over or its viewer is done. With any other reason the log cannot be read.
_OUTCOMES: Final = {
    "matched": "matched",
    "end": "ended",
    **dict.fromkeys(("gaps", "age", "drain", "expired", "left", "slow"), "timeout"),
}


class Wait:
    """Reads the frames of a viewer until it is over: a line has come, the first that matches, or too many gaps.

    With ``wants_line`` False only the end of the job counts.
    """

    __slots__ = ("cursor", "error", "gaps", "line", "wants_line")

    def __init__(self, *, wants_line: bool) -> None:
        self.wants_line = wants_line
        #: The JSON of the line, once it has come.
        self.line: str | None = None
        #: The number of that line, or the last one of the last gap.
        self.cursor = 0
        #: Lines that cannot be had any more, as in the frames.
        self.gaps: tuple[dict[str, Any], ...] = ()
        #: The text of the last ``error`` frame.
        self.error = ""

    def feed(self, frames: bytes) -> None:
        """Reads the next frames, whole ones. Those after the wait is over are ignored."""
        if self.is_over:
            return
        for event in sse.Decoder().feed(frames):
            if event.event == "log" and self.wants_line:
                self.line, self.cursor = event.data, int(event.id)
                return
            if event.event == "gap":
                gap = orjson.loads(event.data)
                self.gaps += (gap,)
                self.cursor = gap["to"]
                if len(self.gaps) >= MAX_GAPS:
                    return
            elif event.event == "error":
                self.error = event.data

    @property
    def is_over(self) -> bool:
        """Whether the answer is known, whatever the viewer says next."""
        return bool(self.reason)

    @property
    def reason(self) -> str:
        """Why the wait is over: ``matched`` or ``gaps``. Empty while it is not."""
        if self.line is not None:
            return "matched"
        return "gaps" if len(self.gaps) >= MAX_GAPS else ""

    def outcome(self, viewer: Viewer) -> str | None:
        """``matched``, ``ended`` or ``timeout``. None when the log cannot be read; then :attr:`error` says why.

        Makes the wait's reason the viewer's, so that it is counted as such.
        """
        viewer.reason = self.reason or viewer.reason
        return _OUTCOMES.get(viewer.reason)

    def to_json(self, outcome: str, viewer: Viewer, job: Job) -> bytes:
        """The answer. ``job`` was just fetched."""
        body: dict[str, Any] = {
            "outcome": outcome,
            "log": None if self.line is None else orjson.Fragment(self.line),
            "cursor": self.cursor if self.is_over else viewer.cursor,
            "job": job.to_json(),
        }
        return orjson.dumps({**body, "gaps": self.gaps} if self.gaps else body)
