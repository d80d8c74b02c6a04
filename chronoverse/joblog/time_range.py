"""Times of lines, and the range of times that a search asks for."""

import re
from typing import Final, NamedTuple

from chronoverse.joblog.model import iso_timestamp, seconds_of

#: A time as we write it. Two such times can be compared as texts.
_OURS: Final = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}\.[0-9]{3}Z", re.ASCII)


def read_time(text: str) -> str | None:
    """An ISO 8601 time as :func:`iso_timestamp` writes it. Without a zone it is UTC. None if ``text`` is not a time."""
    if _OURS.fullmatch(text):
        return text
    seconds = seconds_of(text)
    try:
        return None if seconds is None else iso_timestamp(seconds)
    except (ValueError, OverflowError):
        # In UTC the year is 0 or 10000.
        return None


class TimeRange(NamedTuple):
    """Times from ``since`` to ``until``, both included, as :func:`read_time` writes them. None means no bound."""

    since: str | None = None
    until: str | None = None

    def has(self, timestamp: str) -> bool:
        """Whether a line's time is in the range. A text that is not a time is only in a range without bounds."""
        if self.since is None and self.until is None:
            return True
        time = read_time(timestamp)
        return time is not None and (self.since or "") <= time and (self.until is None or time <= self.until)
