"""Row 12 of the matrix through nginx: a link that goes silent, behind nginx or in front of it. Needs root."""

import time
from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

import pytest

from chronoverse.joblog.values import JobRef
from chronoverse.web.streaming.connection import USER_TIMEOUT_MS
from tests.faults.emitter import line
from tests.faults.oracle import Printed, judge
from tests.faults.testbed import environment
from tests.faults.watching import SILENCE_SECONDS, Http2Watcher, Watcher
from tests.support.links import Links
from tests.support.nginx import Nginx
from tests.support.servers import running
from tests.support.service import Service, serving
from tests.support.waiting import wait_until
from tests.web.routes.foreign import Foreign

#: Seconds between heartbeats, and for which nginx waits for one of four, as it is shipped.
HEARTBEAT_SECONDS: Final = 1
READ_SECONDS: Final = 4 * HEARTBEAT_SECONDS
#: Repetitions after which nginx's kernel gives up a viewer: that takes 6 s, 100 s of the 8 that we recommend.
RETRIES: Final = 4
GIVEN_UP_SECONDS: Final = 6.2
#: Seconds beyond a bound, on a machine that does other things too.
SLACK_SECONDS: Final = 8.0
#: The links: nginx to the service, and to viewers.
BEHIND, BEFORE = 0, 1

pytestmark = pytest.mark.long


class Apart(NamedTuple):
    """nginx in a namespace, the service and all viewers on the near side of its links."""

    links: Links
    service: Service
    nginx: Nginx


@pytest.fixture(scope="module")
def apart(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Apart]:
    """For both tests; each leaves the links as they were."""
    directory = tmp_path_factory.mktemp("apart")
    with (
        Links(2) as links,
        running(directory / "store") as store,
        serving(directory, store.url, heartbeat_seconds=HEARTBEAT_SECONDS, bind="0.0.0.0:0") as service,
    ):
        links.limit_tcp_retries(RETRIES)
        (directory / "nginx").mkdir()
        nginx = Nginx(
            directory / "nginx",
            [(links.addresses[BEHIND][0], service.port)],
            host=links.addresses[BEFORE][1],
            read_seconds=READ_SECONDS,
            inside=links.inside,
        )
        with nginx, environment(SSL_CERT_FILE=str(nginx.certificate)):
            yield Apart(links, service, nginx)


def watch(apart: Apart, job: Foreign) -> list[Watcher]:
    """Two viewers through nginx, and one who comes to the service itself; all are there."""
    ref, token = JobRef(job.workflow_id, job.job_id), apart.service.token()
    watchers = [
        Watcher(apart.nginx.url, ref, token, apart.nginx.verify),
        Http2Watcher(apart.nginx.url, ref, token, apart.nginx.verify),
        Watcher(apart.service.url, ref, token),
    ]
    for each in watchers:
        each.start()
    seen(watchers, job.last)
    return watchers


def prove(job: Foreign, count: int) -> None:
    """Adds the next ``count`` lines of writer ``a``."""
    job.lines(line("a", number) for number in range(job.last + 1, job.last + count + 1))


def seen(watchers: Sequence[Watcher], number: int, seconds: float = SLACK_SECONDS) -> None:
    """Waits until all have seen line ``number``."""
    wait_until(lambda: all(each.highest >= number for each in watchers), seconds, f"all see line {number}")


def all_complete(job: Foreign, watchers: Sequence[Watcher]) -> None:
    """The job ends; everybody has every line once, and is told so."""
    total = job.last
    job.end()
    for each in watchers:
        assert each.join(SILENCE_SECONDS + SLACK_SECONDS), each.troubles
    views = {str(number): tuple(each.seen) for number, each in enumerate(watchers)}
    verdict = judge({"a": Printed(total, total)}, views, next(iter(views.values())))
    assert verdict.clean, verdict


def streams(service: Service) -> float:
    """Those that it has open."""
    return service.metric("chronoverse_streams_open")


def test_row_12_the_link_between_nginx_and_the_service_goes_silent(apart: Apart) -> None:
    """The service gives up nginx, and nginx the service; viewers come back when they can, and miss nothing."""
    job = Foreign(str(apart.service.redis_url), "apart", "behind")
    prove(job, 20)
    watchers = watch(apart, job)
    through, direct = watchers[:2], watchers[2:]
    slow = 'chronoverse_streams_ended_total{reason="slow"}'
    with apart.links.silent(BEHIND):
        began = time.monotonic()
        prove(job, 20)
        seen(direct, 40, 2)
        wait_until(lambda: all(each.connections > 1 for each in through), READ_SECONDS + SLACK_SECONDS, "nginx lets go")
        bound = USER_TIMEOUT_MS / 1000 + HEARTBEAT_SECONDS
        wait_until(lambda: apart.service.metric(slow) == 2, bound + SLACK_SECONDS, "the service lets go")
        print(f"kept for {time.monotonic() - began:.1f} s")
        assert streams(apart.service) == 1
    seen(watchers, 40, SILENCE_SECONDS + SLACK_SECONDS)
    prove(job, 20)
    all_complete(job, watchers)
    assert {trouble[:3] for each in through for trouble in each.troubles if trouble[:3].isdigit()} <= {"502", "504"}
    assert direct[0].connections == 1


def test_row_12_the_link_between_nginx_and_its_viewers_goes_silent(apart: Apart) -> None:
    """Heartbeats alone fill no buffer: nginx's kernel gives the viewers up, and with them the service's streams go."""
    job = Foreign(str(apart.service.redis_url), "apart", "before")
    prove(job, 20)
    watchers = watch(apart, job)
    left = 'chronoverse_streams_ended_total{reason="left"}'
    before = apart.service.metric(left)
    with apart.links.silent(BEFORE):
        began = time.monotonic()
        bound = HEARTBEAT_SECONDS + GIVEN_UP_SECONDS
        wait_until(lambda: streams(apart.service) == 1, bound + SLACK_SECONDS, "nginx has let go of both")
        print(f"kept for {time.monotonic() - began:.1f} s")
        assert apart.service.metric(left) == before + 2
        prove(job, 20)
    seen(watchers, 40, SILENCE_SECONDS + SLACK_SECONDS)
    all_complete(job, watchers)
    assert watchers[2].connections == 1
