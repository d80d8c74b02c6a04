"""The tail's intervals and ring sizes, by the number of watched jobs."""

import pytest

from chronoverse.live import poll_policy


@pytest.mark.parametrize(
    ("jobs", "check", "busy", "pause"),
    [
        (0, 1.0, 1.0, 0.0),
        (1, 1.0, 1.0, 0.0),
        (1000, 1.0, 2.5, 0.005),
        (4000, 4.0, 10.0, 0.01),
        (10_000, 10.0, 10.0, 0.01),
    ],
)
def test_many_jobs_are_checked_and_read_less_often(jobs: int, check: float, busy: float, pause: float) -> None:
    """A few jobs are read without a pause. For many jobs, the work per second is bounded."""
    assert poll_policy.check_seconds(jobs) == check
    assert poll_policy.busy_check_seconds(jobs) == busy
    assert poll_policy.pause_seconds(jobs) == pytest.approx(pause)


@pytest.mark.parametrize("jobs", [0, 1, 32, 100, 4096, 100_000])
def test_rings_share_a_workers_memory(jobs: int) -> None:
    """A ring's size stays within its bounds, and all rings within the worker's, unless the least size is more."""
    least, most = poll_policy.RING_BYTES
    assert least <= poll_policy.ring_bytes(jobs) <= most
    assert poll_policy.ring_bytes(jobs) * jobs <= max(poll_policy.RINGS_BYTES, least * jobs)
