"""The link from nginx to the service, or to the viewers, goes silent. Needs root."""

from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

import pytest

from chronoverse.joblog.model import JobRef
from chronoverse.web.guards.connection import USER_TIMEOUT_SECONDS
from tests.faults.emitter import line
from tests.faults.links import Links
from tests.faults.oracle import Printed, judge
from tests.faults.watching import SILENCE_SECONDS, Http2Watcher, Watcher
from tests.support.nginx import Nginx
from tests.support.servers import running
from tests.support.service import Service, serving
from tests.support.waiting import wait_until
from tests.web.routes.foreign import Foreign

#: Heartbeat interval, and nginx's timeout without a byte: four heartbeats, as shipped. In seconds.
HEARTBEAT_SECONDS: Final = 1
READ_SECONDS: Final = 4 * HEARTBEAT_SECONDS
#: Retransmissions until nginx's kernel gives up a viewer. Four take 6 s; the recommended 8 take 100 s.
RETRIES: Final = 4
GIVEN_UP_SECONDS: Final = 6.2
#: Tolerance of each limit on a busy machine, in seconds.
SLACK_SECONDS: Final = 8.0
#: Maximum interval of reading the service's metrics, in seconds. Each reading is work for the service.
METRICS_SECONDS: Final = 0.5
#: The links: nginx to the service, and to viewers.
SERVICE_LINK, VIEWER_LINK = 0, 1

pytestmark = pytest.mark.long


class SplitNetwork(NamedTuple):
    """nginx runs in its own network namespace. The service and all viewers reach it over ``links``."""

    links: Links
    service: Service
    nginx: Nginx


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SplitNetwork]:
    """One setup for both tests, which each end their link's faults."""
    directory = tmp_path_factory.mktemp("network")
    with (
        Links(2) as links,
        running(directory / "store") as store,
        serving(directory, store.url, heartbeat_seconds=HEARTBEAT_SECONDS, bind="0.0.0.0:0") as service,
    ):
        links.limit_tcp_retries(RETRIES)
        (directory / "nginx").mkdir()
        nginx = Nginx(
            directory / "nginx",
            [(links.addresses[SERVICE_LINK][0], service.port)],
            host=links.addresses[VIEWER_LINK][1],
            read_seconds=READ_SECONDS,
            command_prefix=links.command_prefix,
        )
        with nginx, pytest.MonkeyPatch.context() as patch:
            patch.setenv("SSL_CERT_FILE", str(nginx.certificate))
            yield SplitNetwork(links, service, nginx)


def add_lines(job: Foreign) -> None:
    """Appends the next 20 lines of writer ``a``."""
    job.lines(line("a", number) for number in range(job.last + 1, job.last + 21))


def start_watchers(network: SplitNetwork, job: Foreign) -> list[Watcher]:
    """Starts two viewers through nginx, and one that connects directly to the service. All have received all lines."""
    ref, token = JobRef(job.workflow_id, job.job_id), network.service.token()
    watchers = [
        Watcher(network.nginx.url, ref, token, network.nginx.verify),
        Http2Watcher(network.nginx.url, ref, token, network.nginx.verify),
        Watcher(network.service.url, ref, token),
    ]
    for each in watchers:
        each.start()
    wait_for_line(watchers, job.last)
    return watchers


def wait_for_line(watchers: Sequence[Watcher], number: int, seconds: float = SLACK_SECONDS) -> None:
    """Waits until all have received line ``number``."""
    wait_until(lambda: all(each.highest >= number for each in watchers), seconds, f"all see line {number}")


def finish(job: Foreign, watchers: Sequence[Watcher]) -> None:
    """Ends the job. Every viewer must receive the end, and every line once."""
    total = job.last
    job.end()
    for each in watchers:
        assert each.join(SILENCE_SECONDS + SLACK_SECONDS), each.errors
    views = {str(number): tuple(each.seen) for number, each in enumerate(watchers)}
    verdict = judge({"a": Printed(total, total)}, views, next(iter(views.values())))
    assert verdict.clean, verdict


def open_streams(service: Service) -> float:
    """The number of streams that the service has open."""
    return service.metric("chronoverse_streams_open")


def test_the_link_between_nginx_and_the_service_goes_silent(network: SplitNetwork) -> None:
    """The service and nginx each close the connection. Viewers reconnect when they can, and miss nothing."""
    job = Foreign(str(network.service.redis_url), "network", "silent-service")
    add_lines(job)
    watchers = start_watchers(network, job)
    through, direct = watchers[:2], watchers[2:]
    slow = 'chronoverse_streams_ended_total{reason="slow"}'
    with network.links.silent(SERVICE_LINK):
        add_lines(job)
        wait_for_line(direct, 40, 2)
        wait_until(lambda: all(each.connections > 1 for each in through), READ_SECONDS + SLACK_SECONDS, "nginx closes")
        bound = USER_TIMEOUT_SECONDS + HEARTBEAT_SECONDS
        wait_until(
            lambda: network.service.metric(slow) == 2, bound + SLACK_SECONDS, "the service closes", METRICS_SECONDS
        )
        assert open_streams(network.service) == 1
    wait_for_line(watchers, 40, SILENCE_SECONDS + SLACK_SECONDS)
    add_lines(job)
    finish(job, watchers)
    assert {error[:3] for each in through for error in each.errors if error[:3].isdigit()} <= {"502", "504"}
    assert direct[0].connections == 1


def test_the_link_between_nginx_and_its_viewers_goes_silent(network: SplitNetwork) -> None:
    """nginx's kernel gives up the viewers, and nginx then closes the service's streams.

    Only heartbeats are sent, which fill no buffer, so nginx itself does not detect that nobody reads.
    """
    job = Foreign(str(network.service.redis_url), "network", "silent-viewers")
    add_lines(job)
    watchers = start_watchers(network, job)
    left = 'chronoverse_streams_ended_total{reason="left"}'
    before = network.service.metric(left)
    with network.links.silent(VIEWER_LINK):
        bound = HEARTBEAT_SECONDS + GIVEN_UP_SECONDS
        wait_until(
            lambda: open_streams(network.service) == 1, bound + SLACK_SECONDS, "nginx has closed both", METRICS_SECONDS
        )
        assert network.service.metric(left) == before + 2
        add_lines(job)
    wait_for_line(watchers, 40, SILENCE_SECONDS + SLACK_SECONDS)
    finish(job, watchers)
    assert watchers[2].connections == 1
