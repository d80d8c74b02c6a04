"""Admission control: limits event streams per worker, token and client address, and drains a worker at shutdown."""

import math
import random
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from chronoverse import metrics
from chronoverse.errors import AtCapacity, ChronoverseError, ShareExceeded
from chronoverse.joblog.terminal import counted
from chronoverse.live.viewer import Viewer
from chronoverse.web.http.tracing import RequestSpan

#: Milliseconds after which a client reconnects, random within this range so that clients do not all reconnect at once.
RETRY_MS: Final = (1000, 5000)
#: Seconds between two steps of a drain. A step costs 50 ns per stream.
DRAIN_STEP_SECONDS: Final = 0.1
#: Seconds for which a draining worker still admits streams, because it accepted their connections before the drain.
LATE_ACCEPT_SECONDS: Final = 0.5


def retry_ms() -> int:
    """A random reconnection delay for a client, in milliseconds."""
    return random.randint(*RETRY_MS)


@dataclass(slots=True, eq=False)
class StreamTicket:
    """One stream: its owners, and its start (monotonic seconds). ``viewer`` stays None for a download."""

    subject: str
    address: str
    request_id: str
    since: float
    span: RequestSpan | None = None
    viewer: Viewer | None = None

    @property
    def owners(self) -> tuple[tuple[str, str], ...]:
        """The owners whose limits apply to the stream, as (kind, name) pairs."""
        return ("token", self.subject), ("address", self.address)


@dataclass(eq=False)
class AdmissionControl:
    """Counts a worker's open streams and downloads: in total, per subject, and per address. ``clock`` is monotonic."""

    limit: int
    per_token: int | None = None
    per_address: int | None = None
    clock: Callable[[], float] = time.monotonic
    _counts: Counter[tuple[str, str]] = field(default_factory=Counter)
    _tickets: set[StreamTicket] = field(default_factory=set)
    _draining_since: float | None = None

    def __len__(self) -> int:
        return len(self._tickets)

    @property
    def is_draining(self) -> bool:
        return self._draining_since is not None

    def check(self, ticket: StreamTicket) -> None:
        """Raises :class:`AtCapacity` or :class:`ShareExceeded` if ``ticket`` is not admitted."""
        if self._draining_since is not None and self.clock() > self._draining_since + LATE_ACCEPT_SECONDS:
            raise _refused("draining", AtCapacity("This worker is shutting down; try again."))
        if len(self._tickets) >= self.limit:
            text = f"this worker has its maximum of {counted(self.limit, 'stream', 'streams')}"
            raise _refused("full", AtCapacity(f"{text}; try again"))
        for owner, share in zip(ticket.owners, (self.per_token, self.per_address), strict=True):
            kind = owner[0]
            if share is not None and self._counts[owner] >= share:
                remedy = f"ask the service's administrator to raise CHRONOVERSE_MAX_STREAMS_PER_{kind.upper()}"
                text = f"this {kind} has its maximum of {counted(share, 'stream', 'streams')}"
                raise _refused(kind, ShareExceeded(f"{text}: close another stream, or {remedy}"))

    def enter(self, ticket: StreamTicket) -> None:
        self.check(ticket)
        self._tickets.add(ticket)
        self._counts.update(ticket.owners)

    def leave(self, ticket: StreamTicket) -> None:
        self._tickets.remove(ticket)
        for owner in ticket.owners:
            self._counts[owner] -= 1
            if not self._counts[owner]:
                del self._counts[owner]

    def drain(self, seconds: float, sleep: Callable[[float], None] = time.sleep) -> None:
        """Ends all streams, spread evenly over ``seconds``. Each client gets a different reconnection delay."""
        start = self._draining_since = self.clock()
        metrics.WORKERS_DRAINING.set(1)
        while self._tickets or self.clock() <= start + LATE_ACCEPT_SECONDS:
            steps_left = max((start + seconds - self.clock()) / DRAIN_STEP_SECONDS, 1)
            viewers = [ticket.viewer for ticket in self._tickets if ticket.viewer and not ticket.viewer.closes_early]
            for number, viewer in enumerate(viewers[: math.ceil(len(viewers) / steps_left)], 1):
                viewer.close_with_retry(retry_ms())
                # Yields to other greenlets after 100 streams (5 ms).
                if number % 100 == 0:
                    sleep(0)
            sleep(DRAIN_STEP_SECONDS)


def _refused(reason: str, error: ChronoverseError) -> ChronoverseError:
    metrics.STREAMS_REFUSED.labels(reason).inc()
    return error
