"""The log format, and the redaction of tokens."""

import json
import logging
import sys
from typing import Any, Final

import pytest

from chronoverse.auth.minting import mint
from chronoverse.web.http.logging import Console, Json, redact

TOKEN: Final = mint(b"x" * 32, "ada", ["logs:read"], ["*"], 60, 0)


def record(message: str, *args: object, **fields: object) -> logging.LogRecord:
    """A log record as Chronoverse's modules create it."""
    made = logging.LogRecord("chronoverse.web.routes.events", logging.INFO, "", 0, message, args, None)
    made.__dict__["fields"] = fields
    return made


def test_json_writes_one_object_per_line() -> None:
    """Whatever the message contains, including newlines."""
    text = Json().format(record("said %s", "a\nb\x1b[2J\ud800", request_id="r1", seconds=1.5, job="wf_1/job_1"))
    document: dict[str, Any] = json.loads(text)

    assert "\n" not in text
    assert "\x1b" not in text
    assert document["time"].endswith("+00:00")
    assert (document["level"], document["logger"]) == ("info", "chronoverse.web.routes.events")
    assert (document["request_id"], document["seconds"], document["job"]) == ("r1", 1.5, "wf_1/job_1")
    assert document["message"] == "said a\nb\x1b[2J\ud800"


def test_the_console_writes_one_line_per_record() -> None:
    """A client's text cannot forge a log line or send control sequences to the terminal."""
    text = Console().format(record("said %s", "a\nb\x1b[2J\u2028", request_id="r1", agent="two words", at=7))

    assert text.endswith(r'[INFO] said a\nb\x1b[2J\u2028 request_id=r1 agent="two words" at=7')
    assert "\n" not in text


@pytest.mark.parametrize("formatter", [Console(), Json()], ids=["console", "json"])
def test_tokens_are_never_logged(formatter: logging.Formatter) -> None:
    """Whether in a message, a field or a traceback."""
    made = record("GET /x?token=%s&a=1 Authorization: Bearer %s", "secret-1", "secret-2", uri=f"/y?jwt={TOKEN}")
    try:
        raise ValueError(f"bad {TOKEN}")
    except ValueError:
        made.exc_info = sys.exc_info()
    text = formatter.format(made)

    assert "ValueError" in text
    assert "a=1" in text
    assert [secret for secret in ("secret-1", "secret-2", TOKEN, TOKEN.split(".")[1]) if secret in text] == []


@pytest.mark.parametrize(
    "text",
    [
        *("eye.of.newt at 10.0.0.1, bearer", "a bearer token is required"),
        "the Authorization header is not a bearer token (a JWT)",
        # Takes linear time: if each were tried as a token's beginning, this would take a quarter of an hour.
        pytest.param("eyJ" * 500_000, id="beginnings"),
    ],
)
def test_other_words_are_unchanged(text: str) -> None:
    """A word with dots is not necessarily a token, nor is what follows "bearer" in our own messages."""
    assert redact(text) == text


@pytest.mark.parametrize("secret", ["tokens", "token-1", "token.x.y", "tokentoken"])
def test_a_token_that_begins_with_token_is_redacted(secret: str) -> None:
    """Only the exact word "token" is part of our own messages."""
    assert redact(f"Authorization: Bearer {secret}") == "Authorization: Bearer [token]"
