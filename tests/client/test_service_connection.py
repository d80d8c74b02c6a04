"""What the service asks of those who send requests."""

from http.client import HTTPMessage

import pytest

from chronoverse.client.service_connection import retry_after


@pytest.mark.parametrize(("header", "seconds"), [(None, 0), ("3", 3), ("no number", 0), ("86400", 120)])
def test_retry_after_is_read_and_bounded(header: str | None, seconds: float) -> None:
    """An invalid header counts as none."""
    headers = HTTPMessage()
    if header is not None:
        headers["Retry-After"] = header

    assert retry_after(headers) == seconds
