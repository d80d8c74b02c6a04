"""Admission control: limits, shares and drains, on a fake clock."""

import random
from typing import Final, cast

import pytest

from chronoverse.errors import AtCapacity, ChronoverseError, ShareExceeded
from chronoverse.live.viewer import Viewer
from chronoverse.web.guards.admission import (
    DRAIN_STEP_SECONDS,
    LATE_ACCEPT_SECONDS,
    RETRY_MS,
    AdmissionControl,
    StreamTicket,
)
from chronoverse.web.http.client_ip import TrustedProxies, join_forwarded_for
from tests.support.reading import Clock

#: Maximum steps of a drain; a test fails beyond that.
MAX_STEPS: Final = 1000


class FakeViewer:
    """Records when it was closed, and the client's reconnect delay."""

    def __init__(self, clock: Clock) -> None:
        self.closes_early = False
        self.at = self.retry_ms = 0.0
        self._clock = clock

    def close_with_retry(self, retry_ms: int) -> None:
        assert not self.closes_early
        self.closes_early, self.at, self.retry_ms = True, self._clock(), retry_ms


class Rig:
    """Streams on a fake clock. A stream leaves ``lag`` steps after it is closed, and is then in ``left``."""

    def __init__(self, lag: int = 0) -> None:
        self.clock = Clock()
        self.admission = AdmissionControl(10_000, clock=self.clock)
        self.left: list[FakeViewer] = []
        self.steps = 0
        self._lag = lag
        self._open: dict[StreamTicket, FakeViewer] = {}
        self._leaves_at: dict[StreamTicket, int] = {}

    def open_stream(self) -> None:
        ticket = StreamTicket("ada", "192.0.2.1", "r", self.clock())
        self.admission.enter(ticket)
        self._open[ticket] = viewer = FakeViewer(self.clock)
        ticket.viewer = cast(Viewer, viewer)

    def sleep(self, seconds: float) -> None:
        """Called by the drain between steps. Advances the clock, and lets closed streams leave."""
        self.steps += 1
        assert self.steps < MAX_STEPS, "the drain does not end"
        self.clock.now += seconds
        for ticket, viewer in tuple(self._open.items()):
            if viewer.closes_early and self._leaves_at.setdefault(ticket, self.steps + self._lag) <= self.steps:
                del self._open[ticket]
                self.admission.leave(ticket)
                self.left.append(viewer)


@pytest.mark.parametrize(("count", "seconds"), [(1000, 10), (7, 10), (3, 1), (500, 0), (0, 10)])
def test_a_drain_ends_all_streams_in_time_and_evenly(count: int, seconds: int) -> None:
    """No second has more than its share of them, and reconnect delays are spread out.

    Without streams, it waits only for late ones: a connection accepted before the drain can still request a stream.
    """
    rig = Rig()
    start = rig.clock()
    for _ in range(count):
        rig.open_stream()
    rig.admission.drain(seconds, rig.sleep)

    took = rig.clock() - start
    assert count or LATE_ACCEPT_SECONDS <= took <= LATE_ACCEPT_SECONDS + 2 * DRAIN_STEP_SECONDS
    ends = [viewer.at - start for viewer in rig.left]
    assert len(ends) == count
    assert max(ends, default=0) <= seconds
    busiest = max(sum(second <= at < second + 1 for at in ends) for second in range(seconds + 1))
    assert busiest <= count / max(seconds, 1) + 1 / DRAIN_STEP_SECONDS
    assert all(RETRY_MS[0] <= viewer.retry_ms <= RETRY_MS[1] for viewer in rig.left)
    assert count < 500 or len({viewer.retry_ms for viewer in rig.left}) > count / 4
    assert not rig.admission._counts, "nothing is kept about former clients"


def test_a_late_stream_ends_with_the_others() -> None:
    """A request on an accepted connection is admitted, as no other worker can answer it. Later ones are refused."""
    rig = Rig(lag=3)
    rig.open_stream()
    seen: list[type[ChronoverseError] | None] = []

    def sleep(seconds: float) -> None:
        rig.sleep(seconds)
        try:
            rig.open_stream()
            seen.append(None)
        except ChronoverseError as error:
            seen.append(type(error))

    rig.admission.drain(2, sleep)
    assert rig.admission.is_draining
    assert seen[:4] == [None] * 4
    assert set(seen[6:]) == {AtCapacity}
    assert len(rig.admission) == 0
    assert len(rig.left) == 1 + seen.count(None)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("bounds", [(4, None, None), (100, 2, None), (100, None, 2), (5, 3, 2), (0, 1, 1)])
def test_streams_are_limited_per_worker_token_and_address(
    seed: int, bounds: tuple[int, int | None, int | None]
) -> None:
    """The first exceeded limit refuses a stream, which then counts toward none. One that leaves makes room."""
    choice, admission = random.Random(seed), AdmissionControl(*bounds)
    opened: list[StreamTicket] = []
    for _ in range(60):
        ticket = StreamTicket(choice.choice(["ada", "bob", "::1"]), choice.choice(["::1", "::2", "ada"]), "r", 0)
        counts = (
            len(opened),
            *(sum(getattr(each, name) == getattr(ticket, name) for each in opened) for name in ("subject", "address")),
        )
        reached = [
            number
            for number, (count, bound) in enumerate(zip(counts, bounds, strict=True))
            if bound is not None and count >= bound
        ]
        if reached:
            bound, setting = bounds[reached[0]], "close another stream, or ask .* to raise CHRONOVERSE_MAX_STREAMS_PER"
            kind, remedy = (
                ("worker", "; try again"), ("token", f": {setting}_TOKEN"), ("address", f": {setting}_ADDRESS")
            )[reached[0]]  # fmt: skip
            message = f"^this {kind} has its maximum of {bound} stream{'' if bound == 1 else 's'}{remedy}$"
            for way in (admission.check, admission.enter):
                with pytest.raises(ShareExceeded if reached[0] else AtCapacity, match=message):
                    way(ticket)
        else:
            admission.enter(ticket)
            opened.append(ticket)
        if opened and choice.randrange(2):
            admission.leave(opened.pop(choice.randrange(len(opened))))
        assert len(admission) == len(opened)


@pytest.mark.parametrize(
    ("trusted", "peer", "forwarded_for", "client"),
    [
        (["127.0.0.1"], "192.0.2.7", None, "192.0.2.7"),
        (["127.0.0.1"], "192.0.2.7", "198.51.100.1", "192.0.2.7"),
        (["127.0.0.1"], "127.0.0.1", "198.51.100.1", "198.51.100.1"),
        (["127.0.0.1"], "127.0.0.1", "203.0.113.9, 198.51.100.1", "198.51.100.1"),
        (["127.0.0.1", "10.0.0.0/8"], "127.0.0.1", "203.0.113.9, 198.51.100.1, 10.1.2.3", "198.51.100.1"),
        (["127.0.0.1"], "127.0.0.1", "", "127.0.0.1"),
        (["127.0.0.1"], "127.0.0.1", "made up", "unknown"),
        (["*"], "192.0.2.7", "198.51.100.1", "198.51.100.1"),
        ([], "", "198.51.100.1", "198.51.100.1"),
        ([], "", None, "local"),
        (["::1"], "::1", "2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        (["127.0.0.1"], "::ffff:127.0.0.1", "::ffff:198.51.100.1", "198.51.100.1"),
    ],
)
def test_the_client_address_comes_from_trusted_proxies_only(
    trusted: list[str], peer: str, forwarded_for: str | None, client: str
) -> None:
    """Headers from other peers are ignored."""
    proxies = TrustedProxies()
    assert proxies.client("127.0.0.1", "198.51.100.1") == "127.0.0.1"
    proxies.trust(trusted)

    assert proxies.client(peer, forwarded_for) == client


def test_the_last_of_several_forwarded_headers_applies() -> None:
    """Some proxies keep the client's header unchanged and append their own."""
    proxies = TrustedProxies()
    proxies.trust(["127.0.0.1"])
    headers = [("X-FORWARDED-FOR", "203.0.113.9"), ("HOST", "h"), ("X-FORWARDED-FOR", "198.51.100.1")]

    assert proxies.client("127.0.0.1", join_forwarded_for(headers)) == "198.51.100.1"
    assert proxies.client("127.0.0.1", join_forwarded_for([("HOST", "h")])) == "127.0.0.1"
