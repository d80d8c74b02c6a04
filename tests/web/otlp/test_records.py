"""Batches made from a request's records: in slices so that other greenlets run, and by column if records are alike."""

import contextlib
import gc
import random
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from hashlib import sha1, sha256
from itertools import count, islice
from typing import Any

import pytest
from google.protobuf import json_format
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import KeyValue
from opentelemetry.proto.logs.v1.logs_pb2 import LogRecord, ResourceLogs, ScopeLogs
from werkzeug.exceptions import RequestEntityTooLarge

from chronoverse.joblog.model import JobRef, Status, iso_timestamp
from chronoverse.joblog.secret_forms import SecretForms
from chronoverse.web.otlp.columns import Columns, Record
from chronoverse.web.otlp.decoding import JSON, PROTOBUF, _ProtobufDecoder, decode
from chronoverse.web.otlp.records import BATCH_LINES, MAX_LINES, MAX_RECORD_NUMBER, Lines, RecordSorter
from tests.support.parameters import long_after
from tests.support.secret_keys import PEM
from tests.web.otlp.messages import TIME, record, request

PATH, NUMBER = "log.file.path", "log.file.record_number"
RESOURCE = {"workflow": "w", "job": "j"}


def test_many_records_are_sorted_in_slices() -> None:
    """Many records, with a different time each, once blocked the worker for 0.3 s."""
    count = 20_000
    sorter = RecordSorter(["workflow"], ["job"], 65_536)
    names = {PATH: "/a.log", **RESOURCE}
    sorter.add({}, [Record({**names, NUMBER: n}, "x", n * 10**6, 0, 9) for n in range(count, 0, -1)])
    (records,) = sorter.jobs.values()
    records.end = Status.FAILED, 3
    # Otherwise the objects of all earlier tests could be garbage-collected here, which once took 0.14 s.
    gc.collect()
    gc.freeze()
    spans, began = list[float](), time.process_time()

    def pause() -> None:
        nonlocal began
        now = time.process_time()
        spans.append(now - began)
        began = now

    batches = []
    for found in records.batches("digest", pause):
        pause()
        batches.append(found)
    assert [run.number for _, batch in batches for run in batch.runs] == list(range(1, count + 1))
    assert sum(number for number, _ in batches) == records.count() == count
    assert [batch.end for _, batch in batches] == [*[None] * (len(batches) - 1), (Status.FAILED, 3)]
    assert max(spans) < sum(spans) / 3


def test_records_of_two_files_and_streams_are_not_merged() -> None:
    """Even with consecutive numbers. A private key on one stream does not mask lines of the other."""
    sorter = RecordSorter(["workflow"], ["job"], 65_536, SecretForms())
    begin, key = PEM[:2]
    found = [("/a", begin, 17), ("/b", key, 17), ("/b", key, 17), ("/a", key, 9)]
    records = [
        Record({PATH: path, NUMBER: number}, text, TIME, 0, severity)
        for number, (path, text, severity) in enumerate(found, 2)
    ]
    sorter.add(RESOURCE, records)
    (held,) = sorter.jobs.values()
    assert [(each.path, each.number, each.records) for each in held.numbered] == [
        ("/a", 2, 1),
        ("/b", 3, 2),
        ("/a", 5, 1),
    ]
    ((_, batch),) = held.batches("digest", lambda: None)
    assert [message for run in batch.runs for message in run.messages][1:] == [key.encode()] * 3


@pytest.mark.parametrize("seed", range(8))
def test_each_record_is_of_the_file_that_its_batch_names(seed: int) -> None:
    """Files are rotated, and mixed with each other. Disordered records are sorted, up to the next rotation.

    From each batch, the store learns at most one record 1 of a path, and takes what follows as that file's.
    """
    rng, sent, expected, time = random.Random(seed), list[Record](), defaultdict[str, list[tuple[str, int]]](list), TIME
    for path in rng.choices("ab", k=rng.randint(1, 6)):
        records, lines, step = [], rng.choice([1, 1, 2]), rng.choice([0, 1_000])
        for number in range(1, rng.choice([1, 2, 40, 700]) + 1):
            time += step + (number == 1)
            records.append(Record({PATH: path, NUMBER: number}, "\n".join(["x"] * lines), time, 0, 9))
        first = sha256(f"{records[0].time} {records[0].body}".encode()).hexdigest()[:16]
        # A record 1 that is not later than the one before it begins no new file.
        kept = int(path in expected or rng.random() < 0.5)
        expected[path] += [(first, number) for number in range(1, len(records) + 1) for _ in range(lines)]
        later = records[kept:]
        rng.shuffle(later)
        sent += rng.choice([records, records[:kept] + later])
    sorter = RecordSorter(["workflow"], ["job"], 65_536)
    sorter.add(RESOURCE, sent)
    found, known = defaultdict[str, list[tuple[str, int]]](list), dict[str, str]()
    names = {sha1(path.encode(), usedforsecurity=False).hexdigest(): path for path in "ab"}
    for count_of, batch in sorter.jobs[JobRef("w", "j")].batches("digest", lambda: None):
        known |= {file: first for file, first in batch.sources if first}
        assert 0 < count_of <= sum(len(run.messages) for run in batch.runs) <= BATCH_LINES
        for run in batch.runs:
            file = batch.sources[run.source - 1][0]
            found[names[file]] += [(known[file], run.number + run.step * at) for at in range(len(run.messages))]
    assert found == expected


def test_lines_are_limited_like_records() -> None:
    """Each record is within its limit, but together they exceed :data:`MAX_LINES`."""
    sorter = RecordSorter(["workflow"], ["job"], 65_536)
    sorter.add(RESOURCE, [Record({}, "x\n" * 5_000, TIME, 0, 9)] * 10)
    assert sorter.refused == {f"the request has more than {MAX_LINES} lines": 1}


def test_a_long_record_is_split_with_pauses() -> None:
    """A secret is masked as in a short one, even where the line is cut."""
    pauses, forms = list[None](), SecretForms([("acme", "acme_[a-z]{32}")])
    sorter = RecordSorter(["workflow"], ["job"], 65_536, forms, lambda: pauses.append(None))
    text = f"{'x' * 65_514} %s {'x' * 430_000}"
    sorter.add(RESOURCE, [Record({}, text % ("acme_" + "y" * 32), TIME, 0, 9)])
    assert len(pauses) > 20
    ((_, batch),) = sorter.jobs[JobRef("w", "j")].batches("digest", lambda: None)
    assert b"".join(message for run in batch.runs for message in run.messages).decode() == text % ("[masked]" * 2)


def made_of(slices: Sequence[Columns], *, together: bool) -> tuple[Any, ...]:
    """The batches of each job, and the rejected records by reason."""
    sorter = RecordSorter(["workflow"], ["job"], 40)
    for each in slices:
        sorter.add(RESOURCE, each if together else [*each])
    return {job: [*found.batches("digest", lambda: None)] for job, found in sorter.jobs.items()}, sorter.refused


def alike(
    count: int, first: int | None, *, time: int = TIME, step: int = 20_000, attributes: Mapping[str, Any] = RESOURCE
) -> Columns:
    """Records of one file, numbered from ``first``; without numbers if it is None."""
    numbers: dict[str, Sequence[Any]] = {} if first is None else {NUMBER: [*range(first, first + count)]}
    texts, times = [f"line {n}" for n in range(count)], [time + n * step for n in range(count)]
    return Columns({**attributes, PATH: "/a.log"}, numbers, texts, times, [9] * count)


def test_alike_records_make_the_same_batches_as_single_ones() -> None:
    """Whatever differs between them: nodes of two versions must cut a repeated request into the same batches."""
    rng = random.Random(4)
    for _ in range(40):
        number, slices, steps = rng.choice([1, 2, 50]), [], [rng.choice([0, 20_000, 10**6]), 0]
        for _ in range(rng.randint(1, 25)):
            count = rng.randint(2, 64)
            step = rng.choice(steps)
            each = alike(count, rng.choice([number, number, None]), time=TIME + number * step, step=step)
            number += count
            if rng.random() < 0.3:
                each = changed(each, rng)
            slices.append(each)
        assert made_of(slices, together=True) == made_of(slices, together=False)


def changed(records: Columns, rng: random.Random) -> Columns:
    """The records, with one or all of them made unusual."""
    same, others, texts, severities = records.same, records.others, [*records.texts], records.severities
    count = len(texts)
    at = rng.randrange(count)
    match rng.randrange(6):
        case 0:
            same[PATH] = rng.choice([None, 7, "/b.log"])
        case 1:
            texts[at] = rng.choice(["", "two\r\nlines", "a\rb", "\N{EURO SIGN}" * 30])
        case 2:
            hole = [*range(7, 7 + at), *range(9 + at, 9 + count)]
            last = [*range(MAX_RECORD_NUMBER + 2 - count, MAX_RECORD_NUMBER + 2)]
            others[NUMBER] = rng.choice([hole, last, [*range(1, count + 1)], ["7"] * count])
        case 3:
            severities = rng.choice([[], [17] * count, [9] * at + [17] * (count - at)])
        case 4:
            same |= rng.choice([{"job": "other"}, {"job": ["x"]}, {"chronoverse.exit_code": 3}])
        case 5:
            others["log.iostream"] = ["stderr"] * at + ["stdout"] * (count - at)
    return Columns(same, others, texts, records.times, severities)


def meaning(mimetype: str, *bodies: bytes) -> tuple[dict[Any, list[Any]], Counter[str]]:
    """Each job's records with their lines and its end, and the rejected records by reason."""
    jobs, refused = defaultdict[Any, list[Any]](list), Counter[str]()
    for body in bodies:
        sorter = RecordSorter(["service.name"], ["service.instance.id"], 65_536)
        for resource, records in decode(bytearray(body), mimetype, sorter.wanted, lambda: None):
            sorter.add(resource, records)
        refused += sorter.refused
        for job, held in sorter.jobs.items():
            for kind, group in enumerate((held.numbered, held.plain)):
                for each in group:
                    alone: list[Lines] = [[(False, [message])] for message in each.messages or []]
                    for index, lines in enumerate(alone or [each.lines]):
                        number, first = (each.number + index, each.first * (not index)) if each.number else (0, "")
                        jobs[job, kind].append(
                            (each.path, number, first, each.time // 10**6, each.timestamp, each.stream, lines)
                        )
            if held.end:
                jobs[job, "end"] = [held.end]
    return dict(jobs), refused


def random_request(rng: random.Random) -> ExportLogsServiceRequest:
    """Runs of mostly alike records, whose resources differ or have equal names."""
    found, numbers = ExportLogsServiceRequest(), count(1)
    attributes: dict[str, Any] = {}
    for _ in range(rng.randint(1, 12)):
        if rng.random() < 0.6:
            file = {PATH: rng.choice(["/a", "/b"]), NUMBER: 0}
            attributes = rng.choice([{}, file, {**file, "other": 1}, {"log.iostream": "stderr"}, {"service.name": "x"}])
        names: list[dict[str, Any]] = [{}, {"service.name": "a"}, {"service.name": "b", "service.instance.id": 7}]
        severity, step, run = rng.choice([0, 9, 17]), rng.choice([0, 1, 10**6]), list[LogRecord]()
        for number in islice(numbers, rng.choice([1, 2, 30, 100])):
            own = {"service.instance.id": "j", **attributes}
            if NUMBER in own:
                own[NUMBER] = number
            each = record(f"line {number}", time=TIME + number * step, severity=severity, **own)
            if rng.random() < 0.03:
                odd: Any = rng.choice(["two\r\nlines", "", None, [1, {"a": None}], "BAD!"])
                more: dict[str, Any] = rng.choice(
                    [{}, {NUMBER: 1}, {"chronoverse.exit_code": 3}, {"service.name": [1]}]
                )
                each = record(odd, time=rng.choice([0, TIME]), severity=rng.choice([0, 9, 17]), **own | more)
                each.observed_time_unix_nano = TIME
            run.append(each)
        found.MergeFrom(request(rng.choice(names), *run))
    return found


def plain(attributes: Iterable[KeyValue]) -> dict[str, Any]:
    """Strings and integers unchanged, other values as None."""
    named = {each.key: each.value for each in attributes}
    return {
        key: getattr(value, kind) if (kind := str(value.WhichOneof("value"))) in ("string_value", "int_value") else None
        for key, value in named.items()
    }


def reference(whole: ExportLogsServiceRequest) -> tuple[dict[Any, list[Any]], int]:
    """The expected result of :func:`meaning`, computed record by record, and the number of rejected records."""
    jobs, refused = defaultdict[Any, list[Any]](list), 0
    for of in whole.resource_logs:
        for each in of.scope_logs[0].log_records:
            said = {**plain(of.resource.attributes), **plain(each.attributes)}
            if not (said["service.instance.id"] and said.get("service.name")):
                refused += 1
                continue
            job = JobRef(str(said["service.name"]), str(said["service.instance.id"]))
            has_number = PATH in said and NUMBER in said
            path, number = (said[PATH], said[NUMBER]) if has_number else ("", 0)
            kind = each.body.WhichOneof("value")
            body = {"string_value": each.body.string_value, "array_value": '[1,{"a":null}]'}.get(str(kind))
            kept = [*map(str.encode, (body or "").split("\r\n"))]
            first = sha256(f"{each.time_unix_nano} {body}".encode()).hexdigest()[:16] if number == 1 else ""
            time = each.time_unix_nano or each.observed_time_unix_nano
            stream = said.get("log.iostream") or ("stderr" if each.severity_number >= 17 else "stdout")
            if "chronoverse.exit_code" in said:
                jobs[job, "end"] = [(Status.FAILED, 3)]
                kept = kept if body or number else []
            lines = [(False, [text]) for text in kept]
            jobs[job, int(not number)].append(
                (path, number, first, time // 10**6, iso_timestamp(time // 10**6 / 1000), stream, lines)
            )
    return dict(jobs), refused


@pytest.mark.parametrize("seed", long_after(8, [*range(60)]))
def test_a_request_gives_the_same_result_as_its_single_records(seed: int) -> None:
    """Batch decoding and cached attributes change nothing, and a simple reference model agrees."""
    whole = random_request(random.Random(seed))
    singles = [
        ExportLogsServiceRequest(
            resource_logs=[ResourceLogs(resource=of.resource, scope_logs=[ScopeLogs(log_records=[r])])]
        )
        for of in whole.resource_logs
        for scope in of.scope_logs
        for r in scope.log_records
    ]
    bad = [each.SerializeToString().replace(b"BAD!", b"B\xff\xfe!") for each in (whole, *singles)]
    assert meaning(PROTOBUF, bad[0]) == meaning(PROTOBUF, *bad[1:])
    document = json_format.MessageToJson(whole, use_integers_for_enums=True).encode()
    found, refused = meaning(JSON, document)
    assert (found, refused) == meaning(PROTOBUF, *(each.SerializeToString() for each in singles))
    assert (found, refused.total()) == reference(whole)


@pytest.mark.parametrize("first", [2, None])
def test_alike_records_are_split_into_batches_of_fixed_size(first: int | None) -> None:
    """A repeated request is recognized by its batches, so later versions must keep these sizes."""
    slices = [alike(64, first and first + n, step=0) for n in range(0, 64 * 20, 64)]
    (found,) = made_of(slices, together=True)[0].values()
    assert [[len(run.messages) for run in batch.runs] for _, batch in found] == [[600], [600], [80]]


@pytest.mark.parametrize("first", [2, None])
def test_alike_records_stop_at_the_limit_of_a_request(first: int | None) -> None:
    slices = [alike(64, first and first + n) for n in range(0, MAX_LINES + 100, 64)]
    found, refused = made_of(slices, together=True)
    assert (found, refused) == made_of(slices, together=False)
    assert refused.total() == 64 * len(slices) - MAX_LINES


def varint(number: int) -> bytes:
    return bytes([number & 0x7F | 0x80, *varint(number >> 7)] if number > 0x7F else [number])


#: Fields of a future protocol version, one per wire type: varint, 64-bit, length-delimited, 32-bit.
#: Their field numbers make tags of one, two and three bytes.
UNKNOWN = [
    bytes([*tag, *content])
    for number in (9, 50, 5_000)
    for kind, content in ((0, b"\xac\x02"), (1, b"\xff" * 8), (2, b"\x82\x01" + b"x" * 130), (5, b"\xff" * 4))
    for tag in [varint(number << 3 | kind)]
]


@pytest.mark.parametrize("unknown", UNKNOWN, ids=bytes.hex)
def test_unknown_fields_are_skipped(unknown: bytes) -> None:
    """In every message that contains records, before and after the known fields."""
    known = request(RESOURCE, record("one"), record("two"))
    scope = unknown + known.resource_logs[0].scope_logs[0].SerializeToString() + unknown
    resource = known.resource_logs[0].resource.SerializeToString()
    logs = unknown + b"\x0a" + varint(len(resource)) + resource
    logs += unknown + b"\x12" + varint(len(scope)) + scope + unknown
    body = unknown + b"\x0a" + varint(len(logs)) + logs + unknown

    def texts(body: bytes) -> list[Any]:
        found = decode(bytearray(body), PROTOBUF, {"workflow", "job"}, lambda: None)
        return [
            (attributes, each.body) for attributes, records in found for each in records if isinstance(each, Record)
        ]

    assert texts(body) == texts(known.SerializeToString()) != []


@pytest.mark.parametrize("text", [b"fine", b"B\xff\xfe!"])
def test_each_field_is_counted_once(text: bytes) -> None:
    """Also if a record is invalid, and its slice read again. These are a resource, scope, URL and two records."""
    body = bytearray(request(RESOURCE, record("fine"), record("fine")).SerializeToString().replace(b"fine", text, 1))
    for left in (6, 5):
        decoder = _ProtobufDecoder(body, {"job"}, lambda: None, left)
        with pytest.raises(RequestEntityTooLarge) if left < 6 else contextlib.nullcontext():
            assert sum(len([*records]) for _, records in decoder.decode()) == 2
