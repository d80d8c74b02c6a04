"""The head of a stream's response, which this project writes instead of gunicorn."""

from datetime import UTC, datetime

import pytest

from chronoverse.web.routes.events import response_head

NOON = datetime(2026, 11, 25, 12, tzinfo=UTC).timestamp()


def test_a_head_equals_gunicorns() -> None:
    """The status line, the server's own headers, then the given ones in Latin-1."""
    assert response_head([("Last-Event-ID", "7"), ("X-Name", "é")], NOON + 0.9) == (
        b"HTTP/1.1 200 OK\r\n"
        b"Server: gunicorn\r\n"
        b"Date: Wed, 25 Nov 2026 12:00:00 GMT\r\n"
        b"Connection: close\r\n"
        b"Last-Event-ID: 7\r\n"
        b"X-Name: \xe9\r\n"
        b"\r\n"
    )
    heads = [response_head([], NOON + seconds) for seconds in (0.0, 0.9, 1.0, 61.0)]
    dates = [head.partition(b"Date: ")[2][17:25] for head in heads]
    assert dates == [b"12:00:00", b"12:00:00", b"12:00:01", b"12:01:01"]


@pytest.mark.parametrize("value", ["a\r\nSet-Cookie: b", "a\nb", "a\rb", "a\0b"])
def test_a_header_with_a_line_break_is_refused(value: str) -> None:
    """Otherwise a value could add headers of its own."""
    with pytest.raises(ValueError, match="header"):
        response_head([("X-Name", value)], NOON)
