"""A service with an embedded server, shared by all end-to-end tests that leave it running and intact."""

from collections.abc import Iterator

import pytest

from chronoverse.store import Store
from tests.support.service import Service, serving


@pytest.fixture(scope="session")
def embedded_service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service with a lease of two seconds, and heartbeats every second."""
    with serving(
        tmp_path_factory.mktemp("e2e"), lease_seconds=2, heartbeat_seconds=1, webhook_hosts="hooks.example.com"
    ) as service:
        yield service


@pytest.fixture
def embedded_store(embedded_service: Service) -> Iterator[Store]:
    """The service's own store, as a runner on the same machine reaches it."""
    store = Store(f"unix://{embedded_service.data_dir}/server.sock", lease_seconds=2)
    yield store
    store.close()
