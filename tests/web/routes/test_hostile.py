"""Malformed numbers, paths and requests are rejected, and never logged unescaped."""

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
from tests.web.routes.wire import PATIENCE_SECONDS, Endpoint, exchange, receive, request_bytes

pytestmark = pytest.mark.long

JOB: Final = b"/workflows/hostile/jobs/job_1"
PROBLEM: Final = "application/problem+json"
#: Follows each line break that is sent: shows whether a client can forge a line of a log.
CANARY: Final = "forged-by-a-client"

#: Not 1 to 15 ASCII digits, although some parsers accept them as numbers.
NOT_NUMBERS: Final = {
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
#: The parameters that they are sent in. The empty one is for the header.
PARAMETERS: Final = ("/events?offset=", "/events?tail=", "/events?wait=", "/logs?offset=", "/logs?limit=", "")

#: Two lines of a header to nginx: as RFC 9112 allows, it accepts a bare line feed or a doubled return as a line's end,
#: and forwards correct ones. So both servers read the same.
LINES_TO_NGINX: Final = frozenset({"12\n", f"12\n{CANARY}", "12\r"})

#: Invalid identifiers, as sent in the request line.
NOT_IDENTIFIERS: Final = {
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
    """A token for all workflows."""
    return service.token()


@pytest.fixture(scope="module", autouse=True)
def a_job(service: Service) -> None:
    """A finished job of ten lines."""
    Foreign(str(service.redis_url), "hostile", "job_1").lines(["x"] * 10).end()


@pytest.fixture(autouse=True)
def nothing_unescaped_in_the_logs(service: Service) -> Iterator[None]:
    """Checks after each test that the service logged no control character and no forged line."""
    before = service.log_size()
    yield
    printed = service.logs(before).encode("latin-1").decode("utf-8")
    assert not [char for char in printed if not (char.isprintable() or char in "\n\t")], ascii(printed)
    assert not re.search(rf"^\W*{CANARY}", printed, re.MULTILINE)
    assert "Traceback" not in printed


@pytest.mark.parametrize("parameter", [name for name in PARAMETERS if name])
def test_a_malformed_number_in_the_query_is_refused(endpoint: Endpoint, token: str, parameter: str) -> None:
    for name, number in NOT_NUMBERS.items():
        request = request_bytes(JOB + parameter.encode() + quote(number).encode(), token)
        status, headers, body = exchange(endpoint, request)
        assert status in ({400, 414, 431} if len(number) > 1000 else {400}), (name, body)
        assert (name, headers["content-type"]) == (name, PROBLEM)


def test_a_malformed_number_in_the_header_is_refused(endpoint: Endpoint, token: str) -> None:
    """With 400, by gunicorn or nginx if it makes the whole request invalid."""
    for name, number in NOT_NUMBERS.items():
        request = request_bytes(JOB + b"/events", token, b"Last-Event-ID: " + number.encode())
        status, headers, body = exchange(endpoint, request)
        if number in LINES_TO_NGINX and isinstance(endpoint, Nginx):
            # The service receives a plain 12, which is past the end.
            assert (name, status) == (name, 204)
        # Surrounding white space is not part of a header's value.
        elif name != "padded":
            assert status in ({400, 414, 431} if len(number) > 1000 else {400}), (name, body)
            assert headers["content-type"] == PROBLEM, name


@pytest.mark.parametrize("limit", ["0", "1001", "1000000000", "999999999999999"])
@pytest.mark.parametrize("path", ["/workflows/hostile/jobs", "/workflows/hostile/jobs/job_1/logs"])
def test_a_limit_out_of_bounds_is_refused(client: httpx.Client, path: str, limit: str) -> None:
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
def test_an_unknown_parameter_is_refused(client: httpx.Client, query: str) -> None:
    """Not ignored; the problem document names it."""
    response = client.get(f"/workflows/hostile/jobs/job_1{query}")

    assert response.status_code == 400
    assert {error["parameter"] for error in response.json()["errors"]} <= set(re.findall(r"(\w+)=", query))


@pytest.mark.parametrize("last_event_id", [b"", b" ", b"0", b"000"])
def test_an_empty_last_event_id_and_zero_mean_the_beginning(
    endpoint: Endpoint, token: str, last_event_id: bytes
) -> None:
    """A client that has received nothing sends an empty one."""
    request = request_bytes(JOB + b"/events", token, b"Last-Event-ID: " + last_event_id)
    status, headers, body = exchange(endpoint, request)

    assert (status, headers["last-event-id"]) == (200, "0")
    assert body.count(b"event: log\n") == 10


def test_two_last_event_ids_are_refused(endpoint: Endpoint, token: str) -> None:
    """The service reads them as ``5,7``."""
    request = request_bytes(JOB + b"/events", token, b"Last-Event-ID: 5", b"Last-Event-ID: 7")

    assert exchange(endpoint, request)[0] == 400


def test_a_header_with_underscores_is_another_header(endpoint: Endpoint, token: str) -> None:
    """A proxy that filters ``Last-Event-ID`` would not filter ``Last_Event_ID``."""
    request = request_bytes(JOB + b"/events", token, b"Last_Event_ID: 7", b"Last-Event_ID: 7")
    status, headers, _ = exchange(endpoint, request)

    assert (status, headers["last-event-id"]) == (200, "0")


@pytest.mark.parametrize(
    "path", [b"/workflows/%b/jobs/job_1/events", b"/workflows/hostile/jobs/%b/logs", b"/workflows/%b/jobs"]
)
def test_an_invalid_identifier_is_not_found(endpoint: Endpoint, token: str, path: bytes) -> None:
    """404, or 400 if it also makes the request invalid."""
    for name, text in NOT_IDENTIFIERS.items():
        target = path.replace(b"%b", text)
        status, _, body = exchange(endpoint, request_bytes(target, token))
        assert status in ((400, 404, 414) if len(target) > 4000 else (400, 404)), (name, body)
        assert CANARY.encode() not in body, name


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
def test_no_other_path_leads_to_a_job(endpoint: Endpoint, token: str, target: bytes) -> None:
    """Paths are neither normalised, merged nor redirected."""
    status, headers, _ = exchange(endpoint, request_bytes(target, token))

    assert status in (400, 404)
    assert "location" not in headers


@pytest.mark.parametrize("method", ["PUT"])
@pytest.mark.parametrize("name", ["hash tag", "colon", "NUL", "newline", "5000 characters", "star"])
def test_no_job_is_registered_under_an_invalid_identifier(
    endpoint: Endpoint, token: str, client: httpx.Client, name: str, method: str
) -> None:
    """So it cannot reach the key of another job."""
    before = client.get("/workflows/hostile/jobs").json()
    target = b"/workflows/hostile/jobs/" + NOT_IDENTIFIERS[name]
    status, _, _ = exchange(endpoint, request_bytes(target, token, b"Content-Length: 0", method=method.encode()))

    assert status in (400, 404, 414)
    assert client.get("/workflows/hostile/jobs").json() == before


#: Random for each stream.
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


#: Requests that nginx accepts, as RFC 9112 allows, and forwards in a correct form.
CORRECTED_BY_NGINX: Final = frozenset({"a bare line feed", "an expectation"})


@pytest.mark.parametrize("name", BROKEN)
def test_a_malformed_request_is_refused(endpoint: Endpoint, token: str, name: str) -> None:
    """Both servers must see the same request in the same bytes."""
    expected, lines = BROKEN[name]
    status, headers, body = exchange(endpoint, request_bytes(JOB + b"/events", token, *lines))

    if name in CORRECTED_BY_NGINX and isinstance(endpoint, Nginx):
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
def test_a_request_without_exactly_one_valid_host_is_refused(
    endpoint: Endpoint, token: str, path: bytes, lines: bytes
) -> None:
    """Missing, duplicate or invalid (RFC 9112, section 3.2)."""
    request = request_bytes(JOB + path, token).replace(b"Host: localhost\r\n", lines)
    status, headers, body = exchange(endpoint, request)

    assert status == 400
    check_problem(status, headers, body)


@pytest.mark.parametrize("host", [b"a", b"a.example:8000", b"a:", b"127.0.0.1:80", b"[::1]:8000", b"a_b-c"])
def test_any_valid_host_is_accepted(endpoint: Endpoint, token: str, host: bytes) -> None:
    """The service does not know its own host name."""
    request = request_bytes(JOB, token).replace(b"localhost", host)

    assert exchange(endpoint, request)[0] == 200


def test_a_request_of_http_1_0_needs_no_host(service: Service, token: str) -> None:
    """Some monitors send such requests."""
    request = request_bytes(JOB, token).replace(b"Host: localhost\r\n", b"").replace(b"HTTP/1.1", b"HTTP/1.0")

    assert exchange(service, request)[0] == 200


def check_problem(status: int, headers: dict[str, str], body: bytes, *members: str) -> None:
    """Checks that the problem document has the head's status and repeats nothing of the request."""
    assert headers["content-type"] == PROBLEM
    assert headers["cache-control"] == "no-store"
    assert headers["x-content-type-options"] == "nosniff"
    document = orjson.loads(body)
    assert document.keys() == {"type", "title", "status", "detail", "request_id", *members}
    assert document["status"] == status
    assert document["title"] != "Error"
    assert document["request_id"] == headers["x-request-id"]
    assert CANARY.encode() not in body


@pytest.mark.parametrize(("length", "expected"), [(4_095, 400), (8_180, 400), (8_200, 414), (100_000, 414)])
def test_a_request_line_can_have_eight_kilobytes(endpoint: Endpoint, token: str, length: int, expected: int) -> None:
    """Searches can be long. The 400 is the route's own, for the offset."""
    target = JOB + b"/logs?offset="
    target += b"0" * (length - len(b"GET  HTTP/1.1" + target))
    status, headers, body = exchange(endpoint, request_bytes(target, token))

    assert status == expected
    check_problem(status, headers, body, *(["errors"] if expected == 400 else []))
    assert (b"shorten the URL" in body) == (expected == 414)


def test_a_malformed_request_is_logged(service: Service, token: str) -> None:
    """With the client's address, and without anything that looks like a token."""
    exchange(service, request_bytes(JOB, token, b"Bearer " + token.encode() + b"\x1b: 1"))

    refused = [line for line in service.logs().splitlines() if "Invalid request from ip=127.0.0.1" in line]
    assert refused
    assert all(token not in line and "\x1b" not in line for line in refused)


def test_a_request_with_bare_line_feeds_is_refused(service: Service, token: str) -> None:
    """Without a single carriage return."""
    assert exchange(service, request_bytes(JOB, token).replace(b"\r\n", b"\n"))[0] == 400


@pytest.mark.parametrize("method", [b"get", b"G\x1bT", b"GET" * 20, b"PRI", b""])
def test_an_unknown_method_is_refused(endpoint: Endpoint, token: str, method: bytes) -> None:
    """Not corrected to a similar one."""
    status, _, _ = exchange(endpoint, request_bytes(JOB, token, method=method))

    assert status in (400, 405, 501)


@pytest.mark.parametrize("method", [b"POST", b"PUT", b"PATCH", b"DELETE", b"TRACE", b"CONNECT", b"OPTIONS", b"HEAD"])
def test_only_a_get_opens_a_stream(endpoint: Endpoint, service: Service, token: str, method: bytes) -> None:
    """The job is running: a stream would stay open, and all other methods get an answer that ends."""
    job = Foreign(str(service.redis_url), "hostile", "runs").lines(["x"])
    path = f"{job.path}/events".encode()
    status, headers, body = exchange(endpoint, request_bytes(path, token, b"Content-Length: 0", method=method))
    ask_all(str(service.redis_url), [("DEL", job.key)])

    if method in (b"OPTIONS", b"HEAD"):
        assert (status, body) == (200, b"")
    else:
        # nginx answers two of them itself.
        assert status == 405 or (method in (b"CONNECT", b"TRACE") and status in (400, 405))
        assert headers["content-type"] == PROBLEM
    wait_until(lambda: service.metric("chronoverse_streams_open") == 0, PATIENCE_SECONDS, "no stream is open")


def test_a_request_pipelined_after_a_stream_waits_for_its_end(nginx: Nginx, service: Service, token: str) -> None:
    """nginx keeps the client's connection open, and the answers do not mix."""
    job = Foreign(str(service.redis_url), "hostile", "pipelined").lines(["x"])
    first, second = (
        request_bytes(path, token).replace(b"Connection: close\r\n", b"")
        for path in (f"{job.path}/events".encode(), b"/healthz")
    )
    received = b""
    with nginx.connect(PATIENCE_SECONDS) as sock:
        sock.sendall(first + second)
        while b"id: 1\n\n" not in received and (chunk := sock.recv(65_536)):
            received += chunk
        job.line("y")
        job.end()
        while not received.endswith(b'{"status":"ok"}\n') and (chunk := sock.recv(65_536)):
            received += chunk

    stream, _, rest = received.partition(b"\r\n0\r\n\r\n")
    assert stream.endswith(b"id: 3\n\n")
    assert (stream.count(b"HTTP/1.1 "), rest.count(b"HTTP/1.1 200 ")) == (1, 1)


@pytest.mark.parametrize("header", [b"X-Forwarded-For: 1.2.3.4\x1b", b"X-Forwarded-Proto: https", b"Forwarded: for=x"])
def test_forged_forwarding_changes_nothing(endpoint: Endpoint, token: str, header: bytes) -> None:
    """Links are relative, so no forged value appears in an answer."""
    status, headers, body = exchange(endpoint, request_bytes(JOB + b"/logs?limit=1", token, header))

    assert status in (200, 400)
    assert b"https" not in body
    assert status == 400 or headers["link"].startswith("</workflows/hostile/")


def test_an_announced_body_that_is_not_read_does_no_harm(endpoint: Endpoint, token: str) -> None:
    """A GET that announces a gigabyte and sends none of it is answered immediately."""
    lines = [b"Content-Length: 1073741824", b"Expect: 100-continue"]
    with endpoint.connect(PATIENCE_SECONDS) as sock:
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
def test_headers_for_ranges_and_formats_are_ignored(
    endpoint: Endpoint, token: str, path: bytes, lines: list[bytes]
) -> None:
    """A log has no byte ranges and only one format."""
    plain = exchange(endpoint, request_bytes(JOB + path, token))
    status, headers, body = exchange(endpoint, request_bytes(JOB + path, token, *lines))

    assert status == 200
    assert headers["content-type"] == plain[1]["content-type"]
    assert not headers.keys() & {"content-range", "content-encoding", "accept-ranges", "etag"}
    assert RETRY.sub(b"", body) == RETRY.sub(b"", plain[2])


@pytest.mark.parametrize("origin", [b"null", b"https://elsewhere.example", b"http://localhost"])
@pytest.mark.parametrize("method", [b"GET", b"OPTIONS"])
def test_other_origins_are_not_allowed(endpoint: Endpoint, token: str, origin: bytes, method: bytes) -> None:
    """No answer has a CORS header, so a page of another origin can neither read it nor send a token."""
    asks = [b"Access-Control-Request-Method: GET", b"Access-Control-Request-Headers: authorization"]
    _, headers, _ = exchange(endpoint, request_bytes(JOB, token, b"Origin: " + origin, *asks, method=method))

    assert not [name for name in headers if name.startswith("access-control-")]


def test_the_service_still_answers_after_all_tests(client: httpx.Client) -> None:
    """No test has killed a worker."""
    assert client.get("/workflows/hostile/jobs/job_1").json()["lines"] == 10


@pytest.mark.long
def test_the_log_of_nginx_has_nothing_unescaped_after_all_tests(nginx: Nginx) -> None:
    """Paths that the service does not have are not logged at all."""
    lines = [orjson.loads(line) for line in nginx.logs().splitlines()]

    assert {"GET", "PUT"} <= {line["method"] for line in lines}
    assert not [line for line in lines if CANARY in line["path"]]
    assert nginx.logs().isascii()
