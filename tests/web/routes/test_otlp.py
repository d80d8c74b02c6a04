"""``/v1/logs``: OpenTelemetry log records become lines of jobs, as OTLP over HTTP specifies."""

import gzip
import itertools
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

import httpx
import psutil
import pytest
from google.protobuf import json_format
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest, ExportLogsServiceResponse
from opentelemetry.proto.logs.v1.logs_pb2 import LogRecord

from tests.support.secret_keys import GITHUB, MASKED_PEM, PEM
from tests.support.service import Service
from tests.support.waiting import wait_until
from tests.web.otlp.messages import TIME, numbered, pairs, record, request

_numbers = itertools.count(1)
PROTOBUF = {"Content-Type": "application/x-protobuf"}


class Sender:
    def __init__(self, client: httpx.Client, workflow_id: str) -> None:
        self.client = client
        self.resource = {"service.name": workflow_id, "service.instance.id": "job_1"}
        self.path = f"/workflows/{workflow_id}/jobs/job_1"

    def post(self, *records: LogRecord, **resource: Any) -> httpx.Response:
        named = {name.replace("__", "."): held for name, held in resource.items()}
        return self.send(request({**self.resource, **named}, *records))

    def send(self, message: ExportLogsServiceRequest, headers: Mapping[str, str] = PROTOBUF) -> httpx.Response:
        return self.client.post("/v1/logs", content=message.SerializeToString(), headers=headers)

    def rejected(self, response: httpx.Response) -> tuple[int, str]:
        """The number of rejected records, and the reason."""
        assert response.status_code == 200, response.text
        assert response.headers["Content-Type"] == "application/x-protobuf"
        partial = ExportLogsServiceResponse.FromString(response.content).partial_success
        return partial.rejected_log_records, partial.error_message

    def messages(self) -> list[str]:
        return [line["message"] for line in self.client.get(f"{self.path}/logs?limit=1000").json()["logs"]]


@pytest.fixture
def sender(client: httpx.Client) -> Sender:
    return Sender(client, f"otlp_{next(_numbers)}")


def test_records_become_lines_of_the_job_that_their_attributes_name(sender: Sender) -> None:
    """A record's attributes take precedence over its resource's, and the first in the list over the others."""
    text, longest = "two\r\nlines\n", "a-b" + "c" * 125
    response = sender.post(
        record("one", time=TIME, observed__x=1),
        record(text, log__iostream="stderr"),
        record({"b": [1, True, 2.5, None, b"\x00\xff"]}, severity=17),
        record(None),
        record("\r\r"),
        record("elsewhere", chronoverse__job=longest.replace("-", "/")),
    )
    assert sender.rejected(response) == (0, "")
    # Without a line, the next record would follow a gap.
    returns = record("\r", log__file__path="/var/log/a.log", log__file__record_number=1)
    response = sender.post(returns, *numbered(2, 2), service__instance__id="job_2")
    assert sender.rejected(response) == (0, "")
    lines = sender.client.get(sender.path.replace("job_1", "job_2") + "/logs").json()["logs"]
    assert [line["message"] for line in lines] == ["", "line 2"]
    logs = sender.client.get(f"{sender.path}/logs").json()["logs"]
    assert [(line["message"], line["stream"]) for line in logs] == [
        ("one", "stdout"),
        ("two", "stderr"),
        ("lines", "stderr"),
        ('{"b":[1,true,2.5,null,"AP8="]}', "stderr"),
        ("", "stdout"),
        ("", "stdout"),
    ]
    assert logs[0]["timestamp"] == "2026-03-03T10:00:05.123Z"
    workflow = sender.resource["service.name"]
    job = sender.client.get(f"/workflows/{workflow}/jobs/{longest}").json()
    assert (job["status"], job["lines"], job["attempt"]) == ("RUNNING", 1, 1)
    assert workflow in [each["id"] for each in sender.client.get("/workflows").json()["workflows"]]


@pytest.mark.parametrize("coding", ["identity", "gzip"])
def test_json_is_answered_with_json(sender: Sender, coding: str) -> None:
    """With the same result as protobuf."""
    message = request(sender.resource, *numbered(1, 3), record(["x"]), record("y", chronoverse__exit_code=3))
    message.resource_logs.add().scope_logs.add().log_records.add()
    message.resource_logs[0].scope_logs[0].log_records.append(record("x" * 600_000))
    body = json_format.MessageToJson(message, use_integers_for_enums=True).encode()
    # A time that protobuf cannot represent.
    body = body.replace(b'"timeUnixNano": "%d"' % TIME, b'"timeUnixNano": "-1"', 1)
    headers = {"Content-Type": "application/json; charset=utf-8", "Content-Encoding": coding}
    content = gzip.compress(body) if coding == "gzip" else body
    response = sender.client.post("/v1/logs", content=content, headers=headers)
    assert (response.status_code, response.headers["Content-Type"]) == (200, "application/json")
    partial = response.json()["partialSuccess"]
    assert partial["rejectedLogRecords"] == "2"
    assert "no attribute names the workflow" in partial["errorMessage"]
    assert "a record has more than 524288 bytes (1)" in partial["errorMessage"]
    assert sender.messages() == ["line 1", "line 2", "line 3", '["x"]', "y"]
    first = sender.client.get(f"{sender.path}/logs?limit=1").json()["logs"][0]
    assert first["timestamp"] == "1970-01-01T00:00:00.000Z"
    job = sender.client.get(sender.path).json()
    assert (job["status"], job["exit_code"]) == ("FAILED", 3)


def test_the_largest_json_batch_of_a_collector_is_accepted(sender: Sender) -> None:
    """8,192 records of a file, with the attributes that a collector adds for Kubernetes."""
    records = numbered(1, 8_192, "/var/log/pods/x/0.log", 'level=info msg="handled {}" took=12ms')
    for each in records:
        each.observed_time_unix_nano = TIME
        each.attributes.extend(pairs({"log.iostream": "stdout", "logtag": "F", "log.time": "2026-03-03"}))
    message = request(sender.resource, *records)
    body = json_format.MessageToJson(message, use_integers_for_enums=True, indent=None).encode()
    response = sender.client.post("/v1/logs", content=body, headers={"Content-Type": "application/json"})
    assert (response.status_code, response.json()) == (200, {})
    assert sender.client.get(sender.path).json()["lines"] == 8_192


def test_a_repeated_request_changes_nothing(sender: Sender) -> None:
    """With record numbers and without, even after the end of the job."""
    texts = [f"plain {number}" for number in range(700)]
    plain = request(sender.resource, *map(record, texts))
    results: dict[str, Any] = {
        "cicd__pipeline__run__result": "failure",
        "cicd__pipeline__task__run__result": "cancellation",
    }
    end = request(sender.resource, record(None, **results))
    # A Collector can merge a request and its retries into one.
    repeated = [*numbered(2, 2, text="one\ntwo"), *numbered(3, 4)]
    merged = request(sender.resource, *numbered(1, 1), *3 * repeated, *numbered(5, 600))
    for message in (plain, plain, merged, end, end, plain):
        for _ in range(2):
            assert sender.rejected(sender.send(message)) == (0, "")
    assert sender.client.get(f"{sender.path}/logs?limit=1&order=desc").json()["logs"][0]["message"] == "line 600"
    job = sender.client.get(sender.path).json()
    assert (job["status"], job["lines"], job["exit_code"]) == ("CANCELED", 1_301, None)
    # The first batch, of 600 records, is stored.
    count, why = sender.rejected(sender.post(*numbered(1, 650)))
    assert (count, "has already ended" in why) == (50, True)


def test_a_gap_is_answered_with_503_until_it_is_filled(sender: Sender, service: Service) -> None:
    """With a Status and Retry-After. Other jobs in the request are not delayed."""

    def answers(*names: str) -> list[float]:
        texts = (f'chronoverse_publish_answers_total{{answer="{name}",operation="records"}}' for name in names)
        return [service.metric(text) for text in texts]

    before = answers("WAIT", "OK")
    message = request(sender.resource, *numbered(4, 6), record("other", chronoverse__job="job_2"))
    response = sender.send(message)
    assert (response.status_code, response.headers["Retry-After"]) == (503, "2")
    assert response.headers["Content-Type"] == "application/x-protobuf"
    assert b"earlier records of" in response.content
    assert sender.rejected(sender.post(*reversed(numbered(1, 3)))) == (0, "")
    assert sender.rejected(sender.send(message)) == (0, "")
    assert sender.messages() == [f"line {number}" for number in range(1, 7)]
    other = sender.client.get(sender.path.replace("job_1", "job_2") + "/logs").json()["logs"]
    assert [line["message"] for line in other] == ["other"]
    assert [new - old for old, new in zip(before, answers("WAIT", "OK"), strict=True)] == [1, 4]


@pytest.mark.long
def test_a_permanent_gap_is_reported(sender: Sender) -> None:
    """After five seconds the sender gets 200, and readers get a gap event."""
    sender.post(*numbered(1, 2))
    wait_until(lambda: sender.post(*numbered(5, 6)).status_code == 200, 30, "the hole is named")
    assert sender.messages() == ["line 1", "line 2", "line 5", "line 6"]
    sender.post(record(None, chronoverse__exit_code=0))
    events = sender.client.get(f"{sender.path}/events").text
    assert 'event: gap\ndata: {"from":3,"to":4,"reason":"missing"}' in events


def test_rejected_records_are_counted_and_explained(sender: Sender, service: Service) -> None:
    """The answer is 200, so that they are not sent again; the others are stored."""
    deep: Any = "x"
    for _ in range(40):
        deep = [deep]
    many: dict[str, Any] = {f"a{number}": "" for number in range(1_001)}
    bad = [
        record("n", log__file__record_number="7"),
        record("n", log__file__record_number=2**62, log__file__path="/a"),
        record("j", chronoverse__job=["a"]),
        record("j", chronoverse__job="a" * 10_000),
        record("e", chronoverse__exit_code="0x1"),
        record(None, cicd__pipeline__run__result="ok"),
        record(deep),
        record("\n" * 6_000),
        record("b" * 600_000),
        record(["a"] * 30_000),
        record("a", **many),
    ]
    message = request(sender.resource, record("good"), *bad)
    # Text that is not UTF-8, which some senders let through.
    torn = message.SerializeToString().replace(b"good", b"g\xff\xfed")
    count, why = sender.rejected(sender.client.post("/v1/logs", content=torn, headers=PROTOBUF))
    assert count == 12, why
    assert len(why) < 2_100
    count, why = sender.rejected(sender.post(record("good"), *bad[:3], *bad[:1]))
    assert count == 4
    assert "log.file.record_number must be an integer from 1 to" in why
    assert sender.messages() == ["good"]
    # Of several workflows in a request, those without write access are rejected.
    theirs, ours = f"{sender.resource['service.name']}_theirs", f"{sender.resource['service.name']}_ours"
    headers = {**PROTOBUF, "Authorization": f"Bearer {service.token(ours)}"}
    for names in ((ours, theirs), (theirs, ours)):
        both = [record("x", chronoverse__workflow=name) for name in names]
        response = sender.client.post(
            "/v1/logs", content=request(sender.resource, *both).SerializeToString(), headers=headers
        )
        # Nothing about the resource's own workflow, which has no record.
        assert sender.rejected(response) == (1, f"{theirs}/job_1: the token may not write to this workflow (1)")
    assert sender.client.get(f"/workflows/{theirs}/jobs").json()["jobs"] == []
    assert sender.client.get(f"/workflows/{ours}/jobs/job_1").json()["lines"] == 2


def test_a_request_ends_when_its_client_leaves(sender: Sender, service: Service) -> None:
    """Before anything is appended: it would take a second, and nobody waits for the answer."""
    body = gzip.compress(request(sender.resource, *[record([None] * 900)] * 2_000).SerializeToString())
    head = f"POST /v1/logs HTTP/1.1\r\nHost: h\r\nAuthorization: Bearer {service.token()}\r\nContent-Encoding: gzip\r\n"
    head += f"Content-Type: application/x-protobuf\r\nContent-Length: {len(body)}\r\n\r\n"
    worker = psutil.Process(service.worker_pids()[0])
    with service.connect(5) as sock:
        ours = sock.getsockname()

        def is_open() -> bool:
            return any(each.raddr == ours for each in worker.net_connections())

        sock.sendall(head.encode() + body)
        wait_until(is_open, 20, "the connection is accepted")
    wait_until(lambda: not is_open(), 60, "the worker has closed the connection")
    assert sender.client.get(sender.path).status_code == 404


def test_records_of_a_runners_job_are_rejected(sender: Sender) -> None:
    """The runner numbers the lines."""
    opened = sender.client.post(f"{sender.path}/attempts", json={"token": "a" * 32})
    assert opened.status_code == 200
    count, why = sender.rejected(sender.post(*numbered(1, 3)))
    assert (count, "another live runner holds this job" in why) == (3, True)


@pytest.mark.parametrize("body", ["", None])
def test_an_end_without_text_adds_no_line(sender: Sender, body: str | None) -> None:
    """Unless it has a number, which would be missing otherwise."""
    number: dict[str, Any] = {"log__file__path": "/var/log/a.log", "log__file__record_number": 3}
    end = record(body, chronoverse__exit_code=0)
    assert sender.rejected(sender.post(*numbered(1, 2), end)) == (0, "")
    assert sender.messages() == ["line 1", "line 2"]
    numbered_end = record(body, chronoverse__exit_code=0, **number)
    assert sender.rejected(sender.post(*numbered(1, 2), numbered_end, service__instance__id="job_2")) == (0, "")
    assert sender.client.get(sender.path.replace("job_1", "job_2")).json()["lines"] == 3


@pytest.mark.parametrize(
    ("content", "headers", "status"),
    [
        (b"\x0a\x7f", PROTOBUF, 400),
        (b"\x0a\x04\x12\x02\x12\x05", PROTOBUF, 400),
        (b"\x0b", PROTOBUF, 400),
        (b"\x0a\x02\x12\x00" * 3 + b"\xff" * 11, PROTOBUF, 400),
        (b'{"resourceLogs":7}', {"Content-Type": "application/json"}, 400),
        (b'{"resourceLogs":[{"scopeLogs":["x"]}]}', {"Content-Type": "application/json"}, 400),
        (b"{}", {"Content-Type": "text/plain"}, 415),
        (b"x", {**PROTOBUF, "Content-Encoding": "gzip"}, 400),
        (gzip.compress(bytes(9_000_000)), {**PROTOBUF, "Content-Encoding": "gzip"}, 413),
        (b"\x0a\x06\x12\x04\x12\x00\x12\x00" * 12_501, PROTOBUF, 413),
        (b"\x0a\x00" * 50_001, PROTOBUF, 413),
        (b"", {**PROTOBUF, "Authorization": "Bearer x"}, 401),
    ],
)
def test_an_invalid_request_is_answered_with_a_status(
    client: httpx.Client, content: bytes, headers: dict[str, str], status: int
) -> None:
    """In the encoding of the request."""
    response = client.post("/v1/logs", content=content, headers=headers)
    assert response.status_code == status, response.text
    if headers["Content-Type"] == "application/json":
        assert response.json()["message"]
    else:
        assert response.headers["Content-Type"] == "application/x-protobuf"
        assert response.content[0] == 0x12


def test_a_token_needs_the_scope(sender: Sender, service: Service) -> None:
    """Read access is not enough."""
    headers = {**PROTOBUF, "Authorization": f"Bearer {service.token(scopes=['logs:read'])}"}
    response = sender.client.post("/v1/logs", content=b"", headers=headers)
    assert (response.status_code, b"logs:write" in response.content) == (403, True)


@pytest.mark.long
def test_without_the_extra_the_answer_names_it() -> None:
    """With 404. Without the extra, this is all of the route: the packages are not loaded."""
    program = """
import sys
sys.modules["opentelemetry"] = None
from flask import Flask
from chronoverse.web.app import problems
from chronoverse.web.routes import otlp
app = Flask("test")
app.register_blueprint(otlp.blueprint(None, otlp.is_installed()))
problems.register(app)
answer = app.test_client().post("/v1/logs", data=b"")
print(answer.status_code, answer.json["title"], "google.protobuf" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    title = "Not Found: this service lacks the extra otlp (docs/installing.md)"
    assert done.stdout == f"404 {title} False\n"


def test_new_jobs_are_rate_limited_per_subject(service: Service, in_process: Callable[..., Any]) -> None:
    """With Retry-After. Existing jobs still get their lines, and other subjects still start jobs."""
    client = in_process()
    throttle = client._transport.app.extensions["chronoverse"].new_job_throttle
    # 20 jobs at once, then one per second.
    throttle.rate, throttle.burst_seconds = 1, 20
    sender = Sender(client, "few_new_jobs")
    hostile = {**PROTOBUF, "Authorization": f"Bearer {service.token(subject='hostile')}"}

    def post(job: str, count: int, *more: LogRecord) -> httpx.Response:
        records = [record("x", chronoverse__job=f"{job}_{n}") for n in range(count)]
        return sender.send(request(sender.resource, *records, *more), hostile)

    sender.post(record("first"), record("first", chronoverse__job="known"))
    began = time.monotonic()
    response = post("new", 200, record("last"), record("last", chronoverse__job="known"))
    assert (response.status_code, response.headers["Retry-After"]) == (429, "10")
    assert b"this token starts too many jobs" in response.content
    assert sender.messages() == ["first", "last"]
    assert client.get(sender.path.replace("job_1", "known")).json()["lines"] == 2
    assert sender.rejected(sender.post(record("x"), chronoverse__job="of_another_subject")) == (0, "")
    # More than can start while a busy machine handles a request.
    assert post("more", 200).status_code == 429
    (listed,) = [each for each in client.get("/workflows").json()["workflows"] if each["id"] == "few_new_jobs"]
    # Three belong to the other subject.
    assert 23 <= listed["jobs"] <= 23 + time.monotonic() - began + 1
    wait_until(lambda: post("later", 1).status_code == 200, 30, "one more may begin")


@pytest.mark.parametrize("are_alike", [True, False])
def test_secrets_known_by_their_form_are_masked(sender: Sender, are_alike: bool) -> None:
    """Within records of several lines, in structured values, and across records."""
    texts = [f"with {GITHUB} in it", *PEM, "fine"]
    others = [] if are_alike else [record({"token": GITHUB}), record("\n".join(["key:", *PEM])), record(None)]
    assert sender.rejected(sender.post(*[record(each) for each in texts], *others)) == (0, "")
    expected = ["with [masked] in it", *MASKED_PEM, "fine"]
    assert sender.messages() == expected + ([] if are_alike else ['{"token":"[masked]"}', "key:", *MASKED_PEM, ""])
