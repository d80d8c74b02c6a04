"""The requests of workers to the scan server, and their encoding."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Final, NamedTuple, Self

import orjson

from chronoverse import errors
from chronoverse.errors import ChronoverseError, StoreError
from chronoverse.history.pages import ENVELOPE_BYTES, PAGE_BYTES, PAGE_SECONDS
from chronoverse.history.tiered_log import BATCH_CHARACTERS
from chronoverse.joblog.model import JobRef

#: Seconds after which a scan for a stream or download returns what it has found.
SHORT_SCAN_SECONDS: Final = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class BaseScan:
    """The fields of all scans. If a scan covers all jobs of a workflow, its job id is empty.

    ``asked_at`` is on the monotonic clock, which all processes of a machine share. A scan that has waited longer than
    ``patience`` seconds is refused. The answer ends after ``page_bytes`` of JSON or ``seconds``.
    """

    #: The path of the request to the scan server.
    PATH: ClassVar[str]
    #: A subject can run one scan at a time for each value of ``TURN``.
    TURN: ClassVar = ""

    workflow_id: str
    job_id: str
    asked_at: float
    patience: float
    page_bytes: int = PAGE_BYTES - ENVELOPE_BYTES
    seconds: float = PAGE_SECONDS

    @property
    def ref(self) -> JobRef:
        return JobRef(self.workflow_id, self.job_id)

    def to_json(self) -> bytes:
        # orjson does not support named tuples, which positions are.
        return orjson.dumps(self, default=tuple)

    @classmethod
    def from_json(cls, data: bytes) -> Self:
        return cls(**orjson.loads(data))


@dataclass(frozen=True, slots=True, kw_only=True)
class LineScan(BaseScan):
    """Requests up to ``limit`` lines strictly after ``position``, in the requested order, that pass every filter.

    ``only_new`` compares lines with the job ``against``, or with the good runs that :func:`~.comparison.baseline`
    selects by ``labels``. ``form``: ``page`` is JSON with highlights, and ``before`` and ``after`` lines of context;
    ``whole`` is the full JSON; ``number`` is only the number, which does not count against ``page_bytes``.
    """

    PATH: ClassVar = "/"

    limit: int
    position: int = 0
    form: str = "page"
    descending: bool = False
    stream: str | None = None
    q: str | None = None
    regex: bool = False
    since: str | None = None
    until: str | None = None
    only_new: bool = False
    against: str | None = None
    labels: Sequence[Sequence[str]] | None = None
    before: int = 0
    after: int = 0


class WorkflowPosition(NamedTuple):
    """A search's position in a listing: after the job with these ids, or at a ``line`` of this job.

    ``created``: Unix milliseconds as a string, because JSON has no infinity. ``found``: how many of the job's lines
    were shown.
    """

    created: str
    workflow_id: str
    job_id: str
    line: int | None = None
    found: int = 0

    @property
    def ref(self) -> JobRef:
        return JobRef(self.workflow_id, self.job_id)


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkflowScan(LineScan):
    """Requests up to ``limit`` jobs with matching lines, and up to ``per_job`` matching lines of each.

    Searches only jobs with this ``status`` and all ``labels``, started between ``since`` and ``until`` (None: any).
    ``start`` is the previous page's position. An empty ``workflow_id`` means all workflows with one of ``ids`` or
    ``prefixes``.
    """

    PATH: ClassVar = "/workflow"

    per_job: int
    start: WorkflowPosition | None = None
    status: str | None = None
    ids: Sequence[str] = field(default_factory=list)
    prefixes: Sequence[str] = field(default_factory=list)

    @classmethod
    def from_json(cls, data: bytes) -> Self:
        fields = orjson.loads(data)
        start = fields.pop("start")
        return cls(**fields, start=start and WorkflowPosition(*start))


@dataclass(frozen=True, slots=True, kw_only=True)
class SummaryScan(BaseScan):
    """Requests a job's summary, compared with good runs as in a :class:`LineScan`.

    The searches for new lines and for errors get ``seconds`` each. The next request continues where this one stopped.
    """

    PATH: ClassVar = "/summary"

    seconds: float = 1.5
    labels: Sequence[Sequence[str]] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ProfileScan(SummaryScan):
    """Requests a job's profile, compared with the same good runs as its summary."""

    PATH: ClassVar = "/profile"


@dataclass(frozen=True, slots=True, kw_only=True)
class HistoryScan(BaseScan):
    """Requests the ended jobs that have the shape of line ``line``, among the newest ``jobs`` with all ``labels``.

    ``start`` is the previous page's position in the workflow's listing: a creation time in Unix milliseconds, as a
    string, and a job id.
    """

    PATH: ClassVar = "/history"

    line: int
    jobs: int
    start: tuple[str, str] | None = None
    labels: Sequence[Sequence[str]] = field(default_factory=list)


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplayScan(BaseScan):
    """Requests event frames after ``position``. ``is_redacted``: the log was just redacted, so caches are ignored."""

    PATH: ClassVar = "/replay"
    #: Replays are short, so they do not wait for the subject's searches and summaries.
    TURN: ClassVar = "replay"

    position: int
    stream: str | None
    q: str | None
    regex: bool
    is_redacted: bool
    page_bytes: int = BATCH_CHARACTERS
    seconds: float = SHORT_SCAN_SECONDS


def error_to_json(error: ChronoverseError) -> bytes:
    """Encodes an error for :func:`error_from_json`."""
    return orjson.dumps([type(error).__name__, str(error)])


def error_from_json(data: bytes) -> ChronoverseError:
    """Decodes the result of :func:`error_to_json`. Classes that need more than a message become :class:`StoreError`."""
    name, message = orjson.loads(data)
    kind = getattr(errors, name)
    has_only_message = kind.__init__ is ChronoverseError.__init__
    error: ChronoverseError = (kind if has_only_message else StoreError)(message)
    return error
