"""The head of a stream's response, which is written without gunicorn's help."""

from datetime import UTC, datetime

import pytest

from chronoverse.web.streaming.opening import response_head

NOON = datetime(2026, 11, 25, 12, tzinfo=UTC).timestamp()


def test_a_head_is_what_gunicorn_would_write() -> None:
    """Status, what the connection is for, then the fields as they are, in Latin-1."""
    assert response_head([("Last-Event-ID", "7"), ("X-Name", "é")], NOON + 0.9) == (
        b"HTTP/1.1 200 OK\r\n"
        b"Server: gunicorn\r\n"
        b"Date: Wed, 25 Nov 2026 12:00:00 GMT\r\n"
        b"Connection: close\r\n"
        b"Transfer-Encoding: chunked\r\n"
        b"Last-Event-ID: 7\r\n"
        b"X-Name: \xe9\r\n"
        b"\r\n"
    )


def test_the_date_moves_on() -> None:
    """It is remembered for one second only."""
    assert b"12:00:00 GMT" in response_head([], NOON)
    assert b"12:00:01 GMT" in response_head([], NOON + 1)


@pytest.mark.parametrize("value", ["a\r\nSet-Cookie: b", "a\nb", "a\rb", "a\0b"])
def test_a_field_cannot_break_out_of_its_line(value: str) -> None:
    """Whoever let it come this far."""
    with pytest.raises(ValueError, match="header"):
        response_head([("X-Name", value)], NOON)
