"""What the service asks of those who send requests."""

import pytest
import urllib3

from chronoverse.client.service_connection import retry_after


@pytest.mark.parametrize(("header", "seconds"), [(None, 0), ("3", 3), ("no number", 0), ("86400", 120)])
def test_retry_after_is_read_and_bounded(header: str | None, seconds: float) -> None:
    """An invalid header counts as none."""
    headers = {} if header is None else {"Retry-After": header}

    assert retry_after(urllib3.HTTPResponse(headers=headers)) == seconds
