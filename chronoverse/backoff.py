"""How long to wait before trying again. The clock and the dice are arguments."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import urllib3
from urllib3.exceptions import InvalidHeader

#: Seconds before any attempt, at most, unless the other side asked for more.
MAX_DELAY_SECONDS: Final = 30.0
#: Seconds of a Retry-After that are believed.
MAX_RETRY_AFTER_SECONDS: Final = 120.0
#: Doublings after which a delay grows no more; any delay has long reached its maximum then.
_MAX_DOUBLINGS: Final = 16


def retry_after(response: urllib3.BaseHTTPResponse) -> float:
    """Seconds, from either of the header's two forms. https://www.rfc-editor.org/rfc/rfc9110#section-10.2.3"""
    try:
        return min(urllib3.Retry().get_retry_after(response) or 0, MAX_RETRY_AFTER_SECONDS)
    except InvalidHeader:
        return 0


@dataclass
class Backoff:
    """Attempts in vain so far, and since when. ``clock`` is in seconds, ``chance`` gives a fresh number from 0 to 1."""

    clock: Callable[[], float]
    chance: Callable[[], float]
    vain: int = 0
    since: float | None = None

    def begun(self) -> None:
        """Another attempt begins: in vain until it is rewarded."""
        self.vain += 1

    def rewarded(self) -> None:
        """The attempt got somewhere."""
        self.vain, self.since = 0, None

    def seconds_in_vain(self) -> float:
        """Since the first failure. To be asked after every failure."""
        self.since = self.clock() if self.since is None else self.since
        return self.clock() - self.since

    def delay(self, first: float, at_least: float = 0) -> float:
        """Seconds until the next attempt: ``first`` as it is after a rewarded one, else ever more of it, jittered."""
        if not self.vain:
            return max(min(first, MAX_DELAY_SECONDS), at_least)
        longest = min(first * 2.0 ** min(self.vain - 1, _MAX_DOUBLINGS), MAX_DELAY_SECONDS)
        return max(longest * (1 + self.chance()) / 2, at_least)
