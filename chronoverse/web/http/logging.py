"""The service's log, gunicorn's own lines included: for a person on the console, or a JSON object a line.

What a record carries beside its words stands in ``extra={"fields": {…}}``. Nothing that looks like a token is ever
written, whoever said it.
"""

import json
import logging
import re
import time
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any, ClassVar, Final

from gunicorn.glogging import Logger

from chronoverse.web.http.request_id import request_id

#: What is cut out: a JWT, whatever follows "Bearer", and a query's token.
_TOKENS: Final = re.compile(
    r"eyJ[\w-]+\.[\w-]+\.[\w-]*|(?<=bearer )[^\s\"',]+|(?<=token=)[^\s&\"']+", re.ASCII | re.IGNORECASE
)
#: What a message may not hold on a console: control characters, by which somebody else's text would write lines.
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")
#: What needs no quotes as a field's value on the console.
_BARE: Final = re.compile(r"[\w.:/+@-]+", re.ASCII)


def redact(text: str) -> str:
    """``text`` without tokens.

    >>> redact("GET /x?token=abc HTTP/1.1")
    'GET /x?token=[token] HTTP/1.1'
    """
    lower = text.lower()
    # Nearly no line has any of these, which are found in a tenth of the expression's time.
    if "eyj" in lower or "bearer " in lower or "token=" in lower:
        return _TOKENS.sub("[token]", text)
    return text


def record_fields(record: logging.LogRecord) -> dict[str, Any]:
    """What a record carries beside its words; its request's id first."""
    carried: dict[str, Any] = getattr(record, "fields", {})
    name = carried.get("request_id") or request_id()
    return {"request_id": name, **carried} if name else carried


class Console(logging.Formatter):
    """A line for a person, as gunicorn writes them, with the fields behind it; a traceback below."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s [%(process)d] [%(levelname)s] %(message)s", "[%Y-%m-%d %H:%M:%S %z]")

    def formatTime(self, record: logging.LogRecord, datefmt: str | None = None) -> str:
        """When it was said, in local time."""
        return _clock_time(int(record.created), datefmt)

    def formatMessage(self, record: logging.LogRecord) -> str:
        """The line itself."""
        record.message = _CONTROL.sub(lambda found: found[0].encode("unicode_escape").decode(), record.message)
        pairs = [f" {name}={_quoted(value)}" for name, value in record_fields(record).items()]
        return super().formatMessage(record) + "".join(pairs)

    def format(self, record: logging.LogRecord) -> str:
        """All of it, without tokens."""
        return redact(super().format(record))


class Json(logging.Formatter):
    """One object a line: ``time`` (UTC), ``level``, ``logger``, ``pid``, ``message``, the fields, ``exception``."""

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        document = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "pid": record.process,
            "message": redact(record.getMessage()),
            **{
                name: redact(value) if isinstance(value, str) else value
                for name, value in record_fields(record).items()
            },
        }
        if record.exc_info:
            document["exception"] = redact(self.formatException(record.exc_info))
        return json.dumps(document, default=str)


class ConsoleLogger(Logger):
    """gunicorn's logger, for :class:`Console` lines of gunicorn and of ours."""

    formatter: ClassVar[type[logging.Formatter]] = Console

    def setup(self, cfg: Any) -> None:
        """Called at the start and at each reload."""
        super().setup(cfg)
        # No line says its thread's name, which takes a third of its time under gevent.
        # Nor where in the source it was written, for which the stack would be walked.
        # https://docs.python.org/3/howto/logging.html#optimization
        logging.logThreads = logging.logMultiprocessing = False
        logging._srcfile = None
        # And of what sends traces, which has things to say when nobody takes them.
        for ours in map(logging.getLogger, ("chronoverse", "opentelemetry")):
            ours.handlers = self.error_log.handlers
            ours.propagate = False
            ours.setLevel(self.loglevel)
        for handler in self.error_log.handlers:
            handler.setFormatter(self.formatter())


class JsonLogger(ConsoleLogger):
    """The same, for :class:`Json` lines."""

    formatter = Json


@lru_cache(1)
def _clock_time(seconds: int, layout: str | None) -> str:
    return time.strftime(layout or logging.Formatter.default_time_format, time.localtime(seconds))


def _quoted(value: object) -> str:
    text = str(value)
    return text if _BARE.fullmatch(text) else json.dumps(text)
