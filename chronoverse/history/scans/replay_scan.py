"""What a worker asks the scan server for when a stream replays stored lines that it compares with a query."""

from dataclasses import dataclass
from typing import ClassVar, Final

from chronoverse.history.pages import BATCH_CHARACTERS
from chronoverse.history.scans.scan import JobScan

#: Seconds after which the scan server returns what it has found for a stream or a download. Then other scans get their
#: turn.
SHORT_SCAN_SECONDS: Final = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplayScan(JobScan):
    """Asks for the event frames strictly after ``position``, with the lines that pass the filter.

    The filter is that of :class:`~chronoverse.joblog.line_filter.LineFilter`. With ``is_redacted`` the log was redacted
    a moment ago, so nothing that is cached of it counts.
    """

    PATH: ClassVar = "/replay"
    #: Replays never take long, so they do not wait for the subject's searches and summaries.
    TURN: ClassVar = "replay"

    position: int
    stream: str | None
    q: str | None
    regex: bool
    is_redacted: bool
    page_bytes: int = BATCH_CHARACTERS
    seconds: float = SHORT_SCAN_SECONDS
