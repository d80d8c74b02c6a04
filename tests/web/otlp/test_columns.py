"""Decoding records column by column gives the same result as decoding each alone."""

import random
from typing import Any

from opentelemetry.proto.common.v1.common_pb2 import KeyValue
from opentelemetry.proto.logs.v1.logs_pb2 import LogRecord, ScopeLogs

from chronoverse.web.otlp import columns
from chronoverse.web.otlp.columns import Record
from chronoverse.web.otlp.decoding import PROTOBUF, decode
from tests.web.otlp.messages import TIME, record, request

WANTED = frozenset({"path", "number", "stream"})


def decoded(*records: LogRecord) -> list[Record | str]:
    parts = decode(bytearray(request({}, *records).SerializeToString()), PROTOBUF, WANTED, lambda: None)
    return [each for _, found in parts for each in found]


def test_records_decoded_together_equal_records_decoded_alone() -> None:
    """Whatever differs between them: keys and their order, value types, missing fields."""
    rng = random.Random(4)
    odd: list[dict[str, Any]] = [{"number": "7"}, {"number": 2.5}, {"path": None}, {"path": ["x"]}, {"number": True}]
    for _ in range(60):
        alike, records = rng.random() < 0.5, list[LogRecord]()
        for number in range(1, rng.randint(2, 150)):
            attributes = {"path": "/a.log", "unused": rng.choice("ab"), "number": number, "stream": rng.choice("ab")}
            body: Any = rng.choice(["", "text", "\N{EURO SIGN}"])
            each = record(body, time=TIME + number, severity=9, **attributes)
            if not alike and rng.random() < 0.1:
                names = rng.sample(list(attributes), rng.randint(0, 4))
                attributes = {name: attributes[name] for name in names} | rng.choice(odd)
                body = rng.choice([None, 7, {"a": 1}, "text"])
                each = record(body, time=rng.choice([0, TIME]), severity=rng.choice([0, 17]), **attributes)
                each.observed_time_unix_nano = 5
                each.attributes.extend([KeyValue(key="unused")] * rng.randint(0, 1))
            records.append(each)
        assert decoded(*records) == [found for each in records for found in decoded(each)]


def test_alike_records_are_decoded_together() -> None:
    """As a Collector sends them. A record without a time, or with different keys, is not alike."""
    records = [record("text", path="/a.log", number=number, trace=f"{number}") for number in range(1, 4)]
    found = columns.read(ScopeLogs(log_records=records).SerializeToString(), 3, WANTED)
    assert found is not None
    assert [each.attributes for each in found] == [{"path": "/a.log", "number": number} for number in (1, 2, 3)]
    for other in (record("text", path="/a.log"), record("text", time=0, path="a", number=1, trace="b")):
        assert columns.read(ScopeLogs(log_records=[*records, other]).SerializeToString(), 4, WANTED) is None
