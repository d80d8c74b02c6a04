"""``chronoverse notify`` in production: killed processes, a restarting store, and a receiver down half the time.

Each end is delivered, always with the same id.
"""

import contextlib
import os
import random
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from chronoverse.errors import StoreError
from chronoverse.joblog.model import JobRef, Line, Status, iso_timestamp
from chronoverse.joblog.watches import Watch
from chronoverse.store import Store
from tests.support.receiver import Receiver
from tests.support.servers import RedisServer
from tests.support.waiting import wait_until

#: One watch each.
SHARDS = tuple("abcdefgh")
#: Number of ended jobs, and of killed notifiers. The store restarts twice meanwhile.
ENDS, KILLS = 400, 9


def start(url: str, directory: Path, log: Path) -> "subprocess.Popen[bytes]":
    ours = {
        "CHRONOVERSE_REDIS_URL": url,
        "CHRONOVERSE_DATA_DIR": str(directory),
        "CHRONOVERSE_WEBHOOK_HOSTS": "127.0.0.1+private",
    }
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("CHRONOVERSE_", "PROMETHEUS_"))}
    with log.open("ab") as file:
        argv = [sys.executable, "-m", "chronoverse", "notify"]
        return subprocess.Popen(argv, env=clean | ours, stdin=subprocess.DEVNULL, stdout=file, stderr=file)


@pytest.mark.timeout(600)
@pytest.mark.long
def test_each_end_is_delivered_despite_kills(tmp_path: Path) -> None:
    chance = random.Random(48)
    with RedisServer(tmp_path / "store", None, "--appendonly", "yes") as server, Receiver() as receiver:
        store = Store(server.url)
        watches: list[Watch] = []
        for shard in SHARDS:
            rest: dict[str, Any] = {"url": receiver.url, "secret": "whsec_" + "a" * 32, "label": {"shard": shard}}
            watches.append(Watch(workflow_id="wf", id=shard, on="end", status=["COMPLETED", "FAILED"], **rest))
            store.watches.put(watches[-1])
        log = tmp_path / "notify.log"
        processes = [start(server.url, tmp_path, log) for _ in range(2)]
        done = threading.Event()

        def toggle() -> None:
            """The receiver is down half of the time. Repeated failures cause a pause of minutes, which a retry ends."""
            while not done.wait(0.7):
                receiver.stop()
                done.wait(0.7)
                receiver.start()
                with contextlib.suppress(StoreError):
                    for watch in watches:
                        store.watches.retry(watch)

        toggling = threading.Thread(target=toggle)
        toggling.start()
        try:
            for number in range(ENDS):
                ref = JobRef("wf", f"job-{number}")
                attempt = store.open(ref, "token", labels=(("shard", SHARDS[number % len(SHARDS)]),))
                store.append(attempt, [Line(1, iso_timestamp(time.time()), f"Error: {number}", "stdout")])
                # A failed job takes a tenth of a second to analyse.
                status = Status.COMPLETED if number % 20 else Status.FAILED
                store.finish(attempt, status, None, 0, 2)
            told: set[str] = set()

            def are_told(count: int) -> bool:
                told.update(each.json["data"]["job"]["id"] for each in list(receiver.messages))
                return len(told) >= count

            for kill in range(KILLS):
                wait_until(partial(are_told, ENDS * (kill + 1) // (KILLS + 2)), 120, "some more are told")
                victim = chance.randrange(2)
                processes[victim].kill()
                processes[victim].wait(10)
                processes[victim] = start(server.url, tmp_path, log)
                if kill in (KILLS // 3, 2 * KILLS // 3):
                    server.kill()
                    server.start()
            wait_until(partial(are_told, ENDS), 120, "each end is told")
            wait_until(lambda: not any(each.waiting for each in store.watches.read("wf")), 120, "nothing waits")
        finally:
            done.set()
            toggling.join(30)
            for process in processes:
                process.terminate()
            for process in processes:
                process.wait(40)
            store.close()
        ids: dict[str, set[str]] = {}
        for each in receiver.messages:
            ids.setdefault(each.json["data"]["job"]["id"], set()).add(each.webhook_id)
        assert {len(each) for each in ids.values()} == {1}
        assert len({next(iter(each)) for each in ids.values()}) == ENDS
        assert b"Traceback" not in log.read_bytes()
        assert b"notifier started hosts=" in log.read_bytes()
