"""What a worker asks the scan server for, and how both sides write it."""

from dataclasses import dataclass
from enum import StrEnum
from operator import methodcaller
from typing import ClassVar, Final, Self

import orjson

from chronoverse import errors
from chronoverse.errors import ChronoverseError, StoreError
from chronoverse.history.page_budget import ENVELOPE_BYTES, PAGE_BYTES, PAGE_SECONDS
from chronoverse.history.pages import BATCH_CHARACTERS
from chronoverse.joblog.model import JobRef

#: Headers of an answer: the number that the page has come to, and whether anything follows it.
POSITION: Final = "Position"
HAS_MORE: Final = "Has-More"
#: Header of an answer with new lines: the ids of the jobs that the log is compared with, as JSON.
COMPARED_WITH: Final = "Compared-With"
#: Seconds after which the scan server returns what it has found for a stream or a download. Then other scans get their
#: turn.
SHORT_SCAN_SECONDS: Final = 0.1


class Form(StrEnum):
    """What a page has of each line."""

    #: Its JSON, with a message that is cut off at :data:`~chronoverse.history.page_budget.MAX_LINE_CHARACTERS`. With a
    #: query, it has the spans that match, and lines of context.
    PAGE = "page"
    #: Its JSON with the whole message.
    WHOLE = "whole"
    #: Its number. That takes nothing from the page's bytes.
    NUMBER = "number"


@dataclass(frozen=True, slots=True, kw_only=True)
class BaseScan:
    """The fields that all scans have, and how a scan is written.

    ``asked_at`` is on the monotonic clock, which all processes of a machine share. A scan that has waited for longer
    than ``patience`` seconds is refused. The answer ends after ``page_bytes`` of JSON or ``seconds``.
    """

    #: The path of the request to the scan server.
    PATH: ClassVar[str]
    #: Of the scans with the same word here, a subject has one at a time.
    TURN: ClassVar = ""

    workflow_id: str
    asked_at: float
    patience: float
    page_bytes: int = PAGE_BYTES - ENVELOPE_BYTES
    seconds: float = PAGE_SECONDS

    def to_json(self) -> bytes:
        """What :meth:`from_json` reads."""
        # The default is for positions: orjson knows no named tuples.
        return orjson.dumps(self, default=methodcaller("to_json"))

    @classmethod
    def from_json(cls, data: bytes) -> Self:
        """The scan that :meth:`to_json` wrote."""
        return cls(**orjson.loads(data))


@dataclass(frozen=True, slots=True, kw_only=True)
class JobScan(BaseScan):
    """A scan of one job."""

    job_id: str

    @property
    def ref(self) -> JobRef:
        """The job."""
        return JobRef(self.workflow_id, self.job_id)


@dataclass(frozen=True, slots=True, kw_only=True)
class LineScan(JobScan):
    """Asks for up to ``limit`` lines strictly after ``position``, in the order asked for, that pass every filter.

    The filters are the ``stream``, the query ``q``, which is an expression with ``regex``, and the times from ``since``
    to ``until``. None lets every line pass. ``before`` and ``after`` count lines of context.
    """

    PATH: ClassVar = "/"

    position: int
    limit: int
    form: str = Form.PAGE
    descending: bool = False
    stream: str | None = None
    q: str | None = None
    regex: bool = False
    since: str | None = None
    until: str | None = None
    before: int = 0
    after: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplayScan(JobScan):
    """Asks for the event frames strictly after ``position``, with the lines that pass the filter.

    The filter is that of :class:`~chronoverse.joblog.line_filter.LineFilter`. With ``is_redacted`` the log was redacted
    a moment ago, so nothing that is cached of it counts.
    """

    PATH: ClassVar = "/replay"
    #: Replays never take long, so they do not wait for the subject's searches and summaries.
    TURN: ClassVar = "replay"

    position: int
    stream: str | None
    q: str | None
    regex: bool
    is_redacted: bool
    page_bytes: int = BATCH_CHARACTERS
    seconds: float = SHORT_SCAN_SECONDS


def error_to_json(error: ChronoverseError) -> bytes:
    """What :func:`error_from_json` reads."""
    return orjson.dumps([type(error).__name__, str(error)])


def error_from_json(data: bytes) -> ChronoverseError:
    """The error that :func:`error_to_json` wrote. An error with more than a message becomes a :class:`StoreError`."""
    name, message = orjson.loads(data)
    kind = getattr(errors, name)
    has_only_message = kind.__init__ is ChronoverseError.__init__
    error: ChronoverseError = (kind if has_only_message else StoreError)(message)
    return error
