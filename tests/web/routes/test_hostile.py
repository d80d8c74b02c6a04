"""Numbers, paths and requests that no honest client sends: refused for what they are, and raw in no log."""

import re
from collections.abc import Iterator
from typing import Final
from urllib.parse import quote

import httpx
import orjson
import pytest

from tests.support.nginx import Nginx
from tests.support.service import Service
from tests.support.waiting import wait_until
from tests.web.routes.foreign import Foreign, ask_all
from tests.web.routes.wire import PATIENCE_SECONDS, Door, exchange, receive, request_bytes

JOB: Final = b"/workflows/hostile/jobs/job_1"
PROBLEM: Final = "application/problem+json"
#: In what is sent, behind whatever might begin a line of its own in a log.
CANARY: Final = "forged-by-a-client"

#: What is not 1 to 15 ASCII digits, though one parser or another takes it for a number.
NO_NUMBERS: Final = {
    "negative": "-1",
    "signed": "+5",
    "padded": " 7 ",
    "underscore": "1_000",
    "full width": "\uff11\uff12",
    "superscript": "\u00b2",
    "arabic": "\u0663",
    "newline": "12\n",
    "newline and more": f"12\n{CANARY}",
    "return": "12\r",
    "escape": f"1\x1b[31m{CANARY}",
    "NUL": "1\x00",
    "hexadecimal": "0x10",
    "exponent": "1e3",
    "fraction": "1.0",
    "5000 digits": "9" * 5000,
    "16 digits": "1" + "0" * 15,
    "2^53+1": str(2**53 + 1),
    "2^63": str(2**63),
    "2^64-1": str(2**64 - 1),
    "2^64": str(2**64),
    "an id": "5-0",
    "half an id": "5-1",
    "XREAD's last": "$",
    "XREADGROUP's new": ">",
    "the end": "+",
    "the beginning": "-",
    "NaN": "NaN",
    "infinity": "inf",
    "empty brackets": "[]",
    "null": "null",
    "two": "5,7",
}
#: Where they may be sent. The last is the header.
PLACES: Final = ("/events?offset=", "/events?tail=", "/events?wait=", "/logs?offset=", "/logs?limit=", "")

#: In a header these are two lines to nginx, which takes a bare line feed or a doubled return for a line's end, as RFC
#: 9112 lets it, and sends its own on: no two servers read the same bytes differently.
LINES_TO_NGINX: Final = frozenset({"12\n", f"12\n{CANARY}", "12\r"})

#: Identifiers, as they stand in the request line, that are none.
NO_IDENTIFIERS: Final = {
    "line break": b"x%0d%0a" + CANARY.encode(),
    "newline": b"x%0a" + CANARY.encode(),
    "newline at the end": b"job_1%0a",
    "escape": b"x%1b%5b31m" + CANARY.encode(),
    "hash tag": b"%7Bx%7D",
    "open brace": b"x%7B",
    "raw hash tag": b"{x}",
    "dot dot": b"..",
    "encoded dot dot": b"%2e%2e",
    "dot": b".",
    "encoded slash": b"a%2fb",
    "encoded backslash": b"a%5cb",
    "empty": b"",
    "star": b"*",
    "encoded star": b"%2a",
    "question mark": b"%3f",
    "class": b"[a]",
    "colon": b"job_1:log",
    "encoded colon": b"job_1%3alog",
    "NUL": b"job_1%00",
    "no UTF-8": b"%ff%fe",
    "raw bytes": b"\xff\xfe",
    "5000 characters": b"a" * 5000,
    "129 characters": b"a" * 129,
    "composed": quote("caf\u00e9").encode(),
    "decomposed": quote("cafe\u0301").encode(),
    "full width": quote("\uff4a\uff4f\uff42").encode(),
    "space": b"job%201",
    "plus": b"job+1",
    "percent": b"job%25",
    "bad percent": b"job%zz",
    "matrix parameter": b"job_1;x=1",
    "leading dot": b".job",
    "leading dash": b"-job",
    "twice encoded": b"%252e%252e",
    "quotes": b"%22%27%3c%3e",
    "dollar": b"$",
}


@pytest.fixture(scope="module")
def token(service: Service) -> str:
    """Of somebody who may do anything."""
    return service.token()


@pytest.fixture(scope="module", autouse=True)
def a_job(service: Service) -> None:
    """A finished job of ten lines."""
    Foreign(str(service.redis_url), "hostile", "job_1").lines(["x"] * 10).end()


@pytest.fixture(autouse=True)
def nothing_raw_in_the_logs(service: Service) -> Iterator[None]:
    """Whatever a test sends, the service prints no control character and no line that a client made."""
    before = service.log_size()
    yield
    printed = service.logs(before).encode("latin-1").decode("utf-8")
    assert not [char for char in printed if not (char.isprintable() or char in "\n\t")], ascii(printed)
    assert not re.search(rf"^\W*{CANARY}", printed, re.MULTILINE)
    assert "Traceback" not in printed


@pytest.mark.parametrize(
    ("place", "number"),
    [
        pytest.param(place, number, id=f"{place or 'Last-Event-ID: '}{name}")
        for place in PLACES
        for name, number in NO_NUMBERS.items()
        # White space around a header's value is not part of it.
        if place or name != "padded"
    ],
)
def test_what_is_no_number_is_refused(door: Door, token: str, place: str, number: str) -> None:
    """400 in the query and in the header; what would break the request itself is refused by the server below us."""
    if place:
        request = request_bytes(JOB + place.encode() + quote(number).encode(), token)
    else:
        request = request_bytes(JOB + b"/events", token, b"Last-Event-ID: " + number.encode())
    status, headers, body = exchange(door, request)

    if not place and number in LINES_TO_NGINX and isinstance(door, Nginx):
        # The service is sent a plain 12, which is past the end.
        assert status == 204
        return
    allowed = {400, 414, 431} if len(number) > 1000 else {400}
    assert status in allowed, body
    assert headers["content-type"] == PROBLEM


@pytest.mark.parametrize("limit", ["0", "1001", "1000000000", "999999999999999"])
@pytest.mark.parametrize("path", ["/workflows/hostile/jobs", "/workflows/hostile/jobs/job_1/logs"])
def test_a_limit_out_of_bounds_is_refused(client: httpx.Client, path: str, limit: str) -> None:
    """One page has 1 to 1000 entries."""
    assert client.get(f"{path}?limit={limit}").status_code == 400
    assert client.get(f"{path}?limit=1").status_code == 200
    assert client.get(f"{path}?limit=1000").status_code == 200


@pytest.mark.parametrize(
    "query",
    [
        "/events?offset=1&offset=2",
        "/events?offset=1&tail=2",
        "/events?stream=stdout&stream=stderr",
        "/events?stream=STDOUT",
        "/events?stream=",
        "/events?offset=",
        "/events?offset=Latest",
        "/events?wait=301",
        "/events?follow=true",
        "/logs?limit=1&limit=2",
        "/logs?order=up",
        "/logs?order=",
        "/logs?stream=both",
        "/logs?page=2",
        "/logs?offset=latest",
        "/logs?cursor=",
    ],
)
def test_a_parameter_that_nobody_documented_is_refused(client: httpx.Client, query: str) -> None:
    """Not ignored, and never guessed at; the document names it."""
    response = client.get(f"/workflows/hostile/jobs/job_1{query}")

    assert response.status_code == 400
    assert {error["parameter"] for error in response.json()["errors"]} <= set(re.findall(r"(\w+)=", query))


@pytest.mark.parametrize("last_event_id", [b"", b" ", b"0", b"000"])
def test_no_last_event_id_and_zero_are_the_beginning(door: Door, token: str, last_event_id: bytes) -> None:
    """A client that has seen nothing sends an empty one."""
    request = request_bytes(JOB + b"/events", token, b"Last-Event-ID: " + last_event_id)
    status, headers, body = exchange(door, request)

    assert (status, headers["last-event-id"]) == (200, "0")
    assert body.count(b"event: log\n") == 10


def test_two_last_event_ids_are_none(door: Door, token: str) -> None:
    """They arrive here as ``5,7``."""
    request = request_bytes(JOB + b"/events", token, b"Last-Event-ID: 5", b"Last-Event-ID: 7")

    assert exchange(door, request)[0] == 400


def test_a_header_with_underscores_is_another_header(door: Door, token: str) -> None:
    """A proxy that filters ``Last-Event-ID`` knows nothing of ``Last_Event_ID``."""
    request = request_bytes(JOB + b"/events", token, b"Last_Event_ID: 7", b"Last-Event_ID: 7")
    status, headers, _ = exchange(door, request)

    assert (status, headers["last-event-id"]) == (200, "0")


@pytest.mark.parametrize("name", NO_IDENTIFIERS.keys())
@pytest.mark.parametrize(
    "path", [b"/workflows/%b/jobs/job_1/events", b"/workflows/hostile/jobs/%b/logs", b"/workflows/%b/jobs"]
)
def test_what_is_no_identifier_is_not_there(door: Door, token: str, path: bytes, name: str) -> None:
    """404, or 400 where it is no request either."""
    target = path.replace(b"%b", NO_IDENTIFIERS[name])
    status, _, body = exchange(door, request_bytes(target, token))

    assert status in ((400, 404, 414) if len(target) > 4000 else (400, 404)), body
    assert CANARY.encode() not in body


@pytest.mark.parametrize(
    "target",
    [
        b"/workflows/hostile/jobs/job_1/",
        b"/workflows/hostile/jobs/job_1/events/",
        b"/workflows/hostile/jobs/",
        b"//workflows/hostile/jobs/job_1",
        b"/workflows//hostile/jobs/job_1",
        b"/workflows/hostile/jobs//job_1",
        b"/x/../workflows/hostile/jobs/job_1",
        b"/workflows/hostile/jobs/job_1/../job_1",
        b"/workflows/hostile/jobs/job_1%2fevents",
        b"/Workflows/hostile/jobs/job_1",
        b"/workflows/Hostile/jobs/job_1",
        b"/workflows/hostile/jobs/JOB_1",
        b"/%77orkflows%00/hostile/jobs/job_1",
        b"/static/../gunicorn.conf.py",
        b"*",
        b"",
        b"http://elsewhere/workflows/hostile/jobs/nothing",
        b"http://elsewhere//workflows/hostile/jobs/job_1",
        b"http://elsewhere/%2fworkflows/hostile/jobs/job_1",
    ],
)
def test_no_other_path_leads_to_a_job(door: Door, token: str, target: bytes) -> None:
    """Nothing is normalised, merged, redirected or forgiven."""
    status, headers, _ = exchange(door, request_bytes(target, token))

    assert status in (400, 404)
    assert "location" not in headers


@pytest.mark.parametrize("method", ["PUT"])
@pytest.mark.parametrize("name", ["hash tag", "colon", "NUL", "newline", "5000 characters", "star"])
def test_nothing_is_registered_under_no_identifier(
    door: Door, token: str, client: httpx.Client, name: str, method: str
) -> None:
    """No key of another job can be reached."""
    before = client.get("/workflows/hostile/jobs").json()
    target = b"/workflows/hostile/jobs/" + NO_IDENTIFIERS[name]
    status, _, _ = exchange(door, request_bytes(target, token, b"Content-Length: 0", method=method.encode()))

    assert status in (400, 404, 414)
    assert client.get("/workflows/hostile/jobs").json() == before


#: Drawn for each stream.
RETRY: Final = re.compile(rb"retry: [0-9]+")

BROKEN: Final = {
    "length and chunked": (400, [b"Content-Length: 4", b"Transfer-Encoding: chunked"]),
    "no such coding": (501, [b"Transfer-Encoding: xchunked"]),
    "two lengths": (400, [b"Content-Length: 4", b"Content-Length: 5"]),
    "a length that is no number": (400, [b"Content-Length: +4"]),
    "a space before the colon": (400, [b"X-Thing : 1"]),
    "a folded header": (400, [b"X-Thing: 1", b" " + CANARY.encode()]),
    "a padded coding": (501, [b"Transfer-Encoding: \x0bchunked\x85"]),
    "NUL": (400, [b"X-Thing: a\x00b"]),
    "escape in a name": (400, [b"X-\x1b[31m: " + CANARY.encode()]),
    "a bare line feed": (400, [b"X-Thing: 1\n" + CANARY.encode() + b": 1"]),
    "an expectation": (417, [b"Expect: 200-maybe"]),
    "a giant header": (431, [b"X-Thing: " + b"a" * 9000]),
    "30 long headers": (431, [b"X-Thing-%d: " % number + b"a" * 8000 for number in range(30)]),
    "200 headers": (431, [b"X-Thing: 1"] * 200),
}


#: What nginx reads as RFC 9112 lets it, or answers itself, and sends on mended.
MENDED: Final = frozenset({"a bare line feed", "an expectation"})


@pytest.mark.parametrize("name", BROKEN)
def test_a_request_that_is_broken_is_refused_below_us(door: Door, token: str, name: str) -> None:
    """Two servers in a row must never see two different requests in one."""
    expected, lines = BROKEN[name]
    status, headers, body = exchange(door, request_bytes(JOB + b"/events", token, *lines))

    if name in MENDED and isinstance(door, Nginx):
        assert status == 200
        return
    assert status in {expected, 400}
    check_problem(status, headers, body)


@pytest.mark.parametrize(
    "lines",
    [
        b"",
        b"Host:\r\n",
        b"Host: a\r\nHost: a\r\n",
        b"Host: a\r\nhost: b\r\n",
        b"Host: a b\r\n",
        b"Host: a/b\r\n",
        b"Host: a@b\r\n",
        b"Host: [::1\r\n",
        b"Host: a:b\r\n",
        b"Host: \xff\r\n",
    ],
    ids=repr,
)
@pytest.mark.parametrize("path", [b"/events", b""], ids=["events", "job"])
def test_a_request_without_one_host_is_refused(door: Door, token: str, path: bytes, lines: bytes) -> None:
    """RFC 9112 section 3.2: none, two, or what is none."""
    request = request_bytes(JOB + path, token).replace(b"Host: localhost\r\n", lines)
    status, headers, body = exchange(door, request)

    assert status == 400
    check_problem(status, headers, body)


@pytest.mark.parametrize("host", [b"a", b"a.example:8000", b"a:", b"127.0.0.1:80", b"[::1]:8000", b"a_b-c"])
def test_any_host_is_ours(door: Door, token: str, host: bytes) -> None:
    """The service knows no name of its own."""
    request = request_bytes(JOB, token).replace(b"localhost", host)

    assert exchange(door, request)[0] == 200


def test_a_request_of_http_1_0_needs_no_host(service: Service, token: str) -> None:
    """As a monitor may send it."""
    request = request_bytes(JOB, token).replace(b"Host: localhost\r\n", b"").replace(b"HTTP/1.1", b"HTTP/1.0")

    assert exchange(service, request)[0] == 200


def check_problem(status: int, headers: dict[str, str], body: bytes) -> None:
    """The document says what the head says, in words of its own, and nothing of what was sent."""
    assert headers["content-type"] == PROBLEM
    assert headers["cache-control"] == "no-store"
    assert headers["x-content-type-options"] == "nosniff"
    document = orjson.loads(body)
    assert document.keys() == {"type", "title", "status", "detail", "request_id"}
    assert document["status"] == status
    assert document["title"] != "Error"
    assert document["request_id"] == headers["x-request-id"]
    assert CANARY.encode() not in body


@pytest.mark.parametrize(("length", "expected"), [(4_095, 400), (8_180, 400), (8_200, 414), (100_000, 414)])
def test_a_first_line_may_have_eight_kilobytes(door: Door, token: str, length: int, expected: int) -> None:
    """Searches can be long; what is longer is refused as everything is. 400 is the route's own, of an offset."""
    target = JOB + b"/logs?offset="
    target += b"0" * (length - len(b"GET  HTTP/1.1" + target))
    status, headers, body = exchange(door, request_bytes(target, token))

    assert status == expected
    assert headers["content-type"] == PROBLEM
    assert orjson.loads(body)["status"] == expected


def test_what_is_refused_below_us_is_counted_and_has_a_name_in_the_log(service: Service, token: str) -> None:
    """The name in the answer is the one in the log."""
    counted = 'chronoverse_requests_refused_total{status="431"}'
    before = service.metric(counted)
    _, headers, _ = exchange(service, request_bytes(JOB, token, *[b"X-Thing: 1"] * 200))

    assert service.metric(counted) == before + 1
    assert f"request_id={headers['x-request-id']}" in service.logs()


def test_a_request_with_bare_line_feeds_is_refused(service: Service, token: str) -> None:
    """No carriage return at all."""
    assert exchange(service, request_bytes(JOB, token).replace(b"\r\n", b"\n"))[0] == 400


@pytest.mark.parametrize("method", [b"get", b"G\x1bT", b"GET" * 20, b"PRI", b""])
def test_a_method_that_is_none_is_refused(door: Door, token: str, method: bytes) -> None:
    """Never taken for one it resembles."""
    status, _, _ = exchange(door, request_bytes(JOB, token, method=method))

    assert status in (400, 405, 501)


@pytest.mark.parametrize("method", [b"POST", b"PUT", b"PATCH", b"DELETE", b"TRACE", b"CONNECT", b"OPTIONS", b"HEAD"])
def test_only_a_get_opens_a_stream(door: Door, service: Service, token: str, method: bytes) -> None:
    """Of a job that runs, so that it would stay open: all else is answered, and over."""
    job = Foreign(str(service.redis_url), "hostile", "runs").lines(["x"])
    path = f"{job.path}/events".encode()
    status, headers, body = exchange(door, request_bytes(path, token, b"Content-Length: 0", method=method))
    ask_all(str(service.redis_url), [("DEL", job.key)])

    if method in (b"OPTIONS", b"HEAD"):
        assert (status, body) == (200, b"")
    else:
        # nginx knows two of them itself.
        assert status == 405 or (method in (b"CONNECT", b"TRACE") and status in (400, 405))
        assert headers["content-type"] == PROBLEM
    wait_until(lambda: service.metric("chronoverse_streams_open") == 0, PATIENCE_SECONDS, "no stream is open")


def test_a_request_behind_that_for_a_stream_waits_for_its_end(nginx: Nginx, service: Service, token: str) -> None:
    """nginx keeps the viewer's connection, and neither answer becomes a part of the other."""
    job = Foreign(str(service.redis_url), "hostile", "pipelined").lines(["x"])
    first, second = (
        request_bytes(path, token).replace(b"Connection: close\r\n", b"")
        for path in (f"{job.path}/events".encode(), b"/healthz")
    )
    received = b""
    with nginx.connect(PATIENCE_SECONDS) as sock:
        sock.sendall(first + second)
        while b"id: 1\n\n" not in received:
            received += sock.recv(65_536)
        job.line("y")
        job.end()
        while not received.endswith(b'{"status":"ok"}\n') and (chunk := sock.recv(65_536)):
            received += chunk

    stream, _, rest = received.partition(b"\r\n0\r\n\r\n")
    assert stream.endswith(b"id: 3\n\n")
    assert (stream.count(b"HTTP/1.1 "), rest.count(b"HTTP/1.1 200 ")) == (1, 1)


@pytest.mark.parametrize("header", [b"X-Forwarded-For: 1.2.3.4\x1b", b"X-Forwarded-Proto: https", b"Forwarded: for=x"])
def test_forged_forwarding_changes_nothing(door: Door, token: str, header: bytes) -> None:
    """Links stay relative, so nothing of it can come back."""
    status, headers, body = exchange(door, request_bytes(JOB + b"/logs?limit=1", token, header))

    assert status in (200, 400)
    assert b"https" not in body
    assert status == 400 or headers["link"].startswith("</workflows/hostile/")


def test_a_body_that_nobody_reads_does_no_harm(door: Door, token: str) -> None:
    """A GET that announces a gigabyte and sends none of it is answered at once."""
    lines = [b"Content-Length: 1073741824", b"Expect: 100-continue"]
    with door.connect(PATIENCE_SECONDS) as sock:
        sock.sendall(request_bytes(JOB, token, *lines))
        status = receive(sock)[0]

    assert status in (200, 413, 417)


@pytest.mark.parametrize(
    "lines",
    [
        [b"Range: bytes=0-9"],
        [b"If-Range: x", b"Range: bytes=5-"],
        [b"Accept: text/csv"],
        [b"Accept-Encoding: gzip"],
        [b"If-None-Match: *"],
    ],
    ids=lambda lines: lines[-1].decode(),
)
@pytest.mark.parametrize("path", [b"/logs", b"/events"])
def test_no_header_gets_a_part_or_another_form(door: Door, token: str, path: bytes, lines: list[bytes]) -> None:
    """A log has no bytes to count from, and one form: what a client would rather have is not refused, but not done."""
    whole = exchange(door, request_bytes(JOB + path, token))
    status, headers, body = exchange(door, request_bytes(JOB + path, token, *lines))

    assert status == 200
    assert headers["content-type"] == whole[1]["content-type"]
    assert not headers.keys() & {"content-range", "content-encoding", "accept-ranges", "etag"}
    assert RETRY.sub(b"", body) == RETRY.sub(b"", whole[2])


@pytest.mark.parametrize("origin", [b"null", b"https://elsewhere.example", b"http://localhost"])
@pytest.mark.parametrize("method", [b"GET", b"OPTIONS"])
def test_no_other_origin_is_let_in(door: Door, token: str, origin: bytes, method: bytes) -> None:
    """No page of another origin may read an answer, or send a token: nothing of CORS is ever said."""
    asks = [b"Access-Control-Request-Method: GET", b"Access-Control-Request-Headers: authorization"]
    _, headers, _ = exchange(door, request_bytes(JOB, token, b"Origin: " + origin, *asks, method=method))

    assert not [name for name in headers if name.startswith("access-control-")]


def test_after_all_this_the_service_is_well(client: httpx.Client) -> None:
    """No worker died of anything above."""
    assert client.get("/workflows/hostile/jobs/job_1").json()["lines"] == 10


@pytest.mark.long
def test_after_all_this_nothing_raw_is_in_the_log_of_nginx(nginx: Nginx) -> None:
    """What is no path of ours is not in it at all."""
    lines = [orjson.loads(line) for line in nginx.logs().splitlines()]

    assert {"GET", "PUT"} <= {line["method"] for line in lines}
    assert not [line for line in lines if CANARY in line["path"]]
    assert nginx.logs().isascii()
