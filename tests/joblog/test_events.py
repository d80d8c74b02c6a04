"""The names and frames of all events are defined once."""

import re
from pathlib import Path

from chronoverse.joblog import events
from chronoverse.joblog.events import EventName

ROOT = Path(__file__).parents[2]


def test_each_frame_has_the_bytes_of_the_published_api() -> None:
    """Other programs depend on them."""
    assert events.connected_frame(2417) == b'event: connected\ndata: {"status":"connected"}\nretry: 2417\n\n'
    assert events.redact_frame(2, 9) == b'event: redact\ndata: {"from":2,"to":9}\n\n'
    assert events.error_frame("one\ntwo") == b"event: error\ndata: one two\n\n"


def test_the_http_page_explains_each_event() -> None:
    """In its sections about events."""
    section = (ROOT / "docs" / "http.md").read_text().split("## Events")[1].split("## Routes")[0]

    assert not {name.value for name in EventName} - set(re.findall(r"`(\w+)`", section))
