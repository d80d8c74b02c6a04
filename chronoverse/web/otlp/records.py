"""Says of which job a log record is, and makes batches of lines of the records of a job. No I/O.

The names of the attributes are OpenTelemetry's: https://opentelemetry.io/docs/specs/semconv/registry/attributes/
"""

import hashlib
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple

from chronoverse.joblog.model import JobRef, Status, iso_or_none
from chronoverse.runner.capture.line_assembler import LineAssembler
from chronoverse.store.records import RecordBatch, RecordRun
from chronoverse.web.otlp.decoding import BadValue, Record

#: Lines of one step, as for a runner's append, unless one record has more.
BATCH_LINES: Final = 500
#: Lines of one record, which are always appended in one step: 10 ms of the store.
MAX_RECORD_LINES: Final = 5_000
#: Lines of a request, in bytes of which each may be an empty line.
MAX_LINES: Final = 50_000
#: The highest number of a record in its file. A hole before it becomes a gap of as many numbers.
MAX_RECORD_NUMBER: Final = 10**11

_PATH: Final = "log.file.path"
_NUMBER: Final = "log.file.record_number"
_STREAM: Final = "log.iostream"
_EXIT_CODE: Final = "chronoverse.exit_code"
_RESULTS: Final = ("cicd.pipeline.task.run.result", "cicd.pipeline.run.result", "cicd.pipeline.result")
#: The attributes with which a record ends its job.
_ENDING: Final = frozenset([_EXIT_CODE, *_RESULTS])
_STATUSES: Final = {
    "success": Status.COMPLETED,
    "failure": Status.FAILED,
    "error": Status.FAILED,
    "timeout": Status.FAILED,
    "cancellation": Status.CANCELED,
    "skip": Status.CANCELED,
}
#: The lowest severity number of an error.
_ERROR_SEVERITY: Final = 17
_NOT_IN_IDS = re.compile(r"[^A-Za-z0-9._-]")


class LineRecord(NamedTuple):
    """A record of a known job, as its lines: one text, or runs of (partial, messages).

    ``path`` and ``number`` are the file's and the record's in it: "" and 0 where it has no number. ``first`` is a
    digest of the record, if its number is 1. ``time`` is Unix ns.
    """

    path: str
    number: int
    first: str
    time: int
    timestamp: str
    stream: str
    lines: "bytes | list[tuple[bool, list[bytes]]]"

    def size(self) -> int:
        """How many lines these are."""
        return 1 if isinstance(self.lines, bytes) else sum(len(messages) for _, messages in self.lines)


class JobRecords:
    """The records of one job in a request, and how they end the job."""

    def __init__(self) -> None:
        self.numbered: list[LineRecord] = []
        self.plain: list[LineRecord] = []
        self.end: tuple[Status, int | None] | None = None
        #: How many records these are.
        self.count = 0

    def batches(self, digest: str) -> Iterator[tuple[int, RecordBatch]]:
        """What is appended, step by step, each with the number of its records. ``digest`` is that of the request.

        The same request makes the same batches again. The last one ends the job.
        """
        parts = [*_parts(_in_order(self.numbered)), *_parts(self.plain)]
        for index, part in enumerate(parts, 1):
            yield len(part), _batch(part, f"{digest}-{index}", self.end if index == len(parts) else None)


class RecordSorter:
    """Sorts the records of a request by their jobs. Those that cannot be taken are counted in ``refused``, by why.

    ``workflow_attributes`` and ``job_attributes`` are the names of the attributes that may name the workflow and the
    job, the first first. ``max_line_bytes`` is as for a runner.
    """

    def __init__(self, workflow_attributes: Sequence[str], job_attributes: Sequence[str], max_line_bytes: int) -> None:
        self._workflow_attributes = workflow_attributes
        self._job_attributes = job_attributes
        self._max_line_bytes = max_line_bytes
        self._naming = frozenset([*workflow_attributes, *job_attributes])
        #: The attributes that say something here.
        self.wanted = self._naming | _ENDING | {_PATH, _NUMBER, _STREAM}
        self.jobs: defaultdict[JobRef, JobRecords] = defaultdict(JobRecords)
        self.refused: Counter[str] = Counter()
        self._lines = 0
        #: The last resource, its job, the last time in ms, and that time as a line has it.
        self._resource: Mapping[str, Any] = {}
        self._job: JobRef | BadValue = BadValue("")
        self._milliseconds = -1
        self._timestamp = ""

    def add(self, resource: Mapping[str, Any], records: Sequence[Record | BadValue]) -> None:
        """Adds records of a resource with these attributes."""
        if resource is not self._resource:
            self._resource, self._job = resource, self._find_job(resource)
        for record in records:
            try:
                if type(record) is not Record:
                    raise record  # type: ignore[misc]
                self._add(record)
            except BadValue as error:
                self.refused[str(error)] += 1

    def _add(self, record: Record) -> None:
        attributes, body, time, observed, severity = record
        job = self._job
        if not self._naming.isdisjoint(attributes):
            job = self._find_job({**self._resource, **attributes})
        if isinstance(job, BadValue):
            raise job
        end = None if _ENDING.isdisjoint(attributes) else _end(attributes)
        path, number = attributes.get(_PATH), attributes.get(_NUMBER)
        if number is not None and not (type(number) is int and 1 <= number <= MAX_RECORD_NUMBER):
            raise BadValue(f"{_NUMBER} must be a whole number from 1 to {MAX_RECORD_NUMBER}")
        if not isinstance(path, str) or number is None:
            path, number = "", 0
        stream = attributes.get(_STREAM)
        if stream != "stdout" and stream != "stderr":
            stream = "stderr" if severity >= _ERROR_SEVERITY else "stdout"
        lines = [] if body is None and end and not number else self._split(body or "", stream)
        first = hashlib.sha256(f"{time} {body}".encode()).hexdigest()[:16] if number == 1 else ""
        time = time or observed
        if time // 1_000_000 != self._milliseconds:
            self._milliseconds = time // 1_000_000
            self._timestamp = iso_or_none(self._milliseconds) or "1970-01-01T00:00:00.000Z"
        found = self.jobs[job]
        (found.numbered if number else found.plain).append(
            LineRecord(path, number, first, time, self._timestamp, stream, lines)
        )
        found.count += 1
        found.end = end or found.end

    def _find_job(self, attributes: Mapping[str, Any]) -> JobRef | BadValue:
        try:
            return JobRef(
                _identifier("workflow", self._workflow_attributes, attributes),
                _identifier("job", self._job_attributes, attributes),
            )
        except BadValue as error:
            return error

    def _split(self, body: str, stream: str) -> "bytes | list[tuple[bool, list[bytes]]]":
        """The lines of a text, split as a runner splits what a command prints."""
        text = body.encode()
        lines, found = 1, None
        if len(text) > self._max_line_bytes or b"\n" in text or b"\r" in text:
            assembler = LineAssembler(stream, self._max_line_bytes)
            batches = [*assembler.feed(text, "", 0), *assembler.close()]
            found = [(batch.partial, batch.messages()) for batch in batches]
            lines = sum(batch.lines for batch in batches)
        if lines > MAX_RECORD_LINES:
            raise BadValue(f"a record has more than {MAX_RECORD_LINES} lines")
        self._lines += lines
        if self._lines > MAX_LINES:
            raise BadValue(f"the request has more than {MAX_LINES} lines")
        return text if found is None else found


def _identifier(what: str, names: Sequence[str], attributes: Mapping[str, Any]) -> str:
    """The id that the first of the attributes gives. Raises :class:`BadValue`."""
    for name in names:
        value = attributes.get(name)
        if value is None:
            continue
        if isinstance(value, list | dict):
            raise BadValue(f"{name} must be a text, to name the {what}")
        if len(str(value)) > 128:
            raise BadValue(f"{name} has more than the 128 characters that the id of a {what} may have")
        # An id begins with a letter or a digit.
        found = _NOT_IN_IDS.sub("-", str(value)).lstrip("._-")
        if found:
            return found
    raise BadValue(f"no attribute names the {what}: one of {', '.join(names)} must")


def _end(attributes: Mapping[str, Any]) -> tuple[Status, int | None] | None:
    """How a record with these attributes ends its job. None if it does not. Raises :class:`BadValue`."""
    code = attributes.get(_EXIT_CODE)
    if code is not None and not (type(code) is int and abs(code) <= 999_999_999):
        raise BadValue(f"{_EXIT_CODE} must be a whole number of at most 9 digits")
    for name in _RESULTS:
        if name in attributes:
            result = attributes[name]
            if not isinstance(result, str) or result not in _STATUSES:
                raise BadValue(f"{name} must be one of {', '.join(_STATUSES)}")
            return _STATUSES[result], code
    return None if code is None else (Status.FAILED if code else Status.COMPLETED, code)


def _in_order(records: Sequence[LineRecord]) -> Iterator[LineRecord]:
    """The records, those of each file by their numbers, as far as they are of the same file.

    After a rotation a file has a new record number 1, which is later than the one before it.
    """
    waiting: list[LineRecord] = []
    last: dict[str, LineRecord] = {}
    is_sorted = True
    for record in records:
        before = last.get(record.path)
        if before and record.number <= before.number:
            if record.number == 1 and record.time > before.time:
                yield from waiting if is_sorted else _sort(waiting)
                waiting, last, is_sorted = [], {}, True
            else:
                is_sorted = False
        last[record.path] = record
        waiting.append(record)
    yield from waiting if is_sorted else _sort(waiting)


def _sort(records: list[LineRecord]) -> list[LineRecord]:
    """The records of each file by their numbers, in the places that the file's records have."""
    of_file: defaultdict[str, list[LineRecord]] = defaultdict(list)
    for record in sorted(records, key=lambda record: -record.number):
        of_file[record.path].append(record)
    return [of_file[record.path].pop() for record in records]


def _parts(records: Iterator[LineRecord] | Sequence[LineRecord]) -> Iterator[list[LineRecord]]:
    """Records that are appended in one step. A step has one first record of each file, at most."""
    part: list[LineRecord] = []
    lines, seen = 0, set[str]()
    for record in records:
        size = record.size()
        is_first = record.number == 1
        if part and (lines + size > BATCH_LINES or (is_first and record.path in seen)):
            yield part
            part, lines, seen = [], 0, set[str]()
        part.append(record)
        lines += size
        seen.add(record.path)
    if part:
        yield part


def _batch(part: list[LineRecord], digest: str, end: tuple[Status, int | None] | None) -> RecordBatch:
    runs: list[RecordRun] = []
    sources: dict[str, int] = {}
    firsts: dict[str, str] = {}
    messages: list[bytes] = []
    like: tuple[Any, ...] = ()
    for record in part:
        path, number, first, _, timestamp, stream, lines = record
        source = sources.setdefault(path, len(sources) + 1) if number else 0
        if first:
            firsts[path] = first
        if not isinstance(lines, bytes):
            runs += [RecordRun(timestamp, stream, partial, source, number, 0, texts) for partial, texts in lines]
            like = ()
            continue
        step = 1 if number else 0
        # The record goes on with a run of records that have a line each.
        if like == (timestamp, stream, source, number):
            messages.append(lines)
        else:
            messages = [lines]
            runs.append(RecordRun(timestamp, stream, False, source, number, step, messages))
        like = (timestamp, stream, source, number + step)
    ids = [(hashlib.sha1(path.encode(), usedforsecurity=False).hexdigest(), firsts.get(path, "")) for path in sources]
    return RecordBatch(runs, digest, ids, end)
