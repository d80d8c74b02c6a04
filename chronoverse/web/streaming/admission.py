"""Who may open a stream, and who has one: limits by worker, token and address, and the slow emptying at the end."""

import math
import random
import time
from collections import Counter
from collections.abc import Callable, Hashable
from typing import Final

from chronoverse import metrics
from chronoverse.errors import AtCapacity, ChronoverseError, Draining, ShareExceeded
from chronoverse.live.viewer import Viewer
from chronoverse.web.http.tracing import RequestSpan

#: Milliseconds after which a client comes back, drawn for each connection so that they do not come all at once.
RETRY_MS: Final = (1000, 5000)
#: Seconds between two looks at how many streams should have ended by now. Each look costs 50 ns a stream.
DRAIN_STEP_SECONDS: Final = 0.1
#: Seconds for which a worker that is going down still takes streams: their connections were accepted before it closed
#: its sockets, and nobody else can answer them. They end with the rest.
LATE_ACCEPT_SECONDS: Final = 0.5
#: Streams ended in one go, each with two writes to its socket: so nobody else waits for over 5 ms.
STREAMS_PER_PASS: Final = 100


def retry_ms() -> int:
    """When a client should come back, in milliseconds."""
    return random.randint(*RETRY_MS)


class StreamTicket:
    """One stream's place. ``subject`` is its token's, ``since`` when it came, on the monotonic clock."""

    __slots__ = ("address", "request_id", "since", "span", "subject", "viewer")

    def __init__(
        self, subject: str, address: str, request_id: str, since: float, span: RequestSpan | None = None
    ) -> None:
        self.subject = subject
        self.address = address
        self.request_id = request_id
        self.since = since
        self.span = span
        self.viewer: Viewer | None = None


class AdmissionControl:
    """The open event streams of this worker.

    ``limit`` bounds all of them, ``per_token`` those of one token's subject and ``per_address`` those of one client
    address; None is no bound. ``clock`` is monotonic, in seconds.
    """

    def __init__(
        self,
        limit: int,
        per_token: int | None = None,
        per_address: int | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._clock = clock
        self._limit = limit
        self._shares = {"token": per_token, "address": per_address}
        self._counts: Counter[Hashable] = Counter()
        self._guests: set[StreamTicket] = set()
        self._draining_since: float | None = None

    def __len__(self) -> int:
        return len(self._guests)

    @property
    def is_draining(self) -> bool:
        """Whether the worker is going down."""
        return self._draining_since is not None

    def check(self, guest: StreamTicket) -> None:
        """Raises :class:`AtCapacity`, :class:`Draining` or :class:`ShareExceeded` when ``guest`` may not come in."""
        refusal = self._refusal(guest)
        if refusal is not None:
            kind, error = refusal
            metrics.STREAMS_REFUSED.labels(kind).inc()
            raise error

    def would_admit(self, guest: StreamTicket) -> bool:
        """Whether :meth:`check` would not raise."""
        return self._refusal(guest) is None

    def _refusal(self, guest: StreamTicket) -> tuple[str, ChronoverseError] | None:
        if self._draining_since is not None and self._clock() > self._draining_since + LATE_ACCEPT_SECONDS:
            return "draining", Draining("this worker is going down")
        if len(self._guests) >= self._limit:
            return "full", AtCapacity(f"this worker already serves {self._limit} streams")
        for kind, whose in (("token", guest.subject), ("address", guest.address)):
            share = self._shares[kind]
            if share is not None and self._counts[kind, whose] >= share:
                return kind, ShareExceeded(f"this {kind} already has the {share} streams that it may have")
        return None

    def enter(self, guest: StreamTicket) -> None:
        """Takes a place. Raises as :meth:`check` does."""
        self.check(guest)
        self._guests.add(guest)
        self._counts.update([("token", guest.subject), ("address", guest.address)])

    def leave(self, guest: StreamTicket) -> None:
        """Gives it back."""
        self._guests.remove(guest)
        for key in (("token", guest.subject), ("address", guest.address)):
            self._counts[key] -= 1
            if not self._counts[key]:
                del self._counts[key]

    def drain(self, seconds: float, sleep: Callable[[float], None] = time.sleep) -> None:
        """Ends all streams within ``seconds``, evenly spread, each with a time of its own to come back.

        From now on no more are taken. Returns once none is left, which the sockets of slow readers may delay.
        """
        start = self._draining_since = self._clock()
        metrics.WORKERS_DRAINING.set(1)
        while self._guests or self._clock() <= start + LATE_ACCEPT_SECONDS:
            left = start + seconds - self._clock()
            staying = [guest.viewer for guest in self._guests if guest.viewer and not guest.viewer.closes_early]
            due = len(staying) if left < DRAIN_STEP_SECONDS else math.ceil(len(staying) * DRAIN_STEP_SECONDS / left)
            for number, viewer in enumerate(staying[:due], 1):
                viewer.close_with_retry(retry_ms())
                if number % STREAMS_PER_PASS == 0:
                    sleep(0)
            sleep(DRAIN_STEP_SECONDS)
