"""Requests with log records, as exporters send them."""

from collections.abc import Mapping
from typing import Any

from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, ArrayValue, KeyValue, KeyValueList
from opentelemetry.proto.logs.v1.logs_pb2 import LogRecord, ResourceLogs, ScopeLogs
from opentelemetry.proto.resource.v1.resource_pb2 import Resource

#: 2026-03-03T10:00:05.123Z in Unix ns.
TIME = 1_772_532_005_123_000_000


def value(held: Any) -> AnyValue:
    """An AnyValue from a string, number, bytes, list or dict."""
    if isinstance(held, list):
        return AnyValue(array_value=ArrayValue(values=[value(each) for each in held]))
    if isinstance(held, dict):
        return AnyValue(kvlist_value=KeyValueList(values=pairs(held)))
    if held is None:
        return AnyValue()
    kinds = {str: "string_value", bool: "bool_value", int: "int_value", float: "double_value", bytes: "bytes_value"}
    return AnyValue(**{kinds[type(held)]: held})


def pairs(attributes: Mapping[str, Any]) -> list[KeyValue]:
    return [KeyValue(key=key, value=value(held)) for key, held in attributes.items()]


def record(body: Any, *, time: int = TIME, severity: Any = 9, **attributes: Any) -> LogRecord:
    """A log record. ``__`` in an attribute's name becomes a dot."""
    named = {name.replace("__", "."): held for name, held in attributes.items()}
    content = {} if body is None else {"body": value(body)}
    return LogRecord(time_unix_nano=time, severity_number=severity, attributes=pairs(named), **content)


def request(resource: Mapping[str, Any], *records: LogRecord) -> ExportLogsServiceRequest:
    scopes = [ScopeLogs(log_records=records, schema_url="https://opentelemetry.io/schemas/1.37.0")]
    return ExportLogsServiceRequest(
        resource_logs=[ResourceLogs(resource=Resource(attributes=pairs(resource)), scope_logs=scopes)]
    )


def numbered(first: int, last: int, path: str = "/var/log/a.log", text: str = "line {}") -> list[LogRecord]:
    """Records of one file, as the Collector's filelog receiver sends them."""
    return [record(text.format(n), log__file__path=path, log__file__record_number=n) for n in range(first, last + 1)]
