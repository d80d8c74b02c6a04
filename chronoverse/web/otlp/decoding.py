"""Decodes an ``ExportLogsServiceRequest``, in protobuf or JSON, and encodes its answers.

Requests are parsed in slices, so that other greenlets run in between.
https://github.com/open-telemetry/opentelemetry-proto/blob/main/opentelemetry/proto/logs/v1/logs.proto
"""

import base64
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import orjson
from google.protobuf.message import DecodeError
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsPartialSuccess, ExportLogsServiceResponse
from opentelemetry.proto.common.v1.common_pb2 import AnyValue
from opentelemetry.proto.logs.v1.logs_pb2 import LogRecord, ScopeLogs
from opentelemetry.proto.resource.v1.resource_pb2 import Resource
from werkzeug.exceptions import BadRequest, RequestEntityTooLarge

from chronoverse.web.http.bodies import MAX_STRUCTURAL_CHARACTERS, SLICE_BYTES, has_more_values, load_json
from chronoverse.web.otlp import columns
from chronoverse.web.otlp.columns import Columns, Record
from chronoverse.web.otlp.json_lists import Slice, cut_lists, load_elements

#: Maximum records, resources and scopes per request. The Collector sends 8,192 records by default.
_MAX_RECORDS: Final = 50_000
#: Maximum bytes per record. It is parsed at once, in at most 3 ms.
MAX_RECORD_BYTES: Final = 524_288
#: Maximum records per slice, if they are short.
_SLICE_RECORDS: Final = 64
_MAX_ATTRIBUTES: Final = 1_000

PROTOBUF: Final = "application/x-protobuf"
JSON: Final = "application/json"


class BadValue(ValueError):
    """Raised when a record, or a value in it, cannot be read. The message says why."""


OTHER: Final = object()

#: A resource's wanted attributes, and some records. Errors are strings, because exceptions would keep the slice.
Found = tuple[Mapping[str, Any], list[Record | str] | Columns]


def decode(body: bytearray, mimetype: str, wanted: Collection[str], pause: Callable[[], None]) -> Iterator[Found]:
    """Yields the records of a request with only the ``wanted`` attributes. Calls ``pause`` between slices.

    Raises HTTPException: 400 for an invalid request, 413 for too many records.
    """
    if mimetype == JSON:
        return _decode_json(body, wanted, pause)
    return _ProtobufDecoder(body, wanted, pause).decode()


def encode_answer(mimetype: str, rejected: int, message: str) -> bytes:
    """The answer to a request. ``message`` says why records were rejected; empty if none were."""
    if mimetype == JSON:
        partial = {"partialSuccess": {"rejectedLogRecords": str(rejected), "errorMessage": message}}
        return orjson.dumps(partial if message else {})
    answer = ExportLogsServiceResponse()
    if message:
        answer.partial_success.CopyFrom(ExportLogsPartialSuccess(rejected_log_records=rejected, error_message=message))
    encoded: bytes = answer.SerializeToString()
    return encoded


def encode_status(mimetype: str, message: str) -> bytes:
    """A ``google.rpc.Status``, the answer to a request that failed as a whole."""
    if mimetype == JSON:
        return orjson.dumps({"message": message})
    text = message.encode()[:65_536]
    # Field 2 of Status, which the package opentelemetry-proto lacks.
    return b"\x12" + _varint(len(text)) + text


def _varint(number: int) -> bytes:
    found = bytearray()
    while number > 0x7F:
        found.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*found, number])


@dataclass(slots=True)
class _ProtobufDecoder:
    """Decodes one request. See :func:`decode`."""

    _body: bytearray
    _wanted: Collection[str]
    _pause: Callable[[], None]
    _fields_left: int = _MAX_RECORDS

    def decode(self) -> Iterator[Found]:
        try:
            for field, start, end in self._fields(0, len(self._body)):
                self._pause()
                if field == 1:
                    yield from self._resource_logs(start, end)
        except (DecodeError, IndexError) as error:
            raise BadRequest("the body is not a protobuf message of log records") from error
        except BadValue as error:
            raise BadRequest(f"invalid resource: {error}") from error

    def _resource_logs(self, start: int, end: int) -> Iterator[Found]:
        resource, scopes = dict[str, Any](), []
        for field, field_start, field_end in self._fields(start, end):
            self._pause()
            if field == 1:
                if field_end - field_start > MAX_RECORD_BYTES:
                    raise BadValue(f"it has more than {MAX_RECORD_BYTES} bytes")
                resource = _attributes(
                    Resource.FromString(self._content(field_start, field_end)).attributes, self._wanted
                )
            elif field == 2:
                scopes.append((field_start, field_end))
        for scope_start, scope_end in scopes:
            for records in self._slices(scope_start, scope_end):
                self._pause()
                yield resource, records

    def _content(self, start: int, end: int) -> bytes:
        return bytes(self._body[start:end])

    def _fields(self, at: int, end: int) -> Iterator[tuple[int, int, int]]:
        """Yields each field of the message ``body[at:end]``: its number, and the start and end of its content.

        Fields that are not length-delimited are not needed and get the number 0. Raises IndexError if the message is
        truncated, and 413 if all messages together have too many fields.
        https://protobuf.dev/programming-guides/encoding/
        """
        body = self._body
        while at < end:
            tag = body[at]
            at += 1
            if tag > 0x7F:
                tag, at = _read_varint(body, at - 1)
            self._fields_left -= 1
            if self._fields_left < 0:
                raise _too_many_records()
            kind = tag & 7
            if kind == 2:
                size = body[at]
                at += 1
                if size > 0x7F:
                    size, at = _read_varint(body, at - 1)
                stop = at + size
                if stop > end:
                    raise IndexError
                yield tag >> 3, at, stop
                at = stop
            elif kind == 0:
                _, at = _read_varint(body, at)
                yield 0, at, at
            elif kind in (1, 5):
                at += 8 if kind == 1 else 4
                yield 0, at, at
            else:
                raise IndexError
        if at != end:
            raise IndexError

    def _slices(self, at: int, end: int) -> Iterator[list[Record | str] | Columns]:
        """Yields a ScopeLogs message's records in slices of whole fields. Each can be parsed as a ScopeLogs message."""
        start = stop = at
        count = 0
        for field, content, stop_of_field in self._fields(at, end):
            if field == 2 and stop_of_field - content <= MAX_RECORD_BYTES:
                count += 1
                stop = stop_of_field
                if count < _SLICE_RECORDS and stop - start < SLICE_BYTES:
                    continue
            yield self._slice(start, stop, count)
            if stop != stop_of_field and field == 2:
                yield [f"a record has more than {MAX_RECORD_BYTES} bytes"]
            # Other fields, such as the scope, are skipped, whatever their size.
            start = stop = stop_of_field
            count = 0
        yield self._slice(start, stop, count)

    def _slice(self, start: int, end: int, count: int) -> list[Record | str] | Columns:
        content = self._content(start, end)
        try:
            # Longer slices consist of long records, which are rarely alike.
            if count > 1 and len(content) < 2 * SLICE_BYTES and (found := columns.read(content, count, self._wanted)):
                return found
            return [self._read(each) for each in ScopeLogs.FromString(content).log_records]
        except DecodeError:
            # One record is invalid, perhaps with a string that is not UTF-8; the others are accepted. All have already
            # counted against the limit of fields, and are counted again below.
            self._fields_left += count
            return [self._single(content, stop) for _, content, stop in self._fields(start, end)]

    def _single(self, start: int, end: int) -> Record | str:
        try:
            return self._read(LogRecord.FromString(self._content(start, end)))
        except DecodeError:
            return "invalid protobuf in a record, or text that is not UTF-8"

    def _read(self, record: Any) -> Record | str:
        try:
            body = record.body.string_value or _body(_value(record.body, _Bound(self._pause)))
            attributes = _attributes(record.attributes, self._wanted)
        except BadValue as error:
            return str(error)
        return Record(attributes, body, record.time_unix_nano, record.observed_time_unix_nano, record.severity_number)


def _too_many_records() -> RequestEntityTooLarge:
    return RequestEntityTooLarge(f"a request can have at most {_MAX_RECORDS} log records, resources and scopes")


def _read_varint(body: bytearray, at: int) -> tuple[int, int]:
    number = shift = 0
    while True:
        byte = body[at]
        at += 1
        number |= (byte & 0x7F) << shift
        if byte < 0x80:
            return number, at
        shift += 7
        if shift > 63:
            raise IndexError


def _attributes(pairs: Any, wanted: Collection[str]) -> dict[str, Any]:
    if len(pairs) > _MAX_ATTRIBUTES:
        raise BadValue(f"there are more than {_MAX_ATTRIBUTES} attributes")
    found: dict[str, Any] = {}
    for pair in pairs:
        key = pair.key
        if key in wanted:
            value = pair.value
            found[key] = value.string_value or value.int_value or _scalar(value)
    return found


def _scalar(value: AnyValue) -> Any:
    """An attribute's value: a string or an integer, None if empty, :data:`OTHER` for anything else."""
    kind = value.WhichOneof("value")
    return getattr(value, kind) if kind in ("string_value", "int_value") else OTHER if kind else None


def _body(value: Any) -> str | None:
    return value if value is None or type(value) is str else orjson.dumps(value).decode()


class _Bound:
    """Limits the number of values in one body, and their nesting. Calls ``pause`` for each list."""

    def __init__(self, pause: Callable[[], object]) -> None:
        self._pause = pause
        self._count = 0

    def take(self, values: Any, depth: int) -> Any:
        """The ``values`` of a list or map at this ``depth``. Raises :class:`BadValue` beyond the limits."""
        self._pause()
        self._count += len(values)
        if self._count > 1_000:
            raise BadValue("a body has more than 1000 values")
        if depth == 32:
            raise BadValue("a body has more than 32 levels of lists and maps")
        return values


def _value(value: AnyValue, bound: _Bound, depth: int = 0) -> Any:
    """Converts an AnyValue to None, a string, a number, a boolean, base64 for bytes, a list or a dict."""
    kind = value.WhichOneof("value")
    if kind == "array_value":
        return [_value(each, bound, depth + 1) for each in bound.take(value.array_value.values, depth)]
    if kind == "kvlist_value":
        pairs = bound.take(value.kvlist_value.values, depth)
        return {each.key: _value(each.value, bound, depth + 1) for each in pairs}
    if kind == "bytes_value":
        return base64.b64encode(value.bytes_value).decode()
    return getattr(value, kind) if kind else None


# JSON: https://opentelemetry.io/docs/specs/otlp/#json-protobuf-encoding


def _decode_json(body: bytearray, wanted: Collection[str], pause: Callable[[], None]) -> Iterator[Found]:
    count = 0
    try:
        for attributes, records in _json_records(body, wanted, pause):
            count += len(records)
            if count > _MAX_RECORDS:
                raise _too_many_records()
            for start in range(0, len(records), _SLICE_RECORDS):
                part = records[start : start + _SLICE_RECORDS]
                yield (
                    attributes,
                    [each if isinstance(each, str) else _json_record(each, wanted, pause) for each in part],
                )
    except BadValue as error:
        raise BadRequest(f"the body is not a message of log records: {error}") from error


def _json_records(
    body: bytearray, wanted: Collection[str], pause: Callable[[], None]
) -> Iterator[tuple[Mapping[str, Any], Sequence[dict[str, Any] | str]]]:
    """Yields a resource's attributes with some of its records, or with one record's error."""
    # The first path leads to the lists of records, the second to the list of resources.
    text, records = cut_lists(body, b"{[{[{[", pause)
    rest, resources = cut_lists(text, b"{[", pause)
    request = load_json(rest, pause)
    if request is None:
        raise BadValue("null")
    for resource in map(resources.__getitem__, _list(request, "resourceLogs")):
        pause()
        if reason := _too_long(text, resource, pause):
            raise BadValue(f"a resource has {reason}")
        for group in _objects(load_elements(text, resource)):
            attributes = _json_attributes(_object(group.get("resource")), wanted)
            for scope in _objects(_list(group, "scopeLogs")):
                for where in map(records.__getitem__, _list(scope, "logRecords")):
                    yield attributes, _json_slice(body, where, pause)


def _json_slice(body: bytearray, where: Slice, pause: Callable[[], None]) -> Sequence[dict[str, Any] | str]:
    if reason := _too_long(body, where, pause):
        return [f"a record has {reason}"]
    return _objects(load_elements(body, where))


def _too_long(body: bytearray, where: Slice, pause: Callable[[], None]) -> str:
    """Why a slice would take too long to parse; else empty."""
    size = where[1] - where[0]
    if size > MAX_RECORD_BYTES:
        return f"more than {MAX_RECORD_BYTES} bytes"
    if size > 2 * SLICE_BYTES and has_more_values(body[slice(*where)], pause, MAX_STRUCTURAL_CHARACTERS):
        return f"more than {MAX_STRUCTURAL_CHARACTERS} brackets, commas and quotation marks around values"
    return ""


def _json_record(record: dict[str, Any], wanted: Collection[str], pause: Callable[[], None]) -> Record | str:
    try:
        return Record(
            _json_attributes(record, wanted),
            _body(_json_value(record.get("body"), _Bound(pause))),
            _json_integer(record.get("timeUnixNano") or 0),
            _json_integer(record.get("observedTimeUnixNano") or 0),
            _json_integer(record.get("severityNumber") or 0),
        )
    except BadValue as error:
        return str(error)


def _object(value: Any) -> dict[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise BadValue("expected an object")
    return value


def _list(message: Any, name: str) -> list[Any]:
    found = _object(message).get(name)
    if found is None:
        return []
    if not isinstance(found, list):
        raise BadValue(f"{name} is not a list")
    return found


def _objects(listed: Sequence[Any]) -> list[dict[str, Any]]:
    return [_object(each) for each in listed]


def _json_integer(value: Any) -> int:
    """A 64-bit integer, which JSON can have as a string."""
    try:
        if type(value) is int or (type(value) is str and len(value) <= 20):
            number = int(value)
            if -(2**63) <= number < 2**64:
                return number
    except ValueError:
        pass
    raise BadValue("a record has an invalid integer")


def _json_attributes(message: dict[str, Any], wanted: Collection[str]) -> dict[str, Any]:
    listed = _list(message, "attributes")
    if len(listed) > _MAX_ATTRIBUTES:
        raise BadValue(f"there are more than {_MAX_ATTRIBUTES} attributes")
    pairs = _objects(listed)
    return {key: _json_scalar(pair.get("value")) for pair in pairs if (key := str(pair.get("key"))) in wanted}


def _json_scalar(value: Any) -> Any:
    """Like :func:`_scalar`."""
    if isinstance(value, dict):
        if isinstance(text := value.get("stringValue"), str):
            return text
        if "intValue" in value:
            return _json_integer(value["intValue"])
    return OTHER if value else None


def _json_value(value: Any, bound: _Bound, depth: int = 0) -> Any:
    for kind, held in _object(value).items():
        if kind in ("stringValue", "bytesValue") and isinstance(held, str):
            return held
        if kind == "boolValue" and isinstance(held, bool):
            return held
        if kind == "intValue":
            return _json_integer(held)
        if kind == "doubleValue" and isinstance(held, int | float):
            return float(held)
        if kind == "doubleValue" and held in ("NaN", "Infinity", "-Infinity"):
            return None
        if kind in ("arrayValue", "kvlistValue"):
            values = _objects(bound.take(_list(held, "values"), depth))
            if kind == "arrayValue":
                return [_json_value(each, bound, depth + 1) for each in values]
            return {str(each.get("key")): _json_value(each.get("value"), bound, depth + 1) for each in values}
        raise BadValue("a record has a value of the wrong type")
    return None
