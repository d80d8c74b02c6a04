"""What the number of watched jobs asks of the tail."""

import pytest

from chronoverse.live import poll_policy as pacing


@pytest.mark.parametrize(
    ("jobs", "look", "busy", "pause"),
    [
        (0, 1.0, 1.0, 0.0),
        (1, 1.0, 1.0, 0.0),
        (1000, 1.0, 2.5, 0.005),
        (4000, 4.0, 10.0, 0.02),
        (10_000, 10.0, 10.0, 0.02),
    ],
)
def test_many_jobs_are_looked_at_and_read_less_often(jobs: int, look: float, busy: float, pause: float) -> None:
    """A few are read without a pause; of many, the work that a second brings is bounded."""
    assert pacing.check_seconds(jobs) == look
    assert pacing.busy_check_seconds(jobs) == busy
    assert pacing.pause_seconds(jobs) == pytest.approx(pause)


@pytest.mark.parametrize(("jobs", "pause"), [(1, 0.0), (300, 0.0015), (2000, 0.01), (4000, 0.01)])
def test_jobs_that_are_told_of_are_read_sooner(jobs: int, pause: float) -> None:
    """The work is bounded by what there is to read."""
    assert pacing.pause_seconds(jobs, tracked=True) == pytest.approx(pause)


@pytest.mark.parametrize("jobs", [0, 1, 32, 100, 4096, 100_000])
def test_rings_share_what_a_worker_may_hold(jobs: int) -> None:
    """One ring has its most while there are few jobs, and its least however many there are."""
    least, most = pacing.RING_BYTES
    assert least <= pacing.ring_bytes(jobs) <= most
    assert pacing.ring_bytes(jobs) * jobs <= max(pacing.RINGS_BYTES, least * jobs)
