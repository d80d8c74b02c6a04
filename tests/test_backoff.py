"""Delays between attempts, with the test's clock and random numbers."""

import pytest

from chronoverse.backoff import Backoff, RetryPolicy


def test_delays_double_up_to_the_maximum() -> None:
    """Without jitter, every delay is exact."""
    policy = RetryPolicy(first=0.5, longest=3.0, jitter=0)

    assert [policy.delay(failures) for failures in (1, 2, 3, 4, 5, 5_000)] == [0.5, 1.0, 2.0, 3.0, 3.0, 3.0]


@pytest.mark.parametrize(("chance", "delay"), [(0.0, 2.0), (0.5, 3.0), (1.0, 4.0)])
def test_jitter_shortens_a_delay_by_up_to_its_share(chance: float, delay: float) -> None:
    """By default, by up to half."""
    assert RetryPolicy(first=1.0, longest=4.0).delay(3, lambda: chance) == delay


def test_delays_restart_after_a_success() -> None:
    """The first one has no jitter, and failures are counted from one again."""
    backoff = Backoff(RetryPolicy(first=1.0, longest=8.0), chance=lambda: 1.0)
    delays = []
    for _ in range(3):
        backoff.record_failure()
        delays.append(backoff.delay())
    backoff.record_success()
    delays.append(backoff.delay())
    backoff.record_failure()
    delays.append(backoff.delay())

    assert delays == [1.0, 2.0, 4.0, 1.0, 1.0]


def test_the_duration_of_failing_starts_at_the_first_failure() -> None:
    """A success resets it to zero."""
    now = [100.0]
    backoff = Backoff(RetryPolicy(first=1.0, longest=1.0), clock=lambda: now[0])
    backoff.record_failure()
    assert backoff.seconds_failing() == 0
    now[0] = 107.0
    assert backoff.seconds_failing() == 7
    backoff.record_success()
    assert backoff.seconds_failing() == 0
