"""Formats log lines, including gunicorn's. ``extra={"fields": {…}}`` passes fields. Tokens are redacted."""

import json
import logging
import re
from datetime import UTC, datetime
from typing import Any, ClassVar, Final

from gunicorn.glogging import Logger

#: Three kinds of tokens: a word after "Bearer", except "token" (our messages say "bearer token"); the query parameter
#: "token"; and a JWT. Checks a JWT's dots first, because a word of 8 KB that repeats "eyJ" would take 30 ms.
_TOKENS: Final = re.compile(
    r"(?<=bearer )(?!token(?:\s|$))[^\s\"',]+|(?<=token=)[^\s&\"']+"
    r"|(?<![\w-])(?=[\w-]+\.[\w-]+\.)[\w-]*?eyJ[\w-]+\.[\w-]+\.[\w-]*",
    re.ASCII | re.IGNORECASE,
)
#: Control characters, escaped on the console so that a client's text cannot forge log lines.
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")
#: Field values that are not quoted on the console.
_BARE: Final = re.compile(r"[\w.:/+@-]+", re.ASCII)


def redact(text: str) -> str:
    """``text`` with ``[token]`` in place of tokens.

    >>> redact("GET /x?token=abc HTTP/1.1")
    'GET /x?token=[token] HTTP/1.1'
    """
    lower = text.lower()
    # Few lines contain any of these strings. This check takes a tenth of the expression's time.
    if "eyj" in lower or "bearer " in lower or "token=" in lower:
        return _TOKENS.sub("[token]", text)
    return text


def record_fields(record: logging.LogRecord) -> dict[str, Any]:
    """A record's fields, starting with the id of its request."""
    # Imported here because the scan server starts without Flask.
    from chronoverse.web.http.request_id import request_id

    fields: dict[str, Any] = getattr(record, "fields", {})
    current = fields.get("request_id") or request_id()
    return {"request_id": current, **fields} if current else fields


class Console(logging.Formatter):
    """Human-readable lines like gunicorn's: the message, the fields, and a traceback, if any."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s [%(process)d] [%(levelname)s] %(message)s", "[%Y-%m-%d %H:%M:%S %z]")

    def formatMessage(self, record: logging.LogRecord) -> str:
        record.message = _CONTROL.sub(lambda match: match[0].encode("unicode_escape").decode(), record.message)
        texts = [(name, str(value)) for name, value in record_fields(record).items()]
        pairs = [f" {name}={text if _BARE.fullmatch(text) else json.dumps(text)}" for name, text in texts]
        return super().formatMessage(record) + "".join(pairs)

    def format(self, record: logging.LogRecord) -> str:
        """The line and its traceback, without tokens."""
        return redact(super().format(record))


class Json(logging.Formatter):
    """One JSON object per line: ``time`` (UTC), ``level``, ``logger``, ``pid``, ``message``, fields, ``exception``."""

    def format(self, record: logging.LogRecord) -> str:
        document = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "pid": record.process,
            "message": redact(record.getMessage()),
            **{key: redact(each) if isinstance(each, str) else each for key, each in record_fields(record).items()},
        }
        if record.exc_info:
            document["exception"] = redact(self.formatException(record.exc_info))
        return json.dumps(document, default=str)


class ConsoleLogger(Logger):
    """gunicorn's logger. Uses :class:`Console` for gunicorn's lines and ours."""

    formatter: ClassVar[type[logging.Formatter]] = Console

    def setup(self, cfg: Any) -> None:
        """Called by gunicorn at the start and at each reload."""
        super().setup(cfg)
        # Under gevent, finding the thread's name takes a third of a log call. Logging would also walk the stack for
        # source lines, which are not shown: https://docs.python.org/3/howto/logging.html#optimization
        logging.logThreads = logging.logMultiprocessing = False
        logging._srcfile = None
        # OpenTelemetry logs when its collector is unreachable.
        for logger in map(logging.getLogger, ("chronoverse", "opentelemetry")):
            logger.handlers = self.error_log.handlers
            logger.propagate = False
            logger.setLevel(self.loglevel)
        for handler in self.error_log.handlers:
            handler.setFormatter(self.formatter())


class JsonLogger(ConsoleLogger):
    formatter = Json
