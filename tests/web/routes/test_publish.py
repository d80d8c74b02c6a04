"""The routes for runners: valid, repeated, rejected, oversized and malformed requests."""

import gzip
import zlib
from collections.abc import Callable
from typing import Any, Final

import httpx
import orjson
import pytest

from tests.support.memory import peak_bytes
from tests.support.servers import RedisServer
from tests.support.service import Service
from tests.web.routes.foreign import TIMESTAMP, Foreign, ask_all
from tests.web.routes.runner import Runner
from tests.web.routes.wire import Endpoint, Stream

#: The service's defaults.
MAX_BODY: Final = 8 * 2**20
#: The service's lease in milliseconds.
LEASE_MS: Final = 30_000

OpenStream = Callable[..., Stream]


def messages(client: httpx.Client, job: Foreign) -> list[str]:
    return [line["message"] for line in client.get(f"{job.path}/logs?limit=1000").json()["logs"]]


def refusal(response: httpx.Response) -> dict[str, Any]:
    """The members of a problem document, without the constant ones, which are checked."""
    problem: dict[str, Any] = response.json()
    assert response.headers["Content-Type"] == "application/problem+json"
    assert problem.pop("status") == response.status_code
    assert problem.pop("type") == "about:blank"
    assert problem.pop("title") != "Error"
    assert problem.pop("detail")
    assert problem.pop("request_id") == response.headers["X-Request-ID"]
    return problem


# A runner's requests


def test_a_job_is_opened_appended_to_and_ended(client: httpx.Client, job: Foreign, runner: Runner) -> None:
    """The answers follow the contract, and viewers see the lines and the end."""
    opened = runner.open()
    assert (opened.status_code, opened.json()) == (200, {"attempt": 1, "token": runner.token, "next": 1})
    assert opened.headers["Cache-Control"] == "private, no-store"

    body = runner.lines(1, "one", "two")
    body["lines"][1] |= {"stream": "stderr", "partial": True}
    appended = runner.post("logs", body)
    assert (appended.status_code, appended.json()) == (200, {"next": 3})

    ended = runner.end(3, status="FAILED", exit_code=7, dropped=2)
    assert (ended.status_code, ended.content) == (204, b"")
    assert client.get(f"{job.path}/logs").json()["logs"] == [
        {"timestamp": TIMESTAMP, "message": "one", "sequence_num": 1, "stream": "stdout"},
        {"timestamp": TIMESTAMP, "message": "two", "sequence_num": 2, "stream": "stderr", "partial": True},
    ]
    state = client.get(job.path).json()
    assert {name: state[name] for name in ("status", "attempt", "exit_code", "lines", "dropped")} == {
        "status": "FAILED",
        "attempt": 1,
        "exit_code": 7,
        "lines": 2,
        "dropped": 2,
    }


def test_an_attempt_that_is_not_open_is_refused(client: httpx.Client, job: Foreign, opened: Runner) -> None:
    """A token is valid for several attempts of a runner; a request belongs to one of them.

    An attempt can end before the job, which stays running.
    """
    assert opened.append(1, "one").status_code == 200
    assert [opened.end(2, status="PENDING", exit_code=None).status_code for _ in range(2)] == [204, 204]
    assert client.get(job.path).json()["status"] == "RUNNING"
    assert opened.open().json()["attempt"] == 2
    for attempt in (1, 3):
        requests = (
            opened.append(2, "two", attempt=attempt),
            opened.append(2, attempt=attempt),
            opened.post("logs/lost", {"token": opened.token, "attempt": attempt, "first": 2, "count": 1}),
            opened.end(2, attempt=attempt),
            opened.end(2, attempt=attempt, status="PENDING"),
        )
        assert [(each.status_code, each.json().get("reason")) for each in requests] == [(409, "FENCED")] * 5
    opened.attempt = 2
    assert [opened.append(2, "two").json(), opened.append(3).json()] == [{"next": 3}, {"next": None}]
    assert opened.end(3).status_code == 204
    assert messages(client, job) == ["one", "two"]


def test_an_attempt_can_set_the_exit_code_of_the_job(client: httpx.Client, job: Foreign, opened: Runner) -> None:
    """With ``counts``, unless a larger one follows; otherwise the last attempt decides."""
    opened.append(1, "a")
    assert opened.end(2, status="PENDING", exit_code=3, counts=True).status_code == 204
    second = Runner(client, job)
    second.attempt = second.open().json()["attempt"]
    assert refusal(opened.end(2, status="PENDING")) == {"reason": "FENCED"}
    assert second.end(2, status="PENDING", exit_code=7).status_code == 204
    third = Runner(client, job)
    third.attempt = third.open().json()["attempt"]
    assert [third.end(2).status_code for _ in range(2)] == [204, 204]
    ended = client.get(job.path).json()
    assert (ended["status"], ended["exit_code"], ended["attempt"]) == ("FAILED", 3, 3)


def test_a_repeated_request_changes_nothing(client: httpx.Client, job: Foreign, runner: Runner) -> None:
    """The second answer equals the first."""
    requests: list[Callable[[], httpx.Response]] = [
        runner.open,
        lambda: runner.append(1, "a", "b"),
        lambda: runner.end(3),
    ]
    for ask in requests:
        first, second = ask(), ask()
        assert first.is_success
        assert (first.status_code, first.content) == (second.status_code, second.content)

    assert messages(client, job) == ["a", "b"]


def test_an_append_without_lines_renews_the_lease(redis_server: RedisServer, job: Foreign, opened: Runner) -> None:
    lease = job.key.replace(":log", ":lease")
    ask_all(redis_server.url, [("PEXPIRE", lease, "1000")])

    assert opened.append(1).json() == {"next": None}
    assert redis_server.ask("PTTL", lease) > LEASE_MS - 5_000


def test_gzip_is_inflated(client: httpx.Client, job: Foreign, opened: Runner) -> None:
    """Also as ``x-gzip``, and with a chunked body."""
    body = gzip.compress(orjson.dumps(opened.lines(1, *("x" * 10_000 for _ in range(500)))))
    assert opened.post_bytes("logs", body, Content_Encoding="gzip").json() == {"next": 501}

    body = gzip.compress(orjson.dumps(opened.lines(501, "y")))
    chunks = (body[start : start + 7] for start in range(0, len(body), 7))
    assert opened.post_bytes("logs", chunks, Content_Encoding="X-GZIP").json() == {"next": 502}


# Requests that the store refuses


def test_the_stores_refusals_are_problem_documents(
    client: httpx.Client, redis_server: RedisServer, job: Foreign, opened: Runner
) -> None:
    """With the expected number if lines are missing; without a lease, and after the end."""
    opened.append(1, "a")
    answers = [opened.append(5, "b"), opened.end(9)]
    other = Foreign(job.url, job.workflow_id, "job_2")
    ended = Runner(client, other)
    ended.open()
    ended.end(1)
    answers += [ended.append(1, "a"), Runner(client, other).open()]
    ask_all(redis_server.url, [("DEL", job.key.replace(":log", ":lease"))])
    answers += [opened.append(2, "b"), opened.append(2), opened.end(2)]

    reasons: list[dict[str, Any]] = [{"reason": "GAP", "expected": 2}] * 2 + [{"reason": "CLOSED"}] * 2
    reasons += [{"reason": "FENCED"}] * 3
    assert [(each.status_code, refusal(each)) for each in answers] == [(409, each) for each in reasons]


def test_a_store_that_refuses_writes_is_temporary(service: Service, redis_server: RedisServer, opened: Runner) -> None:
    """503 with Retry-After; the same request succeeds later."""
    redis_server.ask("CONFIG", "SET", "maxmemory", "1")
    try:
        response = opened.append(1, "a")
    finally:
        redis_server.ask("CONFIG", "SET", "maxmemory", "0")

    assert response.status_code == 503
    assert int(response.headers["Retry-After"]) > 0
    assert opened.append(1, "a").json() == {"next": 2}


# Malformed bodies


@pytest.mark.parametrize("inside", [b"[]", b"{}", b"1", b'""'])
def test_a_body_of_nothing_but_structure_is_not_parsed(runner: Runner, inside: bytes) -> None:
    """It would need a hundred times its size in memory."""
    body = b"[" + b",".join([inside] * 200_000) + b"]"
    response = runner.post_bytes("logs", gzip.compress(body), Content_Encoding="gzip")

    assert response.status_code == 400
    assert "around values" in response.json()["detail"]


# Bodies that are too long or badly encoded


def test_other_codings_types_and_methods_are_refused(client: httpx.Client, job: Foreign, runner: Runner) -> None:
    """The answer names the accepted coding, or the methods of all routes with the path."""
    for coding in ("br", "deflate", "zstd", "gzip, gzip"):
        response = runner.post_bytes("attempts", b"{}", Content_Encoding=coding)
        assert (coding, response.status_code, response.headers["Accept-Encoding"]) == (coding, 415, "gzip")
    for kind in ("text/plain", ""):
        assert runner.post_bytes("attempts", b"{}", Content_Type=kind).status_code == 415
    response = client.put(f"{job.path}/logs")
    assert response.status_code == 405
    assert {"GET", "POST"} <= set(response.headers["Allow"].replace(" ", "").split(","))


@pytest.mark.parametrize(
    "change",
    [
        lambda body: b"",
        lambda body: body,
        lambda body: gzip.compress(body)[:-1],
        lambda body: gzip.compress(body) + b"x",
        lambda body: gzip.compress(body) * 2,
        zlib.compress,
    ],
    ids=["empty", "plain", "cut", "more after it", "two members", "zlib"],
)
def test_a_body_that_is_not_one_gzip_member_is_refused(runner: Runner, change: Callable[[bytes], bytes]) -> None:
    """Even if it inflates to a valid body."""
    body = change(orjson.dumps({"token": "0" * 32}))
    assert runner.post_bytes("attempts", body, Content_Encoding="gzip").status_code == 400


def test_a_body_is_at_most_as_long_as_the_setting(opened: Runner) -> None:
    """To the byte: plain, chunked, and after decompression."""
    fitting = orjson.dumps(opened.lines(1, "a")).ljust(MAX_BODY)
    zipped = {"Content_Encoding": "gzip"}

    assert opened.post_bytes("logs", fitting).status_code == 200
    assert opened.post_bytes("logs", gzip.compress(fitting), **zipped).status_code == 200
    for response in (
        opened.post_bytes("logs", fitting + b" "),
        opened.post_bytes("logs", iter([fitting, b" "])),
        opened.post_bytes("logs", gzip.compress(fitting + b" "), **zipped),
    ):
        assert response.status_code == 413
        refusal(response)


def test_a_bomb_is_not_inflated(endpoint: Endpoint, service: Service, auth: dict[str, str], job: Foreign) -> None:
    """A body of 256 MiB is rejected after 8 MiB, and the worker does not grow by more."""
    bomb = gzip.compress(bytes(256 * 2**20), 1)
    pid = service.worker_pids()[0]
    before = peak_bytes(pid)

    with httpx.Client(base_url=endpoint.url, verify=endpoint.verify, headers=auth, timeout=10) as client:
        opened = Runner(client, job)
        assert opened.open().status_code == 200
        assert opened.post_bytes("logs", bomb, Content_Encoding="gzip").status_code == 413
    assert peak_bytes(pid) - before < 40 * 2**20
