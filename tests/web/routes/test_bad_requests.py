"""Invalid parameters and bodies of every route: 400 with the name of the parameter, and no other effect."""

from collections.abc import Sequence
from typing import Any, Final

import httpx
import pytest

from chronoverse.auth.rights import ADMIN, READ, WRITE
from tests.support.service import Service
from tests.web.routes.foreign import TIMESTAMP, Foreign

_SEVENTEEN: Final = "&".join(f"label=k{number}=v" for number in range(17))
_LABEL: Final = tuple(
    f"label={each}" for each in ("branch", "=main", "Branch=main", "a=", "a=b%1b", "a=b&label=branch")
)
_SEARCH: Final = ("", "q=", f"q={'x' * 257}", "q=(&regex=true", "q=(?=a)&regex=true", r"q=(a)\1&regex=true")

#: Invalid queries by route. The start of each is the invalid parameter, unless a name and ``<`` precede it.
QUERIES: Final[dict[str, Sequence[str]]] = {
    "/workflows": ("limit=0", "limit=x", "cursor<cursor=bad", "limit=1&limit=2", "unknown=1", "status=failed"),
    "/workflows/bad/jobs": (
        *("limit=0", "limit=1001", "limit=999999999999999", "status=failed", "status=", "status=FAILED,LOST"),
        *(*_LABEL, f"label<{_SEVENTEEN}"),
    ),
    "/workflows/bad/events": ("jobs=1001", "jobs=-1", "status=DELETED", "label=x", "offset=1", "jobs=1&jobs=2"),
    "/workflows/bad/logs/search": (
        *(f"q<{each}" for each in _SEARCH),
        *("per_job<q=x&per_job=0", "limit<q=x&limit=101", "label<q=a&label=branch", f"label<q=a&{_SEVENTEEN}"),
    ),
    "/audit": ("cursor<since=2026-03-03&cursor=W10", "cursor<cursor=x", "limit=0", "since=yesterday", "did=delete"),
    "{job}/events": (
        *("offset=1&offset=2", "tail<offset=1&tail=2", "stream=stdout&stream=stderr", "stream=STDOUT", "stream="),
        *("offset=", "offset=Latest", "offset=%2B7", "tail=1e3", "wait=301", "follow=true", "q=", "q=(&regex=true"),
        # A search accepts this expression, but it is too expensive for every new line.
        "q=(?:a.{0,50}){4}z&regex=true",
    ),
    "{job}/logs": (
        *("limit=0", "limit=1001", "limit=1&limit=2", "order=up", "order=", "stream=both", "page=2", "offset=latest"),
        *("cursor=", "cursor=x", f"cursor={'a' * 513}", "offset<offset=1&cursor=x"),
    ),
    "{job}/logs/search": (
        *(f"q<{each}" for each in (*_SEARCH, "q=(?:.?){1000}b&regex=true")),
        *("regex<q=x&regex=yes", "limit<q=x&limit=1001", "stream<q=x&stream=both", "since<q=x&since=yesterday"),
        *("since<q=x&since=2026-13-45T99:99:99.999Z", "until<q=x&until=", "before<q=x&before=51", "after<q=x&after=x"),
    ),
    "{job}/logs/new": (
        *("limit=0", "against=a/b", "against=", "before=51", "q=x", "offset<offset=1&cursor=x"),
        *("against_label<against=job_2&against_label=a=b", "against_label=branch"),
    ),
    "{job}/logs/raw": ("q=(&regex=true", "format=csv", "control_sequences=yes"),
    "{job}/logs/1/history": ("jobs=0", "jobs=1001", "jobs=x", "cursor<cursor=x", "limit=3", "label=x"),
    "{job}/summary": ("bytes=1023", "bytes=262145", "bytes=x", "bytes=2000&bytes=2000", "size=2000"),
    "{job}/profile": ("limit=3", "against_label=x", "against=good-1"),
    "{job}/wait": ("timeout=301", "timeout=x", "offset=-1", "q=", "q=%28&regex=true", "limit=0", "limit=1001"),
}

TOKEN: Final = "0" * 32
OPENED: Final = {"token": TOKEN, "attempt": 1}
LINE: Final = {"timestamp": TIMESTAMP, "message": "a", "stream": "stdout"}
RUN: Final = {"timestamp": TIMESTAMP, "stream": "stdout", "messages": ["a", "b"]}
WATCH: Final = {"on": "end", "url": "https://hooks.example/T0"}
_MANY: Final = {f"k{number}": "v" for number in range(17)}
_LABELS: Final = (
    *({"Branch": "main"}, {"a": 1}, {"a": ""}, {"a": "x" * 257}, {"a": "\x1b"}),
    *(_MANY, ["a"], "a=b"),
)


def _bad(name: str, *values: Any) -> list[tuple[dict[str, Any], str]]:
    return [({name: each}, f"{name}: ") for each in values]


def _lines(*bad: Any) -> list[tuple[dict[str, Any], str]]:
    return [({"lines": [LINE, each]}, "lines: 1: ") for each in bad]


#: By method and route: a valid body, and changes that make it invalid, each with the start of the error's detail. A
#: member that becomes None is left out.
BODIES: Final[dict[str, tuple[dict[str, Any], list[tuple[dict[str, Any], str]]]]] = {
    "PUT {job}": ({}, _bad("labels", *_LABELS)),
    "POST {job}/attempts": (
        {"token": TOKEN},
        [
            *_bad("token", None, "0123", "g" * 32, TOKEN + "\n", 7),
            *_bad("labels", *_LABELS),
            *(({"more": 1}, "more: "), ({"first": 0}, "first: ")),
        ],
    ),
    "POST {job}/logs": (
        {**OPENED, "first": 1, "lines": [LINE]},
        [
            *_bad("attempt", 0, "1", True, None),
            *_bad("first", 0, 1.5, 10**15, None),
            *_bad("lines", None, {}, [LINE] * 501),
            *_bad("token", None),
            *_bad("safe", 1),
            *_lines(None, "text", {}, *({**LINE, "stream": each} for each in ("stdin", ["stdout"]))),
            *_lines(*({**LINE, "message": each} for each in (1, "a\nb"))),
            *_lines(*({**LINE, "timestamp": each} for each in ("2026-03-03T10:00:05Z", TIMESTAMP + "\n", 1))),
            *_lines({**LINE, "partial": 1}, {**LINE, "sequence_num": 2}, {**LINE, "message": "x" * 65_537}),
            # A replacement character counts as the single byte that it replaced.
            *_lines(*({**LINE, "message": each * 32_768 + "x"} for each in ("é", "\ufffd" * 2))),
            ({"runs": [RUN]}, "lines: either lines or runs are required"),
            ({"lines": None, "runs": [{**RUN, "messages": ["x"] * 501}], "first": 10**15 - 501}, "first: too high"),
        ],
    ),
    "POST {job}/logs#runs": (
        {**OPENED, "first": 1, "runs": [RUN]},
        [
            ({"runs": "text"}, "runs: must be a list of runs"),
            *(({"runs": [RUN, each]}, "runs: 1: must be an object") for each in (5, {**RUN, "number": 1})),
            ({"runs": [{**RUN, "timestamp": "now"}]}, "runs: 0: timestamp must be like"),
            ({"runs": [{**RUN, "stream": "other"}]}, "runs: 0: stream must be"),
            *(
                ({"runs": [{**RUN, "messages": each}]}, "runs: 0: messages must be a list of strings without newlines")
                for each in ("text", {"a": 1}, None, ["a", 5], ["a", "b\nc"])
            ),
            *(
                ({"runs": [{**RUN, "messages": ["a", each]}]}, "runs: 0: messages.1: message must have at most")
                for each in ("b" * 65_537, "\ufffd" * 65_536 + "b")
            ),
            *(
                ({"runs": [{**RUN, "partial": each}]}, "runs: 0: partial must be a list of indexes")
                for each in ([2], [-1], [1, 0], [0, 0], [False], True)
            ),
        ],
    ),
    "POST {job}/logs/lost": (
        {**OPENED, "first": 1, "count": 1},
        [({"count": 0}, "count: "), ({"first": 5 * 10**11 + 1}, "first: "), ({"reason": "quota"}, "reason: ")],
    ),
    "POST {job}/logs/compare": (
        {"first": 1, "lines": ["0" * 64]},
        [
            ({"lines": ["0" * 64, "no", 3]}, "lines: 1: must be 64 hexadecimal digits; 2: Not a valid string."),
            *_bad("lines", [], ["0" * 64] * 501),
        ],
    ),
    "POST {job}/end": (
        {**OPENED, "status": "FAILED", "next": 1},
        [
            *_bad("status", "RUNNING", "DONE", None),
            *_bad("exit_code", "0", 10**9, -(10**9)),
            *(({"dropped": -1}, "dropped: "), ({"next": 0}, "next: "), ({"token": "0123"}, "token: ")),
            # Half of a runner's request ends nothing.
            *(({each: None}, "") for each in ("token", "attempt", "next")),
            ({"token": None, "attempt": None, "next": None, "dropped": 1}, "token: "),
            ({"token": None, "attempt": None, "next": None, "counts": True}, "token: "),
            ({"token": None, "attempt": None, "next": None, "status": "PENDING"}, "token: "),
        ],
    ),
    "POST {job}/logs/redact": (
        {"from": 1, "to": 2},
        [
            *(({"to": None}, "q: pass q"), ({"from": 3}, "to: is before from"), ({"from": 0}, "from: ")),
            *(({"from": "1"}, "from: "), ({"q": ""}, "q: "), ({"q": "(", "regex": True}, "q: ")),
            *(({"q": "x", "regex": each}, "regex: ") for each in (0, 1.0, "true")),
            *_bad("reason", "", "x" * 201),
        ],
    ),
    "PUT /workflows/bad/settings": (
        {},
        [
            *_bad("retention_seconds", 0, 315_360_001, "60"),
            *_bad("job_bytes", -1, True),
            *_bad("bytes_per_day", 10**15, 1.5),
            ({"day_bytes": 1}, "day_bytes: "),
        ],
    ),
    "PUT /workflows/bad/watches/x": (
        WATCH,
        [
            ({"url": "http://hooks.example/"}, "url: "),
            ({"url": "https://user@hooks.example/"}, "url: "),
            *(
                ({"url": each}, "url: ")
                for each in ("ftp://hooks.example/", "https://hooks.example/" + "x" * 2_000, "")
            ),
            ({"on": "start"}, "on: "),
            *(({"on": "silent", "seconds": each}, "seconds: ") for each in (None, 0)),
            ({"seconds": 60}, "seconds: "),
            ({"on": "silent", "seconds": 60, "status": ["LOST"]}, "status: not allowed with `silent`"),
            ({"same": ["branch"]}, "same: requires `change`"),
            *_bad("status", ["RUNNING"], ["FAILED"] * 5, []),
            *_bad("label", *_LABELS),
            *_bad("same", ["Branch"], [*_MANY]),
            *_bad("secret", "whsec_short", "MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", f"whsec_{33 * 'a'}"),
            ({"more": 1}, "more: "),
        ],
    ),
}


@pytest.fixture(scope="module")
def job(service: Service) -> Foreign:
    return Foreign(str(service.redis_url), "bad", "job_1").lines(["one", "two"])


@pytest.fixture
def client(service: Service, client: httpx.Client) -> httpx.Client:
    client.headers["Authorization"] = f"Bearer {service.token(scopes=(READ, WRITE, ADMIN))}"
    return client


def refusal(answer: httpx.Response) -> str:
    """The detail of a problem document with the status 400."""
    document = answer.json()
    assert (answer.status_code, document["status"]) == (400, 400), answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    assert document["title"] == "Bad Request"
    assert document["request_id"] == answer.headers["x-request-id"]
    assert "expected pattern" not in document["detail"]
    for error in document.get("errors", ()):
        assert f"{error['parameter']}: {error['detail']}" in document["detail"]
    return str(document["detail"])


@pytest.mark.parametrize("path", QUERIES)
def test_an_invalid_query_is_refused(client: httpx.Client, job: Foreign, path: str) -> None:
    for each in QUERIES[path]:
        name, _, query = each.rpartition("<")
        url = path.format(job=job.path) + "?" + query.replace("(", "%28").replace("{", "%7B").replace("\\", "%5C")
        detail = refusal(client.get(url))
        assert detail.startswith(f"{name or query.partition('=')[0]}: "), (query, detail)


@pytest.mark.parametrize("route", BODIES)
def test_an_invalid_body_is_refused(client: httpx.Client, job: Foreign, route: str) -> None:
    valid, changes = BODIES[route]
    method, path = route.partition("#")[0].format(job=job.path).split(" ")
    for change, says in changes:
        body = {name: each for name, each in (valid | change).items() if each is not None}
        detail = refusal(client.request(method, path, json=body))
        assert detail.startswith(says), (change, detail)
    state = client.get(job.path).json()
    assert (state["status"], state["last_sequence_num"], state["attempt"], state["labels"]) == ("RUNNING", 2, 1, {})
    assert client.get("/workflows/bad/watches").json()["watches"] == []
    assert set(client.get("/workflows/bad/settings").json().values()) == {None}


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"[]", b'"text"', b"null", b"NaN", b"\xff", b'{"token":"\\ud800"}', b"[" * 100_000, b"[],"],
    ids=lambda body: repr(body[:20]),
)
def test_a_body_that_is_not_an_object_is_refused(client: httpx.Client, job: Foreign, body: bytes) -> None:
    for path in (f"{job.path}/attempts", f"{job.path}/logs/redact"):
        refusal(client.post(path, content=body, headers={"Content-Type": "application/json"}))


def test_all_invalid_members_are_reported(client: httpx.Client, job: Foreign) -> None:
    """Of a body at once, up to a maximum number and length."""
    missing = client.post(f"{job.path}/logs", json={}).json()["errors"]
    assert {each["parameter"] for each in missing} >= {"token", "attempt", "first"}
    many = {f"{number}{'k' * 200}": 1 for number in range(40)}
    answer = client.post(f"{job.path}/attempts", json={"token": TOKEN, **many})
    assert refusal(answer).endswith("; and 30 more")
    assert {len(each["parameter"]) for each in answer.json()["errors"]} == {100}
    assert len(answer.json()["errors"]) == 10
