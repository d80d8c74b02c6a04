"""Rate limits for publishing and new jobs, on a fake clock."""

import pytest

from chronoverse.errors import TooFast
from chronoverse.web.guards.rates import (
    BURST_SECONDS,
    LINE_OVERHEAD_BYTES,
    MAX_NEW_JOBS,
    MAX_SUBJECTS,
    NEW_JOBS_PER_SECOND,
    Throttle,
    bytes_of,
    new_job_throttle,
    publish_throttle,
)
from tests.support.reading import Clock

RATE = 100_000
#: The message of a line that costs one second of the rate.
SECOND = "x" * (RATE - LINE_OVERHEAD_BYTES)


def seconds_to_wait(buckets: Throttle, subject: str) -> float:
    """How long ``subject`` must wait; 0 if it can publish now."""
    try:
        buckets.check(subject)
    except TooFast as error:
        return error.seconds
    return 0


def spend(buckets: Throttle, subject: str, messages: list[str]) -> None:
    buckets.take(subject, bytes_of(message.encode() for message in messages))


def test_a_burst_is_accepted_then_only_the_rate() -> None:
    """An overdrawn bucket refills over time. Even after a long pause, there is only one burst."""
    clock = Clock()
    buckets = publish_throttle(RATE, clock)
    for _ in range(int(BURST_SECONDS)):
        assert seconds_to_wait(buckets, "ada") == 0
        spend(buckets, "ada", [SECOND])
    assert seconds_to_wait(buckets, "ada") == 1
    assert seconds_to_wait(buckets, "bob") == 0

    clock.now += 0.5
    spend(buckets, "ada", [SECOND, SECOND])
    assert seconds_to_wait(buckets, "ada") == 2
    clock.now += 1.6
    assert seconds_to_wait(buckets, "ada") == 0

    clock.now += 1_000_000
    spend(buckets, "ada", [SECOND] * int(BURST_SECONDS))
    assert seconds_to_wait(buckets, "ada") == 1


@pytest.mark.parametrize("message", ["", "\N{EURO SIGN}"])
def test_a_line_costs_its_bytes_and_an_overhead(message: str) -> None:
    """Even an empty one, because many empty lines fill a store, too."""
    buckets = publish_throttle(RATE, Clock())
    left = int(BURST_SECONDS * RATE) // (len(message.encode()) + LINE_OVERHEAD_BYTES)
    spend(buckets, "ada", [message] * left)
    assert seconds_to_wait(buckets, "ada") == 0
    spend(buckets, "ada", [message])
    assert seconds_to_wait(buckets, "ada") == 1


def test_without_a_rate_there_is_no_limit() -> None:
    buckets = publish_throttle(None)
    spend(buckets, "ada", [SECOND] * 1_000)

    assert seconds_to_wait(buckets, "ada") == 0
    assert len(buckets) == 0


def test_full_buckets_are_evicted() -> None:
    """The number of buckets stays bounded, however many tokens there are."""
    clock = Clock()
    buckets = publish_throttle(RATE, clock)
    for number in range(2 * MAX_SUBJECTS):
        clock.now += 0.01
        spend(buckets, f"run {number}", ["x"])
    assert len(buckets) <= MAX_SUBJECTS

    burst = 0
    while not seconds_to_wait(buckets, "ada"):
        spend(buckets, "ada", [SECOND])
        burst += 1
    # A bucket that is neither full nor empty stays.
    spend(buckets, "bob", [SECOND] * (burst - 1))
    for number in range(2 * MAX_SUBJECTS):
        spend(buckets, f"other {number}", ["x"])
    assert seconds_to_wait(buckets, "bob") == 0
    spend(buckets, "bob", [SECOND])
    assert min(seconds_to_wait(buckets, each) for each in ("ada", "bob")) > 0


def test_new_jobs_have_a_burst_and_a_rate() -> None:
    clock = Clock()
    throttle = new_job_throttle(clock)
    for subject in ("ada", "bob"):
        throttle.take(subject, [1] * (MAX_NEW_JOBS - 1))
        throttle.check(subject)
        throttle.take(subject, [1])
        with pytest.raises(TooFast):
            throttle.check(subject)
    clock.now += 1
    throttle.take("ada", [1] * (NEW_JOBS_PER_SECOND - 1))
    throttle.check("ada")
    throttle.take("ada", [1])
    with pytest.raises(TooFast) as refused:
        throttle.check("ada")
    assert refused.value.seconds == 10
