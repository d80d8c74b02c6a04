"""JSON and protobuf requests give the same records, also when long lists are parsed in slices."""

import json
import random
from typing import Any

import orjson
import pytest
from google.protobuf import json_format
from opentelemetry.proto.logs.v1.logs_pb2 import LogRecord
from werkzeug.exceptions import BadRequest, RequestEntityTooLarge

from chronoverse.web.otlp.columns import Record
from chronoverse.web.otlp.decoding import JSON, PROTOBUF, decode
from tests.web.otlp.messages import record, request

WANTED = frozenset({"service.name", "log.file.path", "text"})


def found(body: bytes, mimetype: str) -> list[tuple[str, Record | str]]:
    """Each record of the request, with its resource's name."""
    parts = decode(bytearray(body), mimetype, WANTED, lambda: None)
    return [(attributes.get("service.name", ""), each) for attributes, records in parts for each in records]


def test_json_slices_give_the_same_records_as_protobuf() -> None:
    """With brackets, quotes and backslashes in strings, and with few, many, short and long records."""
    choice = random.Random(9)
    signs = ['"', "\\", "{", "}", "[", "]", ",", " ", "x", "\n", "\N{EURO SIGN}", '\\"', '"]}', "\\\\"]

    def text(length: int) -> str:
        return "".join(choice.choices(signs, k=length))

    for indent in (None, 1):
        message = request({"service.name": "first"}, record("x"))
        for count in (0, 1, 400, 3, 600, 0, 30):
            lengths = choice.choices((0, 3, 40, 9_000), (9, 50, 40, 1), k=count)
            records = [record(text(each), log__file__path=text(3), text=[{text(2): [text(2)]}]) for each in lengths]
            message.MergeFrom(request({"service.name": f"{count} records", "unused": text(60)}, *records))
        message.resource_logs[-1].scope_logs.add().log_records.append(record("y" * 70_000))
        message.resource_logs[-1].scope_logs.add().log_records.append(record("z" * 600_000))
        document = json_format.MessageToDict(message, use_integers_for_enums=True)
        # Irrelevant lists at the same depth.
        document = {"others": [{"scopeLogs": [7]}], **document, "more": [[1], [2]]}
        body = orjson.dumps(document, option=orjson.OPT_INDENT_2 if indent else None)
        assert len(body) > 700_000
        assert found(body, JSON) == found(message.SerializeToString(), PROTOBUF)


@pytest.mark.parametrize(
    "body",
    [
        b"null",
        b"[]",
        b'{"resourceLogs":[{}}',
        b'{"resourceLogs":[%b]' % (b'{"a":"%b"},' % (b"x" * 20_000) * 9),
        b'{"resourceLogs":[{"a":"%b"}{}]}' % (b"x" * 20_000),
        b'{"resourceLogs":[{"scopeLogs":[{"logRecords":[%b7]}]}]}' % (b'{"x":"%b"},' % (b"x" * 20_000) * 9),
        b'{"resourceLogs":[{"scopeLogs":[{"logRecords":[%b"]}]}]}' % (b'"x",' * 100_000),
        b'{"resourceLogs":[%b0]}' % (b"0," * 100_000),
        b'{"a":[%b0],"resourceLogs":[]}' % (b"[]," * 300_000),
        b"{[" * 300_000,
    ],
)
def test_invalid_requests_are_refused(body: bytes) -> None:
    """Wherever they are cut into slices."""
    with pytest.raises(BadRequest):
        found(body, JSON)


def test_a_record_too_expensive_to_parse_is_rejected_alone() -> None:
    """The others are accepted, as with protobuf."""
    dense = b'{"a":[%b[]]}' % (b"[]," * 150_000)
    body = b'{"resourceLogs":[{"scopeLogs":[{"logRecords":[%b,%b,%b]}]}]}' % (b'{"severityNumber":1}', dense, b"{}")
    first, second, third = (each for _, each in found(body, JSON))
    assert isinstance(second, str)
    assert isinstance(first, Record)
    assert (first.severity, third) == (1, Record({}, None, 0, 0, 0))


@pytest.mark.parametrize("mimetype", [JSON, PROTOBUF])
def test_other_requests_run_between_expensive_records(mimetype: str) -> None:
    """Although the records are short enough to share a slice."""
    message = request({}, *[record([None] * 60)] * 60)
    document = json_format.MessageToJson(message, use_integers_for_enums=True, indent=None).encode()
    pauses = list[int]()
    parts = decode(
        bytearray(document if mimetype == JSON else message.SerializeToString()),
        mimetype,
        WANTED,
        lambda: pauses.append(1),
    )
    assert sum(len([*records]) for _, records in parts) == 60
    assert len(pauses) >= 60


def nested(levels: int) -> Any:
    return [nested(levels - 1)] if levels > 1 else []


def maps(levels: int) -> Any:
    return {"a": maps(levels - 1)} if levels > 1 else {}


@pytest.mark.parametrize(
    ("good", "bad", "why"),
    [
        (
            record("x", **{f"a{n}": 1 for n in range(1_000)}),
            record("x", **{f"a{n}": 1 for n in range(1_001)}),
            "there are more than 1000 attributes",
        ),
        # Of lists in attributes for names, nothing is read.
        (record([1] * 1_000, log__file__path=[1] * 1_001), record([1] * 1_001), "a body has more than 1000 values"),
        (record([[1] * 499] * 2), record([[1] * 500] * 2), "a body has more than 1000 values"),
        (record({"a": [1] * 999}), record({"a": [1] * 1_000}), "a body has more than 1000 values"),
        (record(nested(32)), record(nested(33)), "a body has more than 32 levels of lists and maps"),
        (record(maps(32)), record(maps(33)), "a body has more than 32 levels of lists and maps"),
    ],
    ids=["attributes", "values", "values of lists", "values of a map", "levels", "levels of maps"],
)
def test_record_limits_are_the_same_in_both_formats(good: LogRecord, bad: LogRecord, why: str) -> None:
    """A record beyond a limit is rejected alone."""
    message = request({}, good, bad, record("after"))
    document = json_format.MessageToJson(message, use_integers_for_enums=True).encode()
    for body, mimetype in ((message.SerializeToString(), PROTOBUF), (document, JSON)):
        (_, first), (_, second), (_, third) = found(body, mimetype)
        assert isinstance(first, Record)
        assert (second, isinstance(third, Record)) == (why, True)


@pytest.mark.parametrize(
    "time", ["0", 2**64 - 1, str(2**64 - 1), -(2**63), 2**64, -(2**63) - 1, "x", "1.0", 1.5, True, [], "9" * 21]
)
def test_integers_in_json(time: Any) -> None:
    """64 bits, signed or unsigned, as a number or a string. An empty value is 0."""
    body = orjson.dumps({"resourceLogs": [{"scopeLogs": [{"logRecords": [{"timeUnixNano": 77}]}]}]})
    body = body.replace(b"77", json.dumps(time).encode())
    ((_, only),) = found(body, JSON)
    if time in ("x", "1.0", 1.5, True, "9" * 21, 2**64, -(2**63) - 1):
        assert only == "a record has an invalid integer"
    else:
        assert isinstance(only, Record)
        assert only.time == int(time or 0)


@pytest.mark.parametrize("count", [50_000, 50_001])
def test_maximum_records_per_request(count: int) -> None:
    document = b'{"resourceLogs":[{"scopeLogs":[{"logRecords":[%b{}]}]}]}' % (b"{}," * (count - 1))
    if count <= 50_000:
        assert len(found(document, JSON)) == count
        return
    message = request({}, *[LogRecord()] * count)
    for body, mimetype in ((message.SerializeToString(), PROTOBUF), (document, JSON)):
        with pytest.raises(RequestEntityTooLarge):
            found(body, mimetype)
