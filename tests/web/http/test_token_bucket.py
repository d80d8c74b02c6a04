"""How fast a token may publish, with a clock that the tests set."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chronoverse.errors import TooFast
from chronoverse.web.http.token_bucket import BURST_SECONDS, LINE_OVERHEAD_BYTES, MAX_SUBJECTS, TokenBuckets
from tests.support.reading import Clock

RATE = 100_000
#: The message of a line that costs what the bucket gets in a second.
SECOND = "x" * (RATE - LINE_OVERHEAD_BYTES)


def refused(rates: TokenBuckets, subject: str) -> float:
    """The seconds that ``subject`` must wait. 0 when it need not."""
    try:
        rates.check(subject)
    except TooFast as error:
        return error.seconds
    return 0


def test_a_burst_is_accepted_and_then_no_more_than_the_rate() -> None:
    """A debt is paid by waiting. After a long silence there is one burst and no more."""
    clock = Clock()
    rates = TokenBuckets(RATE, clock=clock)
    for _ in range(int(BURST_SECONDS)):
        assert refused(rates, "ada") == 0
        rates.spend("ada", [SECOND])
    assert refused(rates, "ada") == 1
    assert refused(rates, "bob") == 0

    clock.now += 0.5
    rates.spend("ada", [SECOND, SECOND])
    assert refused(rates, "ada") == 2
    clock.now += 1.6
    assert refused(rates, "ada") == 0

    clock.now += 1_000_000
    rates.spend("ada", [SECOND] * int(BURST_SECONDS))
    assert refused(rates, "ada") == 1


@pytest.mark.parametrize("message", ["", "\N{EURO SIGN}"])
def test_a_line_counts_its_bytes_and_an_overhead(message: str) -> None:
    """Empty lines count, too: many of them also fill a store."""
    rates = TokenBuckets(RATE, clock=Clock())
    left = int(BURST_SECONDS * RATE) // (len(message.encode()) + LINE_OVERHEAD_BYTES)
    rates.spend("ada", [message] * left)
    assert refused(rates, "ada") == 0
    rates.spend("ada", [message])
    assert refused(rates, "ada") == 1


@given(st.lists(st.tuples(st.floats(0, 20), st.integers(0, 20 * RATE)), max_size=50))
def test_over_any_time_it_is_the_rate_and_a_burst(asks: list[tuple[float, int]]) -> None:
    """And one append, which is accepted as a whole."""
    clock = Clock()
    rates, began, taken = TokenBuckets(RATE, clock=clock), clock(), 0
    for seconds, size in asks:
        clock.now += seconds
        if not refused(rates, "ada"):
            assert taken < RATE * (clock() - began + BURST_SECONDS) + 1
            rates.spend("ada", ["x" * size])
            taken += size + LINE_OVERHEAD_BYTES


def test_without_a_rate_there_is_no_bound() -> None:
    """Nothing is counted then."""
    rates = TokenBuckets()
    rates.spend("ada", [SECOND] * 1_000)

    assert refused(rates, "ada") == 0
    assert len(rates) == 0


def test_full_buckets_are_dropped() -> None:
    """However many tokens come and go."""
    clock = Clock()
    rates = TokenBuckets(RATE, clock=clock)
    for number in range(10 * MAX_SUBJECTS):
        clock.now += 0.01
        rates.spend(f"run {number}", ["x"])
    rates.spend("ada", [SECOND] * 20)

    assert len(rates) <= MAX_SUBJECTS + 1
    assert refused(rates, "ada") > 0
