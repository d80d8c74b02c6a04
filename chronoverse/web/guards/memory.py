"""Divides a limited amount of something, such as bytes of memory, so that no subject can take all of it."""

import threading
from collections import Counter

from chronoverse.errors import AtCapacity, ShareExceeded


class Shares:
    """Up to ``total`` of one resource. No subject may hold more than what is left free for the others.

    A subject that is alone can hold half of ``total``, a second one half of the rest, and so on. So there is always
    room for a newcomer's small request. This is the dynamic threshold of Choudhury and Hahne (*Dynamic queue length
    thresholds for shared-memory packet switches*, 1998) with a factor of one. ``what`` names the resource in errors,
    for example "request bodies".
    """

    def __init__(self, total: int, what: str) -> None:
        self._total = total
        self._what = what
        self._held: Counter[str] = Counter()
        self._lock = threading.Lock()

    def take(self, subject: str, amount: int) -> None:
        """Takes ``amount`` for ``subject``. An amount of 0 always fits.

        Raises:
            AtCapacity: when ``subject`` holds nothing, and others hold so much that ``amount`` does not fit.
            ShareExceeded: when ``amount`` does not fit and ``subject`` holds some already.
        """
        with self._lock:
            mine = self._held[subject]
            free = self._total - self._held.total()
            if amount and mine + amount > free - amount:
                if mine == 0:
                    raise AtCapacity(f"others use all that this worker has for {self._what}")
                raise ShareExceeded(f"this token uses all that it may have at a time for {self._what}")
            self._held[subject] += amount

    def give_back(self, subject: str, amount: int) -> None:
        """Gives back ``amount`` of what ``subject`` has taken."""
        with self._lock:
            self._held[subject] -= amount
            if not self._held[subject]:
                del self._held[subject]
