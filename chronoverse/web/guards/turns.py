"""Bounds how many of a worker's requests do each kind of expensive work at a time. Subjects take turns."""

import time
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Final

import gevent

from chronoverse.errors import AtCapacity, ShareExceeded
from chronoverse.fair_lock import FairLock
from chronoverse.joblog.model import JobRef
from chronoverse.web.guards.event_loop import TimeSlice
from chronoverse.web.guards.memory import UnreadAnswers

#: Seconds that a request or a new viewer waits for its turn. Thousands that come together all begin within that time.
_ACCEPT_WAIT_SECONDS: Final = 10.0
#: Seconds that a request waits for its turn, and again for the scan server.
WAIT_SECONDS: Final = 5.0
#: Seconds for which a subject waits before another page is made for it, while its unread answers leave no room for a
#: large one. A page that is made and then refused takes the worker some 15 ms.
UNREAD_WAIT_SECONDS: Final = 5.0
#: Seconds that a download waits for its turn to read further. A download that has begun cannot be refused.
DOWNLOAD_WAIT_SECONDS: Final = 30.0


def _locks(seconds: float, **options: Any) -> dict[Hashable, FairLock]:
    return defaultdict(lambda: FairLock(seconds, AtCapacity, **options))


class Turns:
    """A worker's turns. ``server_of`` returns a job's server. ``unread`` are answers that clients have not read.

    Each server has its own locks, so a hanging server does not delay requests for others. Each method raises
    :class:`AtCapacity` if the turn does not come in time.
    """

    def __init__(self, server_of: Callable[[JobRef], Hashable], unread: UnreadAnswers) -> None:
        self._server_of = server_of
        self.unread: Final = unread
        #: For beginning a request, by the client's address, and for a new viewer. After a restart viewers come by the
        #: thousand.
        self.request = FairLock(_ACCEPT_WAIT_SECONDS, AtCapacity, TimeSlice().check)
        # With 2 ms instead of 1, more viewers have sent their request by then: 4 % of a storm's CPU time.
        self.viewer = FairLock(_ACCEPT_WAIT_SECONDS, AtCapacity, TimeSlice(0.002).check)
        # Pages and listings made at the same time, in 48 MiB. As many scans may be under way besides.
        self._pages, self._scans = (_locks(WAIT_SECONDS, at_once=12, each=2, used_up=ShareExceeded) for _ in range(2))
        # A request takes its turn again for each batch, so others wait for two batches at most.
        self._reads = _locks(WAIT_SECONDS, at_once=2)
        self._downloads = _locks(DOWNLOAD_WAIT_SECONDS, at_once=2)

    def page(self, ref: JobRef, subject: str) -> AbstractContextManager[None]:
        """A turn to make a page of ``ref``, or a listing of its workflow. The holder can also wait for :meth:`read`.

        First waits while the subject's clients leave so much unread that a large page would be refused. After
        :data:`UNREAD_WAIT_SECONDS` it continues, because the page may be a small one. Also raises
        :class:`ShareExceeded`, if the subject's own other requests held the turn for too long.
        """
        return self._answer(self._pages, ref, subject)

    def scan(self, ref: JobRef, subject: str) -> AbstractContextManager[None]:
        """A turn to scan ``ref`` or its workflow, independent of page turns. Waits and raises like :meth:`page`."""
        return self._answer(self._scans, ref, subject)

    @contextmanager
    def _answer(self, locks: dict[Hashable, FairLock], ref: JobRef, subject: str) -> Iterator[None]:
        until = time.monotonic() + UNREAD_WAIT_SECONDS
        while True:
            while not self.unread.has_room(subject) and time.monotonic() < until:
                gevent.sleep(0.1)
            with locks[self._server_of(ref)].hold(subject):
                # Another request may have taken the room meanwhile.
                if time.monotonic() >= until or self.unread.has_room(subject):
                    yield
                    return

    def read(self, ref: JobRef, subject: str) -> AbstractContextManager[object]:
        """A turn to read one batch of stored lines, or some jobs, from the server that has ``ref``."""
        return self._reads[self._server_of(ref)].hold(subject)

    def download(self, ref: JobRef, subject: str) -> AbstractContextManager[object]:
        return self._downloads[self._server_of(ref)].hold(subject)
