"""Decodes all log records of a slice at once if they are alike: three times as fast as one by one.

This is possible because Protobuf merges all occurrences of a singular message field into one message, in which each
repeated field lists the values of all occurrences.
"""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from itertools import repeat
from typing import Any, Final, NamedTuple

from google.protobuf import text_format
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClassesForFiles

#: ScopeLogs and its contents, with fields that are singular there declared as repeated, and vice versa.
_FILE: Final = """
name: "columns" syntax: "proto3"
message_type { name: "Scope" field { name: "records" number: 2 type: TYPE_MESSAGE type_name: "Records" } }
message_type { name: "Records"
  field { name: "times" number: 1 type: TYPE_FIXED64 label: LABEL_REPEATED }
  field { name: "severities" number: 2 type: TYPE_INT32 label: LABEL_REPEATED }
  field { name: "body" number: 5 type: TYPE_MESSAGE type_name: "Values" }
  field { name: "attributes" number: 6 type: TYPE_MESSAGE type_name: "Pairs" } }
message_type { name: "Pairs"
  field { name: "keys" number: 1 type: TYPE_STRING label: LABEL_REPEATED }
  field { name: "values" number: 2 type: TYPE_BYTES label: LABEL_REPEATED } }
message_type { name: "Values"
  field { name: "texts" number: 1 type: TYPE_STRING label: LABEL_REPEATED }
  field { name: "integers" number: 3 type: TYPE_INT64 label: LABEL_REPEATED } }
"""


_POOL: Final = DescriptorPool()
_POOL.AddSerializedFile(text_format.Parse(_FILE, FileDescriptorProto()).SerializeToString())
_CLASSES: Final[dict[str, Any]] = GetMessageClassesForFiles(["columns"], _POOL)


class Record(NamedTuple):
    """A log record. ``attributes`` are only the wanted ones. Times are Unix ns, 0 if unknown.

    ``body`` is a string, the JSON of another value, or None for a record without a body.
    """

    attributes: dict[str, Any]
    body: str | None
    time: int
    observed: int
    severity: int


@dataclass(frozen=True, slots=True)
class Columns:
    """Records that are alike, stored as lists. Iteration yields the records.

    ``same``: attributes with one value in all records. ``others``: a list of values per remaining attribute.
    ``severities`` is empty if no record has a severity.
    """

    same: dict[str, Any]
    others: dict[str, Sequence[Any]]
    texts: Sequence[str]
    times: Sequence[int]
    severities: Sequence[int]

    def __iter__(self) -> Iterator[Record]:
        attributes = [self.same.copy() for _ in self.times]
        for key, column in self.others.items():
            for found, value in zip(attributes, column, strict=True):
                found[key] = value
        severities = self.severities or repeat(0)
        return map(Record, attributes, self.texts, self.times, repeat(0), severities)


def read(scope: bytes, count: int, wanted: Collection[str]) -> Columns | None:
    """The ``count`` records of a ScopeLogs message. None if they are not alike. Raises DecodeError.

    Records are alike if each has a time, a string body, and attributes with the same keys in the same order, and if all
    ``wanted`` attributes are strings or integers.
    """
    records = _CLASSES["Scope"].FromString(scope).records
    times, severities, texts = records.times[:], records.severities[:], records.body.texts[:]
    keys, values = records.attributes.keys[:], records.attributes.values
    if not len(times) == len(texts) == count or len(severities) not in (0, count) or len(keys) != len(values):
        return None
    # A key occurs at most once per record. So if the list of keys repeats ``count`` times, each record has all keys.
    each = len(keys) // count
    if keys != keys[:each] * count or len({*keys[:each]}) != each:
        return None
    same, others = dict[str, Any](), dict[str, Sequence[Any]]()
    for at, key in enumerate(keys[:each]):
        if key in wanted:
            column = values[at::each]
            if is_same := column.count(column[0]) == count:
                column = column[:1]
            joined = _CLASSES["Values"].FromString(b"".join(column))
            held = joined.texts[:] or joined.integers[:]
            if len(held) != len(column):
                return None
            if is_same:
                same[key] = held[0]
            else:
                others[key] = held
    return Columns(same, others, texts, times, severities)
