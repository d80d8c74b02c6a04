"""The setup of a fault test: a store, the service, runners and viewers, all of them real.

A test can undo the last writes to the store's disk.
"""

import contextlib
import os
from pathlib import Path
from typing import Any, Final, Self

import redis

from chronoverse.joblog.model import JobRef
from tests.faults.emitter import EXIT_CODE
from tests.faults.oracle import judge
from tests.faults.runner import PATIENCE_SECONDS, Runner
from tests.faults.watching import ClientWatcher, Watcher, history
from tests.support.fleets import Fleet
from tests.support.servers import RedisServer
from tests.support.service import Service
from tests.support.waiting import wait_until

#: Lines/s of a job, unless a test needs another rate.
RATE: Final = 100


class FaultTestbed:
    """A context manager that starts the store and the service, and ends all processes.

    ``lease`` is the runners' lease in whole seconds. A running ``fleet`` replaces the single server ``redis``. The
    service declares no job LOST in its first minute.
    """

    def __init__(self, directory: Path, *, lease: int = 2, fleet: Fleet | None = None, **settings: Any) -> None:
        self._directory = directory
        self._lease = lease
        options = ("--appendonly", "yes", "--appendfsync", "everysec", "--enable-debug-command", "yes")
        self.redis = RedisServer(directory / "redis", None, *options)
        self._fleet = fleet
        self._ask = fleet.ask if fleet else self.redis.ask
        self._url = fleet.url if fleet else self.redis.url
        (directory / "service").mkdir(parents=True)
        self.service = Service(directory / "service", self._url, lease_seconds=60, heartbeat_seconds=1, **settings)
        self._runners: list[Runner] = []
        self._watchers: dict[JobRef, list[Watcher]] = {}

    def start_job(self, job: JobRef, rate: float = RATE, **settings: Any) -> tuple[Runner, list[Watcher]]:
        """Starts a runner, a raw viewer and our client, and returns once both viewers have received 20 lines."""
        runner = Runner(self._directory, self._url, job, rate, lease_seconds=self._lease, **settings)
        self._runners.append(runner)
        token = self.service.token()
        watchers = [kind(self.service.url, job, token).start() for kind in (Watcher, ClientWatcher)]
        self._watchers[job] = watchers
        self.wait_for_line(watchers, 20)
        return runner, watchers

    def wait_for_line(self, watchers: list[Watcher], number: int) -> None:
        """Waits until all of them have received line ``number``."""
        wait_until(lambda: all(each.highest >= number for each in watchers), PATIENCE_SECONDS, f"all see line {number}")

    def wait_for_more(self, watchers: list[Watcher], lines: int = 20) -> None:
        """Waits until all have received ``lines`` lines more than the fastest has now."""
        self.wait_for_line(watchers, max(each.highest for each in watchers) + lines)

    def finish(self, runner: Runner) -> None:
        """Ends the job. The runner must exit like the job, and every viewer must have received every line once.

        The store must have added as many entries to the log as its last number.
        """
        job, watchers = runner.job, self._watchers[runner.job]
        runner.end_job()
        assert runner.wait() == EXIT_CODE, runner.stderr_text
        for each in watchers:
            assert each.join(PATIENCE_SECONDS), f"a viewer of {job} has only line {each.highest}: {each.errors[-5:]}"
        views = {f"viewer {number}": each.seen for number, each in enumerate(watchers)}
        pages = history(self.service.url, job, self.service.token())
        verdict = judge({"a": runner.printed}, views, pages)
        assert verdict.clean, verdict
        status = self._ask("HMGET", self.key("job", job), "status", "exit_code")
        assert status == [b"FAILED", b"%d" % EXIT_CODE], runner.stderr_text
        info = self._ask("XINFO", "STREAM", self.key("log", job))
        assert int(dict(zip(info[::2], info[1::2], strict=True))[b"entries-added"]) == self.last_id(job)

    def key(self, kind: str, job: JobRef) -> str:
        """The job's key of that kind. The name is spelled out, because it is part of the public contract."""
        return f"chronoverse:{{{job.workflow_id}}}:{job.job_id}:{kind}"

    def last_id(self, job: JobRef) -> int:
        """The number of the log's last entry."""
        entries = self._ask("XREVRANGE", self.key("log", job), "+", "-", "COUNT", 1)
        return int(entries[0][0].partition(b"-")[0])

    def freeze_disk(self) -> int:
        """Stops fsync, so that nothing written later is durable.

        Returns how many bytes of the append-only file a power failure would leave. They contain everything that the
        store has ever confirmed as durable, because WAITAOF is called here after all its other calls.
        """
        with contextlib.closing(redis.Redis.from_url(self.redis.url, protocol=2)) as client:
            client.response_callbacks.clear()
            client.execute_command("SET", "probe", "1")
            assert client.execute_command("WAITAOF", 1, 0, 5000)[0] == 1
            client.execute_command("CONFIG", "SET", "appendfsync", "no")
            wait_until(
                lambda: b"aof_pending_bio_fsync:0\r" in client.execute_command("INFO", "persistence"), 5, "no fsync"
            )
        return self._aof().stat().st_size

    def cut_power(self, safe: int) -> int:
        """Kills the store and truncates its file to ``safe`` bytes. Returns how many bytes were cut off."""
        self.redis.kill()
        lost = self._aof().stat().st_size - safe
        os.truncate(self._aof(), safe)
        return lost

    def _aof(self) -> Path:
        (path,) = (self.redis.directory / "appendonlydir").glob("*.incr.aof")
        return path

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as undo:
            if self._fleet is None:
                undo.enter_context(self.redis)
            undo.enter_context(self.service)
            self._undo = undo.pop_all()
        return self

    def __exit__(self, *exception: object) -> None:
        with self._undo:
            for runner in self._runners:
                runner.close()
            watchers = [each for those in self._watchers.values() for each in those]
            for watcher in watchers:
                watcher.request_stop()
            for watcher in watchers:
                watcher.stop()
