"""Fixtures of the store's tests: most use the bench's store."""

import pytest

from chronoverse.joblog.model import Attempt
from chronoverse.store import Store
from tests.support.bench import JOB, Bench


@pytest.fixture
def store(bench: Bench) -> Store:
    """The bench's store."""
    return bench.store


@pytest.fixture
def judge(bench: Bench) -> Store:
    """A store with a lease shorter than the uptime of any server here.

    On a busy machine the lease may expire before the next call, so tests that write open the job with another store.
    """
    return bench.new_store(lease_seconds=0.1)


@pytest.fixture
def attempt(store: Store) -> Attempt:
    """An attempt at the job."""
    return store.open(JOB, "token-1")
