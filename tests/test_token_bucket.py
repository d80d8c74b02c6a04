"""The token bucket that rates, replays and filters share."""

from chronoverse.token_bucket import TokenBucket


def test_a_bucket_is_full_at_first_and_fills_up_to_its_burst() -> None:
    bucket = TokenBucket(rate=10, burst_seconds=4)
    assert bucket.debt_seconds(100) == -4
    bucket.take(40, 100)
    assert [bucket.debt_seconds(now) for now in (100, 101, 104, 1_000)] == [0, -1, -4, -4]


def test_a_debt_is_repaid_at_the_rate_and_can_be_limited() -> None:
    bucket = TokenBucket(rate=10, burst_seconds=4)
    bucket.take(100, 100)
    assert [bucket.debt_seconds(now) for now in (100, 106, 107)] == [6, 0, -1]
    bucket.take(100, 107, most_debt_seconds=2)
    assert bucket.debt_seconds(107) == 2
