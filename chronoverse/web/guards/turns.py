"""Limits how many of a worker's requests do the same expensive work at a time. Subjects take turns."""

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

#: Seconds that a request or new viewer waits to be started: enough if thousands arrive together.
_ACCEPT_WAIT_SECONDS: Final = 10.0
#: Seconds that a request waits for a page, scan or read. A scan can then wait as long again for the scan server.
WAIT_SECONDS: Final = 5.0
#: Seconds that a subject waits for a page while its unread answers leave no room for it. A refused page wastes 15 ms.
UNREAD_WAIT_SECONDS: Final = 5.0
#: Seconds that a download waits for its next turn. Longer, because a download that has begun can only be cut off.
DOWNLOAD_WAIT_SECONDS: Final = 30.0


def _locks(seconds: float, **options: Any) -> dict[Hashable, FairLock]:
    return defaultdict(lambda: FairLock(seconds, AtCapacity, **options))


class Turns:
    """A worker's turns. ``server_of`` returns a job's server. ``unread`` counts answers that clients have not read.

    Each server has its own locks, so that a hanging server does not delay requests for others. Each method raises
    :class:`AtCapacity` if the turn does not come in time.
    """

    def __init__(self, server_of: Callable[[JobRef], Hashable], unread: UnreadAnswers) -> None:
        self._server_of = server_of
        self.unread: Final = unread
        #: Turns to start a request or probe (by client address) or a viewer: thousands reconnect after a restart.
        self.request = FairLock(_ACCEPT_WAIT_SECONDS, AtCapacity, TimeSlice().check)
        self.probe = FairLock(_ACCEPT_WAIT_SECONDS, AtCapacity, TimeSlice().check)
        # 2 ms instead of 1 ms, in which more viewers send their requests: this saves 4 % of a storm's CPU time.
        self.viewer = FairLock(_ACCEPT_WAIT_SECONDS, AtCapacity, TimeSlice(0.002).check)
        # Turns for concurrent pages and listings (48 MiB in all), and for as many scans.
        self._pages, self._scans = (_locks(WAIT_SECONDS, at_once=12, each=2, used_up=ShareExceeded) for _ in range(2))
        # A request takes a turn for each batch, so that others wait for two batches at most.
        self._reads = _locks(WAIT_SECONDS, at_once=2)
        self._downloads = _locks(DOWNLOAD_WAIT_SECONDS, at_once=2)

    def page(self, ref: JobRef, subject: str) -> AbstractContextManager[None]:
        """A turn to make a page of ``ref``, or a listing of its workflow. The holder can take turns of :meth:`read`.

        First waits up to :data:`UNREAD_WAIT_SECONDS` while the subject's unread answers leave no room for a large page.
        Also raises :class:`ShareExceeded` if other requests of the subject held all of its turns for too long.
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
                # Another request may have used this room meanwhile: then wait again.
                if time.monotonic() >= until or self.unread.has_room(subject):
                    yield
                    return

    def read(self, ref: JobRef, subject: str) -> AbstractContextManager[object]:
        """A turn to read one batch of lines, or some jobs, from the server that has ``ref``."""
        return self._reads[self._server_of(ref)].hold(subject)

    def download(self, ref: JobRef, subject: str) -> AbstractContextManager[object]:
        return self._downloads[self._server_of(ref)].hold(subject)
