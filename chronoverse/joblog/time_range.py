"""From when until when: times of lines, compared."""

import re
from datetime import UTC, datetime
from typing import Final, NamedTuple

from chronoverse.joblog.values import iso_timestamp

#: A time as we spell it. Two of these compare as texts do.
_OURS: Final = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}\.[0-9]{3}Z", re.ASCII)


def read_time(text: str) -> str | None:
    """An ISO 8601 time as :func:`iso_timestamp` spells it, without a zone taken for UTC; None when it is none."""
    if _OURS.fullmatch(text):
        return text
    try:
        time = datetime.fromisoformat(text)
        return iso_timestamp((time if time.tzinfo else time.replace(tzinfo=UTC)).timestamp())
    except (ValueError, OverflowError):
        return None


class TimeRange(NamedTuple):
    """Times that are not before ``since`` and not after ``until``, each as :func:`read_time` spells it, or open."""

    since: str | None = None
    until: str | None = None

    def has(self, timestamp: str) -> bool:
        """Whether a line's time is one of these. What is no time is in no period but the open one."""
        if self.since is None and self.until is None:
            return True
        time = read_time(timestamp)
        return time is not None and (self.since or "") <= time and (self.until is None or time <= self.until)
