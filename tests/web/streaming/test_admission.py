"""Places for streams: limits and shares, and a drain on a clock that goes only when told."""

from typing import Final, cast

import pytest

from chronoverse.errors import AtCapacity, ChronoverseError, Draining, ShareExceeded
from chronoverse.live.viewer import Viewer
from chronoverse.web.http.client_ip import TrustedProxies, join_forwarded_for
from chronoverse.web.streaming.admission import (
    DRAIN_STEP_SECONDS,
    LATE_ACCEPT_SECONDS,
    RETRY_MS,
    AdmissionControl,
    StreamTicket,
)
from tests.support.reading import Clock

#: Steps of a drain after which a test gives up.
PATIENCE_STEPS: Final = 1000


class Leaver:
    """In the place of a viewer: remembers when it was told to go, and when its client should come back."""

    def __init__(self, clock: Clock) -> None:
        self.closes_early = False
        self.at = self.retry_ms = 0.0
        self._clock = clock

    def close_with_retry(self, retry_ms: int) -> None:
        assert not self.closes_early
        self.closes_early, self.at, self.retry_ms = True, self._clock(), retry_ms


class House:
    """Streams on a clock of their own. Whoever is sent away has left ``lag`` steps later."""

    def __init__(self, lag: int = 0) -> None:
        self.clock = Clock()
        self.streams = AdmissionControl(10_000, clock=self.clock)
        self.left: list[Leaver] = []
        self.steps = 0
        self._lag = lag
        self._guests: dict[StreamTicket, Leaver] = {}
        self._going: dict[StreamTicket, int] = {}

    def come(self) -> None:
        """One more stream."""
        guest = StreamTicket("ada", "192.0.2.1", "r", self.clock())
        self.streams.enter(guest)
        self._guests[guest] = leaver = Leaver(self.clock)
        guest.viewer = cast(Viewer, leaver)

    def sleep(self, seconds: float) -> None:
        """What the drain calls between two looks: time passes, and people go."""
        self.steps += 1
        assert self.steps < PATIENCE_STEPS, "the drain does not end"
        self.clock.now += seconds
        for guest, leaver in tuple(self._guests.items()):
            if leaver.closes_early and self._going.setdefault(guest, self.steps + self._lag) <= self.steps:
                del self._guests[guest]
                self.streams.leave(guest)
                self.left.append(leaver)


@pytest.mark.parametrize(("crowd", "seconds"), [(1000, 10), (7, 10), (3, 1), (500, 0)])
def test_a_drain_ends_everybody_in_time_and_spread(crowd: int, seconds: int) -> None:
    """Within its seconds, no second with more than its share, and each with a time of its own to come back."""
    house = House()
    start = house.clock()
    for _ in range(crowd):
        house.come()
    house.streams.drain(seconds, house.sleep)

    ends = [leaver.at - start for leaver in house.left]
    assert len(ends) == crowd
    assert max(ends) <= seconds
    busiest = max(sum(second <= at < second + 1 for at in ends) for second in range(seconds + 1))
    assert busiest <= crowd / max(seconds, 1) + 1 / DRAIN_STEP_SECONDS
    assert all(RETRY_MS[0] <= leaver.retry_ms <= RETRY_MS[1] for leaver in house.left)
    assert crowd < 500 or len({leaver.retry_ms for leaver in house.left}) > crowd / 4


def test_a_drain_of_nobody_is_over_at_once() -> None:
    """But for those whose connections were accepted before, and who have not asked yet."""
    house = House()
    start = house.clock()
    house.streams.drain(10, house.sleep)

    assert house.clock() - start <= LATE_ACCEPT_SECONDS + 2 * DRAIN_STEP_SECONDS


def test_who_is_let_in_late_goes_with_the_others() -> None:
    """A request that was on its way is answered by us, since nobody else can; a later one is for another worker."""
    house = House(lag=3)
    house.come()
    seen: list[type[ChronoverseError] | None] = []

    def sleep(seconds: float) -> None:
        house.sleep(seconds)
        try:
            house.come()
            seen.append(None)
        except ChronoverseError as error:
            seen.append(type(error))

    house.streams.drain(2, sleep)
    assert house.streams.is_draining
    assert seen[:4] == [None] * 4
    assert set(seen[6:]) == {Draining}
    assert len(house.streams) == 0
    assert len(house.left) == 1 + seen.count(None)


def test_a_full_worker_has_no_place() -> None:
    """Until somebody leaves."""
    streams = AdmissionControl(2)
    guests = [StreamTicket("ada", "192.0.2.1", "r", 0) for _ in range(3)]
    for guest in guests[:2]:
        streams.enter(guest)
    with pytest.raises(AtCapacity):
        streams.check(guests[2])
    with pytest.raises(AtCapacity):
        streams.enter(guests[2])
    streams.leave(guests[0])
    streams.enter(guests[2])

    assert len(streams) == 2


@pytest.mark.parametrize(
    ("shares", "same", "other"),
    [((2, None), ("ada", "::1"), ("bob", "::1")), ((None, 2), ("ada", "::1"), ("ada", "::2"))],
    ids=["token", "address"],
)
def test_a_share_is_used_up_by_its_owner_alone(
    shares: tuple[int | None, int | None], same: tuple[str, str], other: tuple[str, str]
) -> None:
    """Others are served on, and what is given back can be had again."""
    streams = AdmissionControl(100, *shares)
    guests = [StreamTicket(*same, "r", 0) for _ in range(3)]
    for guest in guests[:2]:
        streams.enter(guest)
    with pytest.raises(ShareExceeded, match="2 streams"):
        streams.enter(guests[2])
    streams.enter(StreamTicket(*other, "r", 0))
    streams.leave(guests[1])
    streams.enter(guests[2])

    assert len(streams) == 3


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
def test_a_client_is_where_a_trusted_proxy_says(
    trusted: list[str], peer: str, forwarded_for: str | None, client: str
) -> None:
    """And nobody else's word counts."""
    proxies = TrustedProxies()
    proxies.trust(trusted)

    assert proxies.client(peer, forwarded_for) == client


def test_the_word_of_the_last_proxy_counts_when_each_has_a_header_of_its_own() -> None:
    """Some proxies leave the client's header as it is, and add another one behind it."""
    proxies = TrustedProxies()
    proxies.trust(["127.0.0.1"])
    headers = [("X-FORWARDED-FOR", "203.0.113.9"), ("HOST", "h"), ("X-FORWARDED-FOR", "198.51.100.1")]

    assert proxies.client("127.0.0.1", join_forwarded_for(headers)) == "198.51.100.1"
    assert proxies.client("127.0.0.1", join_forwarded_for([("HOST", "h")])) == "127.0.0.1"
