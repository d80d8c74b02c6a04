"""Malformed numbers, paths and requests are rejected, and never logged unescaped."""

import re
from collections.abc import Iterator
from typing import Final
from urllib.parse import quote

import orjson
import pytest

from tests.support.nginx import Nginx
from tests.support.service import Service
from tests.support.waiting import wait_until
from tests.web.routes.foreign import Foreign, ask_all
from tests.web.routes.wire import PATIENCE_SECONDS, Endpoint, exchange, request_bytes

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
    "superscript": "\u00b2",
    "newline": "12\n",
    "newline and more": f"12\n{CANARY}",
    "return": "12\r",
    "escape": f"1\x1b[31m{CANARY}",
    "5000 digits": "9" * 5000,
    "16 digits": "1" + "0" * 15,
    "2^53+1": str(2**53 + 1),
    "2^64": str(2**64),
    "an id": "5-0",
    "the end": "+",
    "infinity": "inf",
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
    "newline at the end": b"job_1%0a",
    "escape": b"x%1b%5b31m" + CANARY.encode(),
    "hash tag": b"%7Bx%7D",
    "encoded dot dot": b"%2e%2e",
    "dot": b".",
    "encoded slash": b"a%2fb",
    "encoded backslash": b"a%5cb",
    "empty": b"",
    "encoded star": b"%2a",
    "encoded colon": b"job_1%3alog",
    "NUL": b"job_1%00",
    "no UTF-8": b"%ff%fe",
    "raw bytes": b"\xff\xfe",
    "5000 characters": b"a" * 5000,
    "129 characters": b"a" * 129,
    "full width": quote("\uff4a\uff4f\uff42").encode(),
    "space": b"job%201",
    "leading dot": b".job",
    "leading dash": b"-job",
    "quotes": b"%22%27%3c%3e",
}


@pytest.fixture(scope="module")
def token(service: Service) -> str:
    return service.token()


@pytest.fixture(scope="module", autouse=True)
def a_job(service: Service) -> None:
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


@pytest.mark.parametrize("parameter", PARAMETERS)
def test_a_malformed_number_is_refused(endpoint: Endpoint, token: str, parameter: str) -> None:
    """With 400, by gunicorn or nginx if it makes the whole request invalid."""
    for name, number in NOT_NUMBERS.items():
        request = request_bytes(JOB + b"/events", token, b"Last-Event-ID: " + number.encode())
        if parameter:
            request = request_bytes(JOB + parameter.encode() + quote(number).encode(), token)
        status, headers, body = exchange(endpoint, request)
        if not parameter and number in LINES_TO_NGINX and isinstance(endpoint, Nginx):
            # The service receives a plain 12, which is past the end.
            assert (name, status) == (name, 204)
        # Surrounding white space is not part of a header's value.
        elif parameter or name != "padded":
            assert status in ({400, 414, 431} if len(number) > 1000 else {400}), (name, body)
            assert (name, headers["content-type"]) == (name, PROBLEM)


@pytest.mark.parametrize("last_event_id", [b"", b" ", b"0", b"000"])
def test_an_empty_last_event_id_and_zero_mean_the_beginning(
    endpoint: Endpoint, token: str, last_event_id: bytes
) -> None:
    """A client that has received nothing sends an empty one. It takes precedence over the query."""
    request = request_bytes(JOB + b"/events?tail=2", token, b"Last-Event-ID: " + last_event_id)
    status, headers, body = exchange(endpoint, request)

    assert (status, headers["last-event-id"]) == (200, "0")
    assert body.count(b"event: log\n") == 10
    # The service reads two of them as ``5,7``.
    assert exchange(endpoint, request_bytes(JOB + b"/events", token, *[b"Last-Event-ID: 5"] * 2))[0] == 400


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
        b"/workflows/hostile/jobs/job_1%2Fevents",
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


BROKEN: Final = {
    "no such coding": (501, [b"Transfer-Encoding: xchunked"]),
    "two lengths": (400, [b"Content-Length: 4", b"Content-Length: 5"]),
    "a folded header": (400, [b"X-Thing: 1", b" " + CANARY.encode()]),
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


@pytest.mark.parametrize("path", [b"/events?offset=latest", b""], ids=["events", "job"])
def test_a_request_has_exactly_one_valid_host(endpoint: Endpoint, token: str, path: bytes) -> None:
    """Missing, duplicate or invalid is 400 (RFC 9112, section 3.2). The service does not know its own host name."""
    request = request_bytes(JOB + path, token)
    invalid = (b"", b"a b", b"a/b", b"a@b", b"[::1", b"a:b", b"\xff", b"a\r\nHost: a", b"a\r\nhost: b", None)
    for host in invalid:
        line = b"" if host is None else b"Host: " + host + b"\r\n"
        status, headers, body = exchange(endpoint, request.replace(b"Host: localhost\r\n", line))
        assert (host, status) == (host, 400)
        check_problem(status, headers, body)
    for host in (b"a", b"a.example:8000", b"a:", b"127.0.0.1:80", b"[::1]:8000", b"a_b-c"):
        assert (host, exchange(endpoint, request.replace(b"localhost", host))[0]) == (host, 200)
    # Some monitors send such requests.
    old = request.replace(b"Host: localhost\r\n", b"").replace(b"HTTP/1.1", b"HTTP/1.0")
    assert isinstance(endpoint, Nginx) or exchange(endpoint, old)[0] == 200


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
        assert headers.get("last-event-id") == ("0" if method == b"HEAD" else None)
    else:
        # nginx answers two of them itself.
        assert status == 405 or (method in (b"CONNECT", b"TRACE") and status in (400, 405))
        assert headers["content-type"] == PROBLEM
    wait_until(lambda: service.metric("chronoverse_streams_open") == 0, PATIENCE_SECONDS, "no stream is open")


@pytest.mark.long
def test_the_log_of_nginx_has_nothing_unescaped_after_all_tests(nginx: Nginx) -> None:
    """Paths that the service does not have are not logged at all."""
    lines = [orjson.loads(line) for line in nginx.logs().splitlines()]

    assert {"GET"} <= {line["method"] for line in lines}
    assert not [line for line in lines if CANARY in line["path"]]
    assert nginx.logs().isascii()
