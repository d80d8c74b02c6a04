"""Random histories of a workflow while workers are killed, the store restarts or loses data, or a slot moves.

At each quiescent point, the stream, the listing, the job objects and every client's state from its events agree. Their
connections are cut at arbitrary points.
"""

import contextlib
import itertools
import os
import random
import secrets
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import httpx
import pytest
import redis

from chronoverse.store import Store
from tests.support.fleets import Cluster
from tests.support.histories import JOBS, Histories
from tests.support.servers import RedisServer
from tests.support.service import Service, serving
from tests.support.waiting import wait_until
from tests.support.workflow_client import Client, said

#: Time until all agree after the last event, in seconds. A lost runner is detected after the service's 2 s lease.
PATIENCE_SECONDS: Final = 60.0
#: Different each time, so that the test can be repeated in the same cluster.
WORKFLOW: Final = f"live-{secrets.token_hex(4)}"
#: Quiescent points, and steps of each of two writers between them.
ROUNDS, STEPS = 2, 60


class Site:
    """A service with two workers, clients, two writers, and concurrent faults."""

    def __init__(self, service: Service, histories: list[Histories]) -> None:
        self.service = service
        self.histories = histories
        self.random = random.Random(0)
        address = service.host, service.port
        self.clients = [Client(*address, service.token, WORKFLOW, number) for number in range(4)]
        self._http = httpx.Client(
            base_url=service.url, headers={"Authorization": f"Bearer {service.token()}"}, timeout=20
        )
        self.difference: Any = None

    def kill_worker(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.random.choice(self.service.worker_pids() or [0]) or 2**22, signal.SIGKILL)

    def run(self, fault: Callable[[], object]) -> None:
        """Calls ``fault`` about every second, in addition to killing workers."""
        with contextlib.ExitStack() as stack:
            stack.callback(self._http.close)
            for client in self.clients:
                client.start()
                stack.callback(client.stop)
            for number in range(ROUNDS):
                writers = [threading.Thread(target=self._write, args=(each,)) for each in self.histories]
                for writer in writers:
                    writer.start()
                while any(writer.is_alive() for writer in writers):
                    time.sleep(self.random.expovariate(1.5))
                    self.random.choice((self.kill_worker, fault))()
                for writer in writers:
                    writer.join()
                try:
                    wait_until(self._agree, PATIENCE_SECONDS, f"all agree for the {number + 1}. time")
                except AssertionError as error:
                    numbers = [(each.number, *said(each.to_json())) for each in self.histories[0].changes()[-100:]]
                    raise AssertionError(f"{error}: {self.difference} after {numbers}") from None
        assert not [each.problems for each in self.clients if each.problems]
        assert sum(each.connections for each in self.clients) > 4 * ROUNDS

    def _write(self, histories: Histories) -> None:
        for _ in range(STEPS):
            # Each error leaves a valid history.
            with contextlib.suppress(redis.RedisError):
                histories.step()

    def _agree(self) -> bool:
        # The last worker may just have been killed.
        with contextlib.suppress(httpx.HTTPError):
            return self._compare()
        return False

    def _compare(self) -> bool:
        """Whether all agree. Reading the jobs also detects what a foreign runner has done."""
        workflow, found = self.histories[0].workflow, {}
        for number in range(JOBS):
            answer = self._http.get(f"/workflows/{workflow}/jobs/job_{number}")
            if answer.status_code == 200:
                found[f"job_{number}"] = said(answer.json())
            elif answer.status_code != 404:
                self.difference = answer.text
                return False
        page = self._http.get(f"/workflows/{workflow}/jobs?limit=1000")
        if page.status_code != 200:
            self.difference = page.text
            return False
        listed = {job["id"]: said(job) for job in page.json()["jobs"]}
        changed = {ref.job_id: said(state.to_json()) for ref, state in newest(self.histories[0]).items()}
        views = [listed, changed, *({name: said(job) for name, job in each.known.items()} for each in self.clients)]
        names = ["listing", "stream", *(f"client {number}" for number in range(len(self.clients)))]
        self.difference = [
            (who, job_id, found.get(job_id), view.get(job_id))
            for who, view in zip(names, views, strict=True)
            for job_id in {*found, *view}
            if found.get(job_id) != view.get(job_id)
        ]
        return not self.difference


def newest(histories: Histories) -> dict[Any, Any]:
    """The newest state of each remaining job, according to the stream."""
    states = {each.job.ref: each for each in histories.changes()}
    return {ref: each.job for ref, each in states.items() if not each.deleted}


@contextlib.contextmanager
def site(directory: Path, url: str, ask: Callable[..., Any]) -> Iterator[Site]:
    with contextlib.ExitStack() as stack:
        store, judge = (stack.enter_context(contextlib.closing(Store(url, lease_seconds=each))) for each in (60, 0.001))
        histories = [Histories(ask, store, judge, WORKFLOW, seed=number) for number in range(2)]
        service = stack.enter_context(
            serving(directory / "service", url, workers=2, lease_seconds=2, heartbeat_seconds=1)
        )
        yield Site(service, histories)


@pytest.mark.timeout(600)
@pytest.mark.long
def test_workers_and_the_store_are_killed(tmp_path: Path) -> None:
    """The store returns to its last saved state."""
    with RedisServer(tmp_path / "store", None) as server:

        def restart() -> None:
            server.kill()
            server.start()
            time.sleep(0.5)
            server.ask("SAVE")

        with site(tmp_path, server.url, server.ask) as found:
            found.run(restart)
            assert any(each.resets for each in found.clients)


@pytest.mark.long
@pytest.mark.timeout(600)
def test_workers_and_a_node_are_killed_and_a_slot_moves(cluster: Cluster, tmp_path: Path) -> None:
    """In a cluster: key by key, while the workflow is read and written. A node returns to its last saved state."""
    chance = random.Random(1)

    def move() -> None:
        source = cluster.owner(WORKFLOW)
        target = chance.choice([each for each in cluster.masters() if each != source])
        slot = cluster.begin_move(WORKFLOW, source, target)
        for _ in range(3):
            keys = cluster.servers[source].ask("CLUSTER", "GETKEYSINSLOT", slot, 1000)
            if keys:
                cluster.move_keys(slot, source, target, *sorted(keys)[:: chance.randrange(1, 4)])
            time.sleep(0.1)
        while cluster.servers[source].ask("CLUSTER", "COUNTKEYSINSLOT", slot):
            try:
                cluster.move_keys(slot, source, target)
            except redis.ResponseError as error:
                both = [cluster.servers[each].ask("CLUSTER", "GETKEYSINSLOT", slot, 1000) for each in (source, target)]
                raise AssertionError(f"{error}: both servers have {set(both[0]) & set(both[1])}") from error
        cluster.end_move(slot, source, target)

    def restart() -> None:
        owner = cluster.owner(WORKFLOW)
        cluster.servers[owner].ask("SAVE")
        cluster.restart(owner)

    with site(tmp_path, cluster.url, cluster.ask) as found:
        faults = itertools.cycle((restart, move))
        found.run(lambda: next(faults)())
