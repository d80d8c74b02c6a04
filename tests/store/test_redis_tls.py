"""TLS with certificates: on one server, behind Sentinels and in a Cluster."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

import pytest

from chronoverse.errors import StoreUnavailable
from chronoverse.joblog.model import JobRef, LineRun
from chronoverse.store import Store
from tests.conftest import binary
from tests.support.bench import JOB, NOW, make_lines
from tests.support.certificates import Authority
from tests.support.fleets import Cluster, SentinelFleet, node
from tests.support.ports import free_ports
from tests.support.waiting import wait_until

#: Time limit of a failover on a busy machine, in seconds.
FAILOVER_SECONDS: Final = 20.0


class TlsCertificates:
    """Certificates for TLS-only Redis servers and their clients, issued by one authority."""

    def __init__(self, directory: Path) -> None:
        self.authority = Authority(directory)
        self._server, self._client = self.authority.issue("server"), self.authority.issue("client")

    @property
    def options(self) -> tuple[str, ...]:
        """Options of a TLS-only server, including its connections to other servers."""
        return (
            *("--tls-cert-file", str(self._server), "--tls-key-file", str(self._server.with_suffix(".key"))),
            *("--tls-ca-cert-file", str(self.authority.path), "--tls-replication", "yes", "--tls-cluster", "yes"),
        )

    def query(self, ca: Path | None = None, client: bool = True) -> str:
        """The query of a store's URL, by default with our authority and a client certificate."""
        own = f"&ssl_certfile={self._client}&ssl_keyfile={self._client.with_suffix('.key')}" if client else ""
        return f"?ssl_ca_certs={ca or self.authority.path}{own}"


class Secured(NamedTuple):
    """A TLS-only store that requires client certificates. ``url`` has no query."""

    url: str
    certificates: TlsCertificates
    fleet: SentinelFleet | Cluster | None = None

    def store(self, prefix: str, ca: Path | None = None, client: bool = True) -> Store:
        """A store that trusts ``ca`` (by default our authority), with or without a client certificate."""
        return Store(self.url + self.certificates.query(ca, client), prefix=prefix)


FLEETS: Final[dict[str, type[SentinelFleet | Cluster]]] = {"Sentinels": SentinelFleet, "Cluster": Cluster}


@pytest.fixture(scope="module", params=["one server", "Sentinels", pytest.param("Cluster", marks=pytest.mark.long)])
def secured(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Secured]:
    certificates = TlsCertificates(tmp_path_factory.mktemp("certificates"))
    directory, server = tmp_path_factory.mktemp("secured"), binary("redis-server")
    if request.param == "one server":
        (port,) = free_ports(1)
        with node(directory, port, binary=server, tls=certificates.options):
            yield Secured(f"rediss://127.0.0.1:{port}", certificates)
    else:
        with FLEETS[request.param](directory, binary=server, tls=certificates.options) as fleet:
            yield Secured(fleet.url, certificates, fleet)


def publish_and_read(store: Store, job: JobRef = JOB) -> None:
    """Uses every kind of connection of a store."""
    attempt = store.open(job, "token")
    assert store.append_runs(attempt, attempt.next, [LineRun(NOW, "stdout", False, [b"a line"])]) == attempt.next + 1
    reader = store.live_reader(1)
    reader.watch(job, 0)
    wait_until(lambda: [found for found, _, _ in reader.read(10)] == [job], 5, "the line is read")
    reader.close()
    assert [entry_id for entry_id, _ in store.read(job, attempt.next - 1, 10)] == [b"%d-0" % attempt.next]
    assert store.get_job(job)


def test_a_client_with_a_certificate_is_accepted(secured: Secured, prefix: str) -> None:
    """On every connection to every server."""
    workflows = [JOB.workflow_id]
    if isinstance(secured.fleet, Cluster):
        workflows = [secured.fleet.workflow(number) for number in secured.fleet.masters()]
    with contextlib.closing(secured.store(prefix)) as store:
        store.ping()
        for workflow_id in workflows:
            publish_and_read(store, JobRef(workflow_id, "job_1"))


@pytest.mark.parametrize("missing", ["client", "authority", "TLS"])
def test_a_connection_without_trust_is_refused(secured: Secured, prefix: str, tmp_path: Path, missing: str) -> None:
    """The client has no certificate, does not trust the server's authority, or does not use TLS."""
    other_authority = Authority(tmp_path).path if missing == "authority" else None
    store = secured.store(prefix, other_authority, client=missing != "client")
    if missing == "TLS":
        store = Store(secured.url.replace("rediss", "redis"), prefix=prefix)
    with contextlib.closing(store), pytest.raises(StoreUnavailable):
        store.ping()


@pytest.mark.parametrize("secured", ["Cluster"], indirect=True)
def test_a_slot_moves_between_servers_with_tls(secured: Secured, prefix: str) -> None:
    """Connections to a node that ASK or MOVED names use TLS, too."""
    fleet = secured.fleet
    assert isinstance(fleet, Cluster)
    source, target = fleet.masters()[:2]
    job = JobRef(fleet.workflow(source, "moving"), "job_1")
    with contextlib.closing(secured.store(prefix)) as store:
        attempt = store.open(job, "token")
        store.append(attempt, make_lines(1, 1))
        slot = fleet.begin_move(job.workflow_id, source, target)
        fleet.move_keys(slot, source, target)
        assert store.append(attempt, make_lines(2, 1)) == 3
        fleet.end_move(slot, source, target)
        assert store.append(attempt, make_lines(3, 1)) == 4
    assert fleet.owner(job.workflow_id) == target


@pytest.mark.long
@pytest.mark.parametrize("secured", ["Sentinels", "Cluster"], indirect=True)
def test_a_failover_with_tls(secured: Secured, prefix: str) -> None:
    """The new master has a certificate of the same authority, and accepts ours."""
    fleet, job = secured.fleet, JOB
    assert fleet is not None
    if isinstance(fleet, Cluster):
        lost, _ = fleet.pair
        server, job = fleet.servers[lost], JobRef(fleet.workflow(lost), "failover")
    else:
        server = fleet.master
    with contextlib.closing(secured.store(prefix)) as store:
        publish_and_read(store, job)
        server.kill()

        def taken_over() -> bool:
            with contextlib.suppress(StoreUnavailable):
                return store.get_job(job) is not None
            return False

        wait_until(taken_over, FAILOVER_SECONDS, "the replica has taken over")
        publish_and_read(store, job)
