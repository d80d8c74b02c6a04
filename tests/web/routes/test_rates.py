"""The rate limit for publishing of a token, with the time of a retry.

Other requests of the token are not limited.
"""

import time
from collections.abc import Iterator
from contextlib import closing
from typing import Final

import httpx
import pytest

from chronoverse.auth.tokens import READ, WRITE, mint
from tests.support.nginx import Nginx
from tests.support.servers import RedisServer
from tests.support.service import SECRET, Service, serving
from tests.support.waiting import deadline, wait_until
from tests.web.otlp.messages import record, request
from tests.web.routes.foreign import Foreign
from tests.web.routes.test_publish import Runner, refusal
from tests.web.routes.wire import Endpoint

#: Bytes per second. A burst can have ten seconds' worth.
RATE: Final = 65_536
LINE: Final = "x" * 60_000


@pytest.fixture(scope="module")
def bounded(tmp_path_factory: pytest.TempPathFactory, redis_server: RedisServer) -> Iterator[Service]:
    """A service with a low rate limit for publishing."""
    with serving(tmp_path_factory.mktemp("bounded"), redis_server.url, max_publish_rate_per_token=RATE) as service:
        yield service


@pytest.fixture(scope="module", params=["direct", pytest.param("nginx", marks=pytest.mark.long)])
def endpoint(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, bounded: Service
) -> Iterator[Endpoint]:
    """The service itself, and behind nginx."""
    if request.param == "direct":
        yield bounded
    else:
        with Nginx(tmp_path_factory.mktemp("nginx"), [(bounded.host, bounded.port)]) as nginx:
            yield nginx


def test_publishing_too_fast_is_rejected_with_a_time_to_retry(
    request: pytest.FixtureRequest, endpoint: Endpoint, bounded: Service, job: Foreign
) -> None:
    """429. The token can still renew the lease and end the job, and other tokens do not wait."""
    name, counted = request.node.callspec.id, 'chronoverse_publish_answers_total{answer="TOO_FAST",operation="append"}'

    def client(subject: str) -> httpx.Client:
        headers = {"Authorization": f"Bearer {mint(SECRET, subject, (READ, WRITE), ('*',), 600, time.time())}"}
        return httpx.Client(base_url=endpoint.url, verify=endpoint.verify, headers=headers, timeout=10)

    before = bounded.metric(counted)
    with closing(client(f"flood-{name}")) as theirs, closing(client(f"other-{name}")) as others:
        runner, number = Runner(theirs, job), 1
        assert runner.open().status_code == 200
        in_time, began = deadline(30, "an append is refused"), time.monotonic()
        while (response := runner.append(number, LINE)).status_code == 200 and in_time():
            number += 1
        meanwhile = (time.monotonic() - began) * RATE / len(LINE)
        assert runner.append(number).json() == {"next": None}
        other = Runner(others, job.sibling("other"))
        assert other.open().status_code == 200
        assert other.append(1, LINE).status_code == 200

        assert response.status_code == 429
        assert refusal(response) == {}
        assert 10 <= number - 1 <= 12 + meanwhile
        wait = int(response.headers["Retry-After"])
        assert 1 <= wait <= 2
        wait_until(lambda: runner.append(number, LINE).status_code == 200, wait + 10, "it may publish after that time")
        assert runner.end(number + 1).status_code == 204
    assert bounded.metric(counted) > before


def test_records_over_the_rate_limit_are_rejected(endpoint: Endpoint, job: Foreign) -> None:
    """Records that were appended before are counted. The first request over the limit is rejected as a whole."""
    token = mint(SECRET, f"records-{endpoint.url}", (READ, WRITE), ("*",), 600, time.time())
    headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/x-protobuf"}
    names = {"service.name": job.workflow_id, "service.instance.id": job.job_id}
    with httpx.Client(base_url=endpoint.url, verify=endpoint.verify, headers=headers, timeout=10) as client:
        answers, in_time, began = list[httpx.Response](), deadline(30, "records are refused"), time.monotonic()
        while in_time() and (not answers or answers[-1].status_code == 200):
            body = request(names, *[record(f"{len(answers)} {LINE}")] * 4).SerializeToString()
            answers.append(client.post("/v1/logs", content=body))
        meanwhile = (time.monotonic() - began) * RATE / len(LINE)
        assert answers[-1].status_code == 429
        assert int(answers[-1].headers["Retry-After"]) >= 1
        accepted = 4 * (len(answers) - 1)
        assert 10 <= accepted <= 16 + meanwhile
        assert len(client.get(f"{job.path}/logs/raw?format=jsonl").content.splitlines()) == accepted
