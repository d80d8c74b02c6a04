"""The HTTP log writer: with the real service, behind a fault proxy, and with scripted services with unusual answers."""

import re
import secrets
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Final

import orjson
import pytest

from chronoverse.auth.rights import READ
from chronoverse.client.service_connection import RequestFailed
from chronoverse.errors import (
    BadRequest,
    ChronoverseError,
    Closed,
    CorruptLog,
    EarlierService,
    Fenced,
    Forbidden,
    Held,
    JobNotFound,
    LabelSet,
    NotALog,
    NotDurable,
    QuotaReached,
    SequenceGap,
    StaleToken,
    StoreUnavailable,
    TooFast,
    Unauthorized,
    Unreachable,
)
from chronoverse.joblog.entries import read_entries
from chronoverse.joblog.model import Attempt, End, Gap, JobRef, Line, LineRun, Status, runs_of
from chronoverse.runner.http_log_writer import GZIP_BYTES, READ_SECONDS, HttpLogWriter
from chronoverse.store import Store
from tests.support.certificates import Authority
from tests.support.faultproxy import FaultProxy
from tests.support.jobs import key, read_end, read_lines, read_log
from tests.support.scripted import ScriptedService, answer, problem
from tests.support.servers import RedisServer, running
from tests.support.service import Service, serving

if TYPE_CHECKING:
    pass

#: Time limit of prompt events on a busy machine, in seconds.
SOON: Final = 20.0
TIMESTAMP: Final = "2026-03-03T10:00:05.123Z"
SCRIPTED: Final = JobRef("wf", "job")


@pytest.fixture(scope="module")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with running(tmp_path_factory.mktemp("store")) as server:
        yield server


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory, redis_server: RedisServer) -> Iterator[Service]:
    with serving(tmp_path_factory.mktemp("service"), redis_server.url, max_body_bytes=65_536) as service:
        yield service


@pytest.fixture
def writer(service: Service) -> Iterator[HttpLogWriter]:
    with closing(HttpLogWriter(service.url, service.token())) as writer:
        yield writer


@pytest.fixture
def proxy(service: Service) -> Iterator[FaultProxy]:
    """A proxy in front of the service."""
    with FaultProxy((service.host, service.port)) as proxy:
        yield proxy


@pytest.fixture
def job() -> JobRef:
    """The test's own job."""
    return JobRef("wf_http", f"job-{secrets.token_hex(6)}")


def lines(first: int, *messages: str) -> list[Line]:
    return [Line(number, TIMESTAMP, message, "stdout") for number, message in enumerate(messages, first)]


def token() -> str:
    return secrets.token_hex(16)


def test_writes_are_idempotent(writer: HttpLogWriter, redis_server: RedisServer, job: JobRef) -> None:
    """Open, append, renew and finish take effect once, however often they are sent."""
    chosen = token()
    attempt = writer.open(job, chosen)
    assert attempt == writer.open(job, chosen) == Attempt(job, chosen, 1, 1)

    sent = [*lines(1, "a", "\0é\U0001f642"), Line(3, TIMESTAMP, "half", "stderr", True)]
    assert writer.append(attempt, sent) == writer.append(attempt, sent) == 4
    redis_server.ask("PEXPIRE", key("lease", job), 1000)
    writer.renew(attempt)
    assert redis_server.ask("PTTL", key("lease", job)) > 20_000
    for _ in range(2):
        writer.finish(attempt, Status.FAILED, 3, 5, 4)

    assert read_log(redis_server, job)[0] == [
        {"timestamp": TIMESTAMP, "message": "a", "stream": "stdout"},
        {"timestamp": TIMESTAMP, "message": "\0é\U0001f642", "stream": "stdout"},
        {"timestamp": TIMESTAMP, "message": "half", "stream": "stderr", "partial": "1"},
    ]
    end = read_end(redis_server, job)
    assert (end["status"], end["exit_code"], end["lines"], end["dropped"]) == ("FAILED", "3", "3", "5")


def test_the_stores_rejections_are_raised(writer: HttpLogWriter, redis_server: RedisServer, job: JobRef) -> None:
    """Each as the store's own error; a gap includes its number."""
    attempt = writer.open(job, token())
    writer.append(attempt, lines(1, "a"))
    with pytest.raises(SequenceGap) as gap:
        writer.append(attempt, lines(7, "b"))
    assert gap.value.expected == 2
    with pytest.raises(Held):
        writer.open(job, token())
    redis_server.ask("DEL", key("lease", job))
    for ask in (lambda: writer.append(attempt, lines(2, "b")), lambda: writer.renew(attempt)):
        with pytest.raises(Fenced):
            ask()
    again = writer.open(job, token())
    writer.finish(again, Status.COMPLETED, 0, 0, 2)
    with pytest.raises(Closed):
        writer.open(job, token())
    tainted, wrong = JobRef("wf_http", f"t-{token()}"), JobRef("wf_http", f"w-{token()}")
    redis_server.ask("XADD", key("log", tainted), "5-1", "message", "?")
    redis_server.ask("SET", key("log", wrong), "?")
    for refused, error in ((tainted, CorruptLog), (wrong, NotALog)):
        with pytest.raises(error):
            writer.open(refused, token())


@pytest.mark.parametrize("way", ["store", "service"])
def test_the_log_reports_lost_numbers_and_continues(
    way: str, writer: HttpLogWriter, redis_server: RedisServer, job: JobRef
) -> None:
    """The request is atomic and idempotent. A log that lost everything begins with lost lines."""
    with closing(Store(redis_server.url)) as store:
        target = store if way == "store" else writer
        attempt = target.open(job, token())
        target.append_lost(attempt, 1, 2)
        target.append(attempt, lines(3, "3"))
        with pytest.raises(SequenceGap) as gap:
            target.append_lost(attempt, 6, 9)
        assert gap.value.expected == 4
        assert target.append_lost(attempt, 4, 9) == target.append_lost(attempt, 4, 9) == 10
        with pytest.raises(SequenceGap):
            target.append(attempt, lines(11, "11", "12"))
        assert target.append(attempt, lines(8, "8", "9", "10", "11")) == 12
        with pytest.raises(Fenced):
            target.append_lost(attempt._replace(token=token()), 12, 13)
        target.finish(attempt, Status.COMPLETED, 0, 0, 12)
    *entries, end = read_entries(redis_server.ask("XRANGE", key("log", job), "-", "+"), 0)
    shape = [entry.sequence_num if isinstance(entry, Line) else entry for entry in entries]
    assert shape == [Gap(1, 2, "lost"), 3, Gap(4, 9, "lost"), 10, 11]
    assert isinstance(end, End)
    assert end.lines == 11


def test_an_insufficient_token_is_rejected(service: Service, job: JobRef) -> None:
    """No token, a read-only token, and a token for another workflow. To a runner, a wrong path looks like the last."""
    for shown, error, reason in (
        (None, Unauthorized, "requires a token: set CHRONOVERSE_TOKEN"),
        (service.token(scopes=[READ]), Forbidden, "lacks the scope logs:write"),
        (
            service.token("another"),
            JobNotFound,
            f"the token is not for the workflow {job.workflow_id} at {service.url}",
        ),
    ):
        match = re.escape(reason)
        with closing(HttpLogWriter(service.url, shown)) as writer, pytest.raises(error, match=match) as raised:
            writer.open(job, token())
        assert type(raised.value) is error
    url = f"{service.url}/logs"
    hint = re.escape(f"; is {url} the right address?")
    with closing(HttpLogWriter(url, service.token())) as writer, pytest.raises(JobNotFound, match=hint):
        writer.open(job, token())


def test_a_service_whose_token_is_missing_is_unavailable(service: Service, job: JobRef) -> None:
    """An embedded server's service has no token while it restarts. A rejection would stop publishing permanently.

    A twin has had no token yet.
    """
    made = iter([service.token(), None, None, service.token(), service.token()])
    with closing(HttpLogWriter(service.url, lambda: next(made))) as writer, closing(writer.twin()) as twin:
        attempt = writer.open(job, token())
        with pytest.raises(StoreUnavailable):
            writer.renew(attempt)
        with pytest.raises(Unauthorized, match="requires a token") as refused:
            twin.renew(attempt)
        assert type(refused.value) is Unauthorized
        writer.renew(attempt)
        twin.renew(attempt)


def test_too_large_a_body_is_split_in_halves(writer: HttpLogWriter, redis_server: RedisServer, job: JobRef) -> None:
    """Recursively, if necessary, and within runs. A single line that is too long is rejected."""
    attempt = writer.open(job, token())
    messages = [f"{number} " + "x" * 10_000 for number in range(30)]
    assert writer.append(attempt, lines(1, *messages)) == 31
    assert read_lines(redis_server, job) == messages
    with pytest.raises(BadRequest):
        writer.append(attempt, lines(31, "\0" * 60_000))


def test_a_service_without_an_append_only_file_is_not_durable(service: Service, job: JobRef) -> None:
    """A durable writer's probe raises NotDurable, with a message that says what to do."""
    assert HttpLogWriter(service.url).durability_probe() is None
    with closing(HttpLogWriter(service.url, service.token(), durable=True)) as writer:
        attempt = writer.open(job, token())
        probe = writer.durability_probe()
        assert probe is not None
        with pytest.raises(NotDurable, match="CHRONOVERSE_DURABILITY=acked"):
            probe.confirm(attempt)
        writer.finish(attempt, Status.COMPLETED, 0, 0, 1)
        # The end of one job implies nothing about another that the same writer publishes.
        other = writer.open(job._replace(job_id=f"{job.job_id}-other"), token())
        with pytest.raises(NotDurable):
            probe.confirm(other)


@pytest.mark.parametrize(
    ("said", "error"),
    [
        (problem("503 Service Unavailable", "the store is away"), StoreUnavailable),
        (problem("500 Internal Server Error", "?"), StoreUnavailable),
        (problem("429 Too Many Requests", "?", Retry_After="3"), TooFast),
        (problem("408 Request Timeout", "?"), StoreUnavailable),
        (answer("502 Bad Gateway", b"<html>", Content_Type="text/html"), StoreUnavailable),
        (answer("200 OK", b"<html>", Content_Type="text/html"), StoreUnavailable),
        (answer("200 OK", b"[]"), StoreUnavailable),
        (answer("200 OK", b'{"attempt":1,"next":true}'), StoreUnavailable),
        (answer("200 OK", b'{"attempt"')[:-4], StoreUnavailable),
        (problem("409 Conflict", "something new"), ChronoverseError),
        (answer("302 Found", Location="https://example.com/"), ChronoverseError),
        (problem("400 Bad Request", "no"), BadRequest),
        (problem("415 Unsupported Media Type", "no"), BadRequest),
        (problem("404 Not Found", "no"), JobNotFound),
        (problem("401 Unauthorized", "expired"), StaleToken),
    ],
)
def test_every_answer_of_a_service_becomes_one_of_our_errors(said: bytes, error: type[ChronoverseError]) -> None:
    """The error tells whether and when to retry: a function can return another token."""
    with (
        ScriptedService(said) as service,
        closing(HttpLogWriter(service.url, lambda: "a.b.c")) as writer,
        pytest.raises(ChronoverseError) as raised,
    ):
        writer.open(SCRIPTED, token())
    assert type(raised.value) is error
    assert getattr(raised.value, "seconds", 3) == 3
    assert str(raised.value).startswith("http://127.0.0.1:") or not said.startswith(b"HTTP/1.1 50")
    assert service.requests[0].headers["authorization"] == "Bearer a.b.c"


@pytest.mark.parametrize(
    "status", ["404 Not Found", "403 Forbidden", "401 Unauthorized", "400 Bad Request", "302 Found"]
)
def test_a_proxys_refusal_is_an_outage_only_after_an_answer(status: str) -> None:
    """A proxy refuses requests while the service is being deployed. Before any answer, the address may be wrong."""
    refused, opened = answer(status, b"404 page not found"), answer("200 OK", b'{"attempt":1,"next":1}')
    with ScriptedService(refused, opened, refused, refused) as service, closing(HttpLogWriter(service.url)) as writer:
        where = re.escape(f"; is {service.url} the right address?") if status[:3] != "401" else "requires a token"
        with pytest.raises(ChronoverseError, match=where) as raised:
            writer.open(SCRIPTED, token())
        assert not isinstance(raised.value, StoreUnavailable)
        attempt = writer.open(SCRIPTED, token())
        for request in (writer.renew, lambda attempt: writer.append_ahead(attempt, 1, runs_of(lines(1, "x")))()):
            with pytest.raises(StoreUnavailable):
                request(attempt)


def test_a_service_that_does_not_answer_is_unavailable(service: Service, proxy: FaultProxy, job: JobRef) -> None:
    """The connection is refused, lost, or silent."""
    with closing(HttpLogWriter(proxy.http_url, service.token())) as writer:
        attempt = writer.open(job, token())
        proxy.stall()
        began = time.monotonic()
        with (
            closing(HttpLogWriter(proxy.http_url, service.token(), read_seconds=0.2)) as impatient,
            pytest.raises(StoreUnavailable),
        ):
            impatient.renew(attempt)
        assert time.monotonic() - began < READ_SECONDS
        proxy.heal()
        writer.renew(attempt)
        proxy.refuse()
        proxy.cut()
        with pytest.raises(StoreUnavailable, match="is not responding"):
            writer.renew(attempt)
        proxy.heal()
        writer.renew(attempt)


@pytest.mark.parametrize("was_trusted", [False, True])
def test_an_untrusted_certificate_is_an_outage_only_after_a_trusted_one(was_trusted: bool, tmp_path: Path) -> None:
    """That one expired, and will be renewed. Otherwise, a retry would not help."""
    ours, other = Authority(tmp_path / "ours"), Authority(tmp_path / "other")
    context = (ours if was_trusted else other).context("server")
    opened = answer("200 OK", b'{"attempt":1,"next":1}')
    with (
        ScriptedService(opened, opened, tls=context) as service,
        closing(HttpLogWriter(service.url, ca_file=ours.path)) as writer,
    ):
        if was_trusted:
            writer.open(SCRIPTED, token())
            certificate = other.issue("server")
            context.load_cert_chain(certificate, certificate.with_suffix(".key"))
        with pytest.raises(ChronoverseError, match="is not trusted") as raised:
            writer.open(SCRIPTED, token())
    assert type(raised.value) is (StoreUnavailable if was_trusted else Unreachable)


def test_an_outage_of_the_issuer_is_an_outage() -> None:
    """A token that cannot be renewed now is a reason to retry, however lines are sent."""

    def renew() -> str:
        raise RequestFailed("the issuer does not answer")

    attempt, runs = Attempt(SCRIPTED, token(), 1, 1), runs_of(lines(1, "x"))
    with closing(HttpLogWriter("http://127.0.0.1", renew)) as writer:
        for request in (writer.append_runs, lambda *batch: writer.append_ahead(*batch)()):
            with pytest.raises(StoreUnavailable, match="the issuer does not answer"):
                request(attempt, 1, runs)


def test_only_long_bodies_are_compressed() -> None:
    """Neither a body that fits into one packet nor one for this machine."""
    appended = answer("200 OK", b'{"next":2}')
    attempt = Attempt(SCRIPTED, token(), 1, 1)
    with ScriptedService(appended, appended, appended) as service:
        # Linux routes this address to the local machine, which the writer does not know.
        far = service.url.replace("127.0.0.1", "0.0.0.0")
        with closing(HttpLogWriter(far)) as writer, closing(HttpLogWriter(service.url)) as near:
            writer.append(attempt, lines(1, "short"))
            writer.append(attempt, lines(1, "x" * GZIP_BYTES))
            near.append(attempt, lines(1, "x" * GZIP_BYTES))
    assert [asked.headers.get("content-encoding") for asked in service.requests] == [None, "gzip", None]


def test_a_quota_that_is_reached_in_one_half_does_not_stop_the_other() -> None:
    quota = [orjson.dumps({"title": "Conflict", "reason": "quota", "expected": number}) for number in (2, 3)]
    refused = [answer("409 Conflict", body, Content_Type="application/problem+json") for body in quota]
    with (
        ScriptedService(problem("413 Content Too Large", "?"), *refused) as service,
        closing(HttpLogWriter(service.url)) as writer,
        pytest.raises(QuotaReached) as raised,
    ):
        writer.append(Attempt(SCRIPTED, token(), 1, 1), lines(1, "x", "y"))
    assert raised.value.expected == 3


def test_only_the_end_of_a_job_confirms_all_lines_of_it() -> None:
    """After that of an attempt, the next one writes more."""
    ended, safe = answer("204 No Content"), answer("200 OK", b'{"next":3,"safe":true}')
    attempt = Attempt(SCRIPTED, token(), 1, 1)
    with ScriptedService(ended, safe, ended) as service, closing(HttpLogWriter(service.url, durable=True)) as writer:
        writer.finish(attempt, Status.PENDING, 0, 0, 9)
        assert writer.confirm(attempt, may_sync=True) == 3
        writer.finish(attempt, Status.COMPLETED, 0, 0, 9)
        assert writer.confirm(attempt, may_sync=True) == 10


def test_a_service_of_an_earlier_version_receives_each_line_as_an_object() -> None:
    """It rejects runs. That is raised once; the lines are then sent in the old form, at most 500 at a time."""
    refused, appended = problem("400 Bad Request", "runs: Unknown field."), answer("200 OK", b'{"next":502}')
    attempt, runs = Attempt(SCRIPTED, token(), 1, 1), runs_of(lines(1, *["x"] * 501))
    with (
        ScriptedService(refused, refused, appended, appended, refused) as service,
        closing(HttpLogWriter(service.url, durable=True)) as writer,
    ):
        assert writer.batch_lines == 5000
        with pytest.raises(EarlierService, match="an earlier version"):
            writer.append_ahead(attempt, 1, runs)()
        assert (writer.batch_lines, writer.append_ahead(attempt, 1, runs)()) == (500, 502)
        with pytest.raises(NotDurable, match="an earlier version"):
            writer.confirm(attempt, may_sync=True)
    sizes = [int(asked.headers["content-length"]) for asked in service.requests]
    assert sizes[0] == sizes[1] < 3000 < 10_000 < sizes[3] < sizes[2]


def test_a_service_of_an_earlier_version_refuses_all_labels() -> None:
    with (
        ScriptedService(problem("400 Bad Request", "labels: Unknown field.")) as service,
        closing(HttpLogWriter(service.url)) as writer,
        pytest.raises(LabelSet, match=r"^the service does not accept labels \(an earlier version\?\): ") as raised,
    ):
        writer.open(SCRIPTED, token(), labels=(("branch", "main"),))
    assert raised.value.keys == ("branch",)


def test_appends_are_pipelined(service: Service, job: JobRef, proxy: FaultProxy) -> None:
    """In order, on one connection. After a disconnect they are sent again, and no line is duplicated."""
    with closing(HttpLogWriter(proxy.http_url, service.token())) as writer:
        attempt = writer.open(job, token())
        ahead = [writer.append_ahead(attempt, first, runs_of(lines(first, "x", "y"))) for first in (1, 3, 5)]
        assert [receive() for receive in ahead] == [3, 5, 7]
        proxy.drop_reply()
        ahead = [writer.append_ahead(attempt, first, runs_of(lines(first, "x", "y"))) for first in (7, 9)]
        # The service may already have the second one when the first is sent again.
        assert [receive() for receive in ahead] in ([9, 11], [11, 11])
        assert proxy.cuts == 1
        skipped, gap = (writer.append_ahead(attempt, first, runs_of(lines(first, "z"))) for first in (11, 15))
        with pytest.raises(SequenceGap):
            # Nobody has consumed the answer before this one, so it is sent again.
            gap()
        assert skipped() == 12


def test_threads_share_a_writer(writer: HttpLogWriter) -> None:
    """While one waits for answers, another thread's append uses another connection, and so does a twin's."""
    runs = [LineRun(TIMESTAMP, "stdout", False, [b"one"])]
    refs = [JobRef("wf_http", f"job-{secrets.token_hex(6)}") for _ in range(3)]
    one, other, third = (writer.open(ref, token()) for ref in refs)
    waiting = writer.append_ahead(one, 1, runs)
    with ThreadPoolExecutor(1) as pool, closing(writer.twin()) as twin:
        of_twin = twin.append_ahead(third, 1, runs)
        assert pool.submit(lambda: writer.append_ahead(other, 1, runs)()).result(SOON) == 2
        pipeline = writer._service._pipeline
        assert of_twin() == waiting() == 2
        assert pool.submit(lambda: writer.append_ahead(other, 2, runs)()).result(SOON) == 3
    assert writer._service._pipeline is pipeline
