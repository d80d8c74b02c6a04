"""Finds the job of each log record, and makes batches of lines from each job's records. No I/O.

The names of the attributes are OpenTelemetry's: https://opentelemetry.io/docs/specs/semconv/registry/attributes/
"""

import hashlib
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, groupby
from operator import attrgetter
from typing import Any, Final

from chronoverse.joblog.line_splitter import LineBatch, LineSplitter, ProgressFilter
from chronoverse.joblog.model import JobRef, Status, iso_or_none
from chronoverse.joblog.secret_forms import UNMASKED, SecretForms
from chronoverse.store.records import RecordBatch, RecordRun
from chronoverse.web.http.bodies import SLICE_BYTES
from chronoverse.web.otlp.columns import Columns, Record
from chronoverse.web.otlp.decoding import MAX_RECORD_BYTES, OTHER, BadValue

#: Lines per batch, unless one record has more: 2 ms of the store. Exporters send 512 records per request.
BATCH_LINES: Final = 600
#: Maximum lines per record, which are appended in one batch: 10 ms of the store.
_MAX_RECORD_LINES: Final = 5_000
#: Maximum lines per request. The limit on bytes is not enough, because every newline of a body can be an empty line.
MAX_LINES: Final = 50_000
#: Maximum record number. If all earlier records of its file are missing, the log gets a gap of this length.
MAX_RECORD_NUMBER: Final = 10**11

_PATH: Final = "log.file.path"
_NUMBER: Final = "log.file.record_number"
_STREAM: Final = "log.iostream"
_EXIT_CODE: Final = "chronoverse.exit_code"
_RESULTS: Final = ("cicd.pipeline.task.run.result", "cicd.pipeline.run.result", "cicd.pipeline.result")
_ENDING: Final = frozenset([_EXIT_CODE, *_RESULTS])
_STATUSES: Final = {
    "success": Status.COMPLETED,
    "failure": Status.FAILED,
    "error": Status.FAILED,
    "timeout": Status.FAILED,
    "cancellation": Status.CANCELED,
    "skip": Status.CANCELED,
}
_UNKNOWN_TIME: Final = "1970-01-01T00:00:00.000Z"
_NOT_IN_IDS = re.compile(r"[^A-Za-z0-9._-]")
_DIGITS = re.compile("-?[0-9]{1,9}")


#: Lines as runs of (partial, messages). All pieces of a long line but the last are partial.
Lines = list[tuple[bool, list[bytes]]]


@dataclass(slots=True)
class RecordLines:
    """The lines of one record, or of consecutive one-line records with the same time and stream.

    ``path`` and ``number``: the file's path, and the first record's number in it; "" and 0 if the record has no number.
    ``first``: record 1's digest if included, else "". ``time``: the first record's time, in Unix ns.
    """

    path: str
    number: int
    first: str
    time: int
    timestamp: str
    stream: str
    lines: Lines
    messages: list[bytes] | None = None

    @property
    def records(self) -> int:
        return 1 if self.messages is None else len(self.messages)

    def size(self) -> int:
        return sum(len(messages) for _, messages in self.lines)


class JobRecords:
    """One job's records in a request, and how they end the job. Masks secrets that match ``forms``."""

    def __init__(self, forms: SecretForms) -> None:
        self._forms = forms
        self.numbered: list[RecordLines] = []
        self.plain: list[RecordLines] = []
        self.end: tuple[Status, int | None] | None = None

    def count(self) -> int:
        return sum(each.records for each in chain(self.numbered, self.plain))

    def batches(self, digest: str, pause: Callable[[], None]) -> Iterator[tuple[int, RecordBatch]]:
        """Yields batches to append, each with its number of records. ``digest`` identifies the request.

        The same request yields the same batches. The last one ends the job. Calls ``pause`` often.
        """
        parts = list[list[RecordLines]]()
        for part in chain(_parts(_in_order(self.numbered, pause)), _parts(self.plain)):
            pause()
            lists = ((each.path + each.stream, partial, held) for each in part for partial, held in each.lines)
            self._forms.mask_lists(lists, pause)
            parts.append(part)
        for index, part in enumerate(parts, 1):
            count = sum(each.records for each in part)
            yield count, _batch(part, f"{digest}-{index}", self.end if index == len(parts) else None)


#: What a record's attributes mean: its job's records, or why it is refused; its file; its stream; how its job ends.
Meaning = tuple[JobRecords | str, str | None, str | None, tuple[Status, int | None] | None]


@dataclass(eq=False)
class RecordSorter:
    """Sorts a request's records by job. Counts rejected ones in ``refused``, by reason.

    ``workflow_attributes`` and ``job_attributes`` list the attributes that can name the workflow and the job, in order
    of precedence. ``max_line_bytes`` and ``forms`` are as for a runner. Splitting a long record calls ``pause`` often.
    """

    _workflow_attributes: Sequence[str]
    _job_attributes: Sequence[str]
    _max_line_bytes: int
    _forms: SecretForms = UNMASKED
    _pause: Callable[[], object] = lambda: None
    refused: Counter[str] = field(default_factory=Counter)
    _count: int = 0
    _resource: Mapping[str, Any] = field(default_factory=dict)
    _records: JobRecords | str = ""
    #: The last record's attributes (without the number) and their meaning, as most records repeat them.
    _attributes: Mapping[str, Any] | None = None
    _meaning: Meaning = "", None, None, None
    _milliseconds: int = -1
    _timestamp: str = _UNKNOWN_TIME

    def __post_init__(self) -> None:
        self._naming = frozenset([*self._workflow_attributes, *self._job_attributes])
        self.wanted = self._naming | _ENDING | {_PATH, _NUMBER, _STREAM}
        self.jobs: defaultdict[JobRef, JobRecords] = defaultdict(lambda: JobRecords(self._forms))

    def add(self, resource: Mapping[str, Any], records: Sequence[Record | str] | Columns) -> None:
        """Adds a resource's records. Strings among them are reasons for rejected records, and are counted."""
        if resource is not self._resource:
            self._resource, self._records = resource, self._find_job(resource)
            self._attributes = None
        if isinstance(records, Columns) and self._add_alike(records):
            return
        for record in records:
            if isinstance(record, str):
                self.refused[record] += 1
                continue
            try:
                self._add(record)
            except BadValue as error:
                self.refused[str(error)] += 1

    def _add_alike(self, records: Columns) -> bool:
        """Adds one-line records that differ only in text, time and number.

        Their numbers must be consecutive and not include 1. If the records do not meet this, adds none and returns
        False: the caller must add each alone.
        """
        texts, times, severities = records.texts, records.times, records.severities
        numbers, severity = records.others.get(_NUMBER, ()), severities[0] if severities else 0
        if (
            len(records.others) != bool(numbers)
            or _NUMBER in records.same
            or severities.count(severity) != len(severities)
        ):
            return False
        if numbers and not (type(numbers[0]) is int and 1 < numbers[0] <= MAX_RECORD_NUMBER - len(texts)):
            return False
        if numbers and numbers != [*range(numbers[0], numbers[0] + len(texts))]:
            return False
        found, path, stream, end = self._meaning_of(records.same)
        if path is None or not numbers:
            path, numbers = "", ()
        messages, joined = [*map(str.encode, texts)], "".join(texts)
        is_split = "\n" in joined or "\r" in joined or max(map(len, messages)) > self._max_line_bytes
        if is_split or end or isinstance(found, str) or self._count + len(messages) > MAX_LINES:
            return False
        self._count += len(messages)
        group = found.numbered if numbers else found.plain
        # Severities from 17 are errors.
        stream = stream or ("stderr" if severity >= 17 else "stdout")
        start = 0
        for _, same in groupby([time // 1_000_000 for time in times]):
            stop = start + len([*same])
            first = numbers[start] if numbers else 0
            self._put(group, (path, stream), first, "", times[start], messages[start:stop])
            start = stop
        return True

    def _meaning_of(self, attributes: Mapping[str, Any]) -> Meaning:
        if attributes != self._attributes:
            self._attributes = attributes
            self._meaning = self._find_meaning(attributes)
        return self._meaning

    def _add(self, record: Record) -> None:
        attributes, body, time, observed, severity = record
        number = attributes.pop(_NUMBER, None)
        found, path, stream, end = self._meaning_of(attributes)
        if isinstance(found, str):
            raise BadValue(found)
        if number is not None and not (type(number) is int and 1 <= number <= MAX_RECORD_NUMBER):
            raise BadValue(f"{_NUMBER} must be an integer from 1 to {MAX_RECORD_NUMBER}")
        if path is None or number is None:
            path, number = "", 0
        stream = stream or ("stderr" if severity >= 17 else "stdout")
        text = body.encode() if body else b""
        # Limits the time for splitting. The length of a JSON record is unknown until it is parsed.
        if len(text) > MAX_RECORD_BYTES:
            raise BadValue(f"a record has more than {MAX_RECORD_BYTES} bytes")
        lines: Lines | None = None
        if len(text) > self._max_line_bytes or b"\n" in text or b"\r" in text:
            lines = self._split(text, stream)
        elif not body and end and not number:
            lines = []
        self._count += 1
        if self._count > MAX_LINES:
            raise BadValue(f"the request has more than {MAX_LINES} lines")
        first = hashlib.sha256(f"{time} {body}".encode()).hexdigest()[:16] if number == 1 else ""
        group = found.numbered if number else found.plain
        found.end = end or found.end
        if lines is None:
            self._put(group, (path, stream), number, first, time or observed, [text])
        else:
            timestamp = self._timestamp_of(time or observed)
            group.append(RecordLines(path, number, first, time or observed, timestamp, stream, lines))

    def _put(
        self,
        group: list[RecordLines],
        source: tuple[str, str],
        number: int,
        first: str,
        time: int,
        messages: list[bytes],
    ) -> None:
        """Adds consecutive one-line records with the same time. ``source``: their file's path, and their stream."""
        (path, stream), timestamp = source, self._timestamp_of(time)
        while messages:
            last = group[-1] if group else None
            if (
                last is not None
                and (before := last.messages) is not None
                and (last.number + len(before) == number or not number)
                and last.timestamp == timestamp
                and last.stream == stream
                and last.path == path
                and len(before) < BATCH_LINES
            ):
                room = BATCH_LINES - len(before)
                before += messages[:room]
            else:
                room = BATCH_LINES
                held = messages[:room]
                group.append(RecordLines(path, number, first, time, timestamp, stream, [(False, held)], held))
            messages = messages[room:]
            number += room if number else 0

    def _timestamp_of(self, time: int) -> str:
        if time // 1_000_000 != self._milliseconds:
            self._milliseconds = time // 1_000_000
            self._timestamp = iso_or_none(self._milliseconds) or _UNKNOWN_TIME
        return self._timestamp

    def _find_meaning(self, attributes: Mapping[str, Any]) -> Meaning:
        found = self._records
        if not self._naming.isdisjoint(attributes):
            found = self._find_job({**self._resource, **attributes})
        end = None
        if not _ENDING.isdisjoint(attributes):
            try:
                end = _end(attributes)
            except BadValue as error:
                found = str(error)
        path, stream = attributes.get(_PATH), attributes.get(_STREAM)
        return found, path if isinstance(path, str) else None, stream if stream in ("stdout", "stderr") else None, end

    def _find_job(self, attributes: Mapping[str, Any]) -> JobRecords | str:
        try:
            job = JobRef(
                _identifier("workflow", self._workflow_attributes, attributes),
                _identifier("job", self._job_attributes, attributes),
            )
        except BadValue as error:
            return str(error)
        return self.jobs[job]

    def _split(self, text: bytes, stream: str) -> Lines:
        progress = ProgressFilter()
        # Lines are masked later, because a secret that is cut here can only be found in the whole line.
        splitter = LineSplitter(stream, self._max_line_bytes, UNMASKED)
        plain, batches = progress.feed(text) + progress.release(), list[LineBatch]()
        for start in range(0, len(plain), SLICE_BYTES):
            self._pause()
            batches += splitter.feed(plain[start : start + SLICE_BYTES], "")
        batches += splitter.close()
        lines = sum(batch.lines for batch in batches)
        if lines > _MAX_RECORD_LINES:
            raise BadValue(f"a record has more than {_MAX_RECORD_LINES} lines")
        self._count += lines
        # A text of only carriage returns leaves no line. Its record still becomes one, because its number is used.
        return [(batch.partial, batch.messages()) for batch in batches] or [(False, [b""])]


def _identifier(what: str, names: Sequence[str], attributes: Mapping[str, Any]) -> str:
    """The id from the first attribute that has one. Raises :class:`BadValue`."""
    for name in names:
        value = attributes.get(name)
        if value is None:
            continue
        if value is OTHER:
            raise BadValue(f"{name} must be a string or an integer, to name the {what}")
        if len(str(value)) > 128:
            raise BadValue(f"{name} is too long for the id of a {what}: at most 128 characters")
        # Ids begin with a letter or digit.
        found = _NOT_IN_IDS.sub("-", str(value)).lstrip("._-")
        if found:
            return found
    raise BadValue(f"no attribute names the {what}: expected one of {', '.join(names)}")


def _end(attributes: Mapping[str, Any]) -> tuple[Status, int | None] | None:
    """How a record with these attributes ends its job, or None. Raises :class:`BadValue`."""
    code = attributes.get(_EXIT_CODE)
    # The sender may take the code from a shell variable, as a string.
    if isinstance(code, str) and _DIGITS.fullmatch(code):
        code = int(code)
    if code is not None and not (type(code) is int and abs(code) <= 999_999_999):
        raise BadValue(f"{_EXIT_CODE} must be an integer of at most 9 digits")
    for name in _RESULTS:
        if name in attributes:
            result = attributes[name]
            if not isinstance(result, str) or result not in _STATUSES:
                raise BadValue(f"{name} must be one of {', '.join(_STATUSES)}")
            return _STATUSES[result], code
    return None if code is None else (Status.FAILED if code else Status.COMPLETED, code)


def _in_order(records: Sequence[RecordLines], pause: Callable[[], None]) -> Iterator[RecordLines]:
    """The records, sorted by number within each file.

    After a rotation, the path names a new file, whose records are numbered from 1 again. So if record 1 is later than
    the record before it, it starts a new file, and the records before it are sorted separately.
    """
    waiting: list[RecordLines] = []
    last: dict[str, RecordLines] = {}
    is_sorted = True
    for each in records:
        pause()
        before = last.get(each.path)
        if before and each.number < before.number + before.records:
            if each.number == 1 and each.time > before.time:
                yield from waiting if is_sorted else _sort(waiting, pause)
                waiting, last, is_sorted = [], {}, True
            else:
                is_sorted = False
        last[each.path] = each
        waiting.append(each)
    yield from waiting if is_sorted else _sort(waiting, pause)


def _sort(records: list[RecordLines], pause: Callable[[], None]) -> Iterator[RecordLines]:
    """Sorts each file's records by number. Each position in the list stays with its file."""
    of_file: defaultdict[str, list[RecordLines]] = defaultdict(list)
    for each in records:
        pause()
        of_file[each.path].append(each)
    for held in of_file.values():
        pause()
        held.sort(key=attrgetter("number"))
    in_order = {path: iter(held) for path, held in of_file.items()}
    for each in records:
        pause()
        yield next(in_order[each.path])


def _parts(records: Iterator[RecordLines] | Sequence[RecordLines]) -> Iterator[list[RecordLines]]:
    """Groups the records into batches. A batch has at most one record with number 1 for each file."""
    part: list[RecordLines] = []
    lines, seen = 0, set[str]()
    for each in records:
        size = each.size()
        if part and (lines + size > BATCH_LINES or (each.first and each.path in seen)):
            yield part
            part, lines, seen = [], 0, set[str]()
        part.append(each)
        lines += size
        seen.add(each.path)
    if part:
        yield part


def _batch(part: list[RecordLines], digest: str, end: tuple[Status, int | None] | None) -> RecordBatch:
    runs: list[RecordRun] = []
    sources: dict[str, int] = {}
    firsts = {each.path: each.first for each in part if each.first}
    before: dict[str, RecordLines] = {}
    for each in part:
        # A request can contain a record twice, if a Collector has merged a retry. If the record has several lines, the
        # store would append the second copy as further lines of the first.
        if each.number and each.messages is None and each == before.get(each.path):
            continue
        before[each.path] = each
        source = sources.setdefault(each.path, len(sources) + 1) if each.number else 0
        step = int(source > 0 and each.messages is not None)
        for partial, messages in each.lines:
            time = each.time // 1_000
            runs.append(RecordRun(each.timestamp, each.stream, partial, source, each.number, step, messages, time))
    ids = [(hashlib.sha1(path.encode(), usedforsecurity=False).hexdigest(), firsts.get(path, "")) for path in sources]
    return RecordBatch(runs, digest, ids, end)
