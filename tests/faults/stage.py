"""Where the fault suite plays: one store that can be cut off, killed, frozen and robbed of its disk's last seconds,
one service on it, and runners that each reach it through a fault proxy of their own. All of them real processes.
"""

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import redis

from chronoverse.joblog import JobRef
from tests.faults.oracle import Seen, Verdict, judge
from tests.faults.runner import PATIENCE_SECONDS, Runner
from tests.faults.watching import ClientWatcher, Watcher, history
from tests.support.faultproxy import FaultProxy
from tests.support.fleets import Fleet
from tests.support.servers import RedisServer
from tests.support.service import Service
from tests.support.waiting import wait_until

#: Lines/s of a job that does not hurry, and the bound of those that must be ended by :meth:`Runner.end`.
RATE: Final = 100
ENDLESS: Final = 1_000_000


class Stage:
    """For a ``with``. ``lease`` is the runners', in whole seconds; ``judge_after`` the service's, if it is another.

    With a ``fleet`` that is running the store is that, without proxies, and ``redis`` and ``link`` are not used.

    The service declares nobody LOST before the store has been up for its own lease.
    """

    def __init__(
        self,
        directory: Path,
        *,
        lease: int = 2,
        judge_after: int | None = None,
        redis_dir: str = "",
        workers: int = 1,
        fleet: Fleet | None = None,
    ) -> None:
        self.directory = directory
        self.lease = lease
        place = Path(redis_dir) if redis_dir else directory / "redis"
        options = ("--appendonly", "yes", "--appendfsync", "everysec", "--enable-debug-command", "yes")
        self.redis = RedisServer(place, None, *options)
        service = directory / "service"
        service.mkdir(parents=True)
        self.link = FaultProxy(self.redis.socket)
        self._fleet = fleet
        self._ask = fleet.ask if fleet else self.redis.ask
        self.service = Service(
            service,
            fleet.url if fleet else self.link.redis_url,
            workers=workers,
            lease_seconds=judge_after or lease,
            heartbeat_seconds=1,
        )
        self.runners: list[Runner] = []
        self.watchers: dict[JobRef, list[Watcher]] = {}

    def run(self, job: JobRef, writer: str = "a", rate: float = RATE, count: int = ENDLESS, **settings: Any) -> Runner:
        """Starts a runner with the stage's lease."""
        settings.setdefault("lease_seconds", self.lease)
        store = self._fleet.url if self._fleet else self.redis.socket
        runner = Runner(self.directory, store, job, writer, rate, count, **settings)
        self.runners.append(runner)
        return runner

    def watch(self, job: JobRef, viewers: int = 1) -> list[Watcher]:
        """Starts viewers: the second and every fifth behind it by our own client, all others raw."""
        kinds = [ClientWatcher if number % 5 == 1 else Watcher for number in range(viewers)]
        started = [kind(self.service.url, job, self.service.token()).start() for kind in kinds]
        self.watchers.setdefault(job, []).extend(started)
        return started

    def play(self, job: JobRef, viewers: int = 2, lines: int = 20, **options: Any) -> tuple[Runner, list[Watcher]]:
        """A runner and viewers who have all seen ``lines`` lines."""
        runner = self.run(job, **options)
        watchers = self.watch(job, viewers)
        self.seen(watchers, lines)
        return runner, watchers

    def seen(self, watchers: list[Watcher], number: int, seconds: float = PATIENCE_SECONDS) -> None:
        """Waits until all of them have seen line ``number``."""
        wait_until(lambda: all(each.highest >= number for each in watchers), seconds, f"all see line {number}")

    def more(self, watchers: list[Watcher], lines: int = 20, seconds: float = PATIENCE_SECONDS) -> None:
        """Waits until all of them have seen so many lines more than the first has now."""
        self.seen(watchers, max(each.highest for each in watchers) + lines, seconds)

    def over(self, job: JobRef, seconds: float = PATIENCE_SECONDS) -> None:
        """Waits until all viewers of the job have been told that it is over."""
        for watcher in self.watchers[job]:
            assert watcher.join(seconds), f"a viewer of {job} stands at {watcher.highest}: {watcher.troubles[-5:]}"

    def history(self, job: JobRef, *, named: bool = False) -> list[Seen]:
        """The log as its pages give it."""
        return history(self.service.url, job, self.service.token(), named=named)

    def verdict(self, job: JobRef, foreign: frozenset[str] = frozenset(), **required: int) -> Verdict:
        """The oracle's, on all viewers of a job. ``required`` is per writer; all that was begun where not named.

        Checks the store's own account too: what was ever added to the log is what its numbers say.
        """
        printed = {each.writer: each.printed(required.get(each.writer)) for each in self.runners if each.job == job}
        views = {f"viewer {n}": tuple(each.seen) for n, each in enumerate(self.watchers.get(job, ()))}
        verdict = judge(printed, views, self.history(job, named=bool(foreign)), foreign=foreign)
        if not foreign and (added := self.added(job)) != (last := self.last_id(job)):
            verdict.misstated.append(f"the store: {added} entries were added, and the last is {last}")
        return verdict

    def key(self, kind: str, job: JobRef) -> str:
        """The job's key of that kind, spelled as outsiders know it."""
        return f"chronoverse:{{{job.workflow_id}}}:{job.job_id}:{kind}"

    def last_id(self, job: JobRef) -> int:
        """The number of the log's last entry; 0 where there is none."""
        entries = self._ask("XREVRANGE", self.key("log", job), "+", "-", "COUNT", 1)
        return int(entries[0][0].partition(b"-")[0]) if entries else 0

    def added(self, job: JobRef) -> int:
        """Entries ever added to the log, by the store's account."""
        info = self._ask("XINFO", "STREAM", self.key("log", job))
        return int(dict(zip(info[::2], info[1::2], strict=True))[b"entries-added"])

    def status(self, job: JobRef) -> dict[str, str]:
        """The job's hash."""
        flat = [part.decode() for part in self._ask("HGETALL", self.key("job", job))]
        return dict(zip(flat[::2], flat[1::2], strict=True))

    def freeze_disk(self) -> int:
        """From now on nothing that is written counts as safe. What a power cut would leave of the log, in bytes.

        That is at least all that anybody was ever told is safe: the last word of WAITAOF is ours.
        """
        with contextlib.closing(self._client()) as client:
            client.execute_command("SET", "probe", "1")
            assert client.execute_command("WAITAOF", 1, 0, 5000)[0] == 1
            client.execute_command("CONFIG", "SET", "appendfsync", "no")
            wait_until(
                lambda: b"aof_pending_bio_fsync:0\r" in client.execute_command("INFO", "persistence"), 5, "no fsync"
            )
        return self._aof().stat().st_size

    def cut_power(self, safe: int) -> int:
        """The store dies, and with it what its file holds beyond ``safe`` bytes. How many bytes those were."""
        self.redis.kill()
        lost = self._aof().stat().st_size - safe
        os.truncate(self._aof(), safe)
        return lost

    def kill_worker(self, pid: int) -> None:
        """SIGKILL for a worker of the service, which starts another."""
        assert pid in self.service.worker_pids()
        os.kill(pid, signal.SIGKILL)

    def _aof(self) -> Path:
        (path,) = (self.redis.directory / "appendonlydir").glob("*.incr.aof")
        return path

    def _client(self) -> redis.Redis:
        client = redis.Redis.from_url(self.redis.url, protocol=2)
        client.response_callbacks.clear()
        return client

    def __enter__(self) -> "Stage":
        with contextlib.ExitStack() as undo:
            if self._fleet is None:
                undo.enter_context(self.redis)
            undo.enter_context(self.link)
            undo.enter_context(self.service)
            self._undo = undo.pop_all()
        return self

    def __exit__(self, *exception: object) -> None:
        with self._undo:
            for runner in self.runners:
                runner.close()
            for watcher in [each for watchers in self.watchers.values() for each in watchers]:
                watcher.stop()


@contextlib.contextmanager
def frozen(process: "subprocess.Popen[bytes] | RedisServer") -> Iterator[None]:
    """Stopped by SIGSTOP for as long as the block lasts."""
    os.kill(process.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(process.pid, signal.SIGCONT)


def passing(seconds: float) -> None:
    """Lets time pass: a fault lasts."""
    time.sleep(seconds)
