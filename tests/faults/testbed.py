"""Where the fault suite plays: one store that can be cut off, killed, frozen and robbed of its disk's last seconds,
one service on it, and runners that each reach it through a fault proxy of their own. All of them real processes.
"""

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import redis

from chronoverse.joblog.values import JobRef
from tests.faults.oracle import Seen, Verdict, judge
from tests.faults.runner import PATIENCE_SECONDS, Runner
from tests.faults.watching import ClientWatcher, Http2Watcher, Watcher, history
from tests.support.faultproxy import FaultProxy
from tests.support.fleets import Fleet
from tests.support.nginx import Nginx
from tests.support.servers import RedisServer
from tests.support.service import Service
from tests.support.waiting import wait_until
from tests.web.routes.wire import Door

#: Lines/s of a job that does not hurry, and the bound of those that must be ended by :meth:`Runner.end`.
RATE: Final = 100
ENDLESS: Final = 1_000_000
#: Seconds that a viewer's token is good for: longer than a clock jumps.
TOKEN_SECONDS: Final = 4 * 3600


class FaultTestbed:
    """For a ``with``. ``lease`` is the runners', in whole seconds; ``judge_after`` the service's, if it is another.

    With a ``fleet`` that is running the store is that, without proxies, and ``redis`` and ``link`` are not used.

    At the ``edge`` viewers come through nginx, by HTTP/1.1, our own client and HTTP/2 in turns, and are answered by
    ``nodes`` services. ``config`` and ``environ`` are the services' own, for faults within.

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
        edge: bool = False,
        nodes: int = 1,
        shutdown_seconds: int | None = None,
        config: Path | None = None,
        environ: Mapping[str, str] | None = None,
        **settings: Any,
    ) -> None:
        self.directory = directory
        self.lease = lease
        place = Path(redis_dir) if redis_dir else directory / "redis"
        options = ("--appendonly", "yes", "--appendfsync", "everysec", "--enable-debug-command", "yes")
        self.redis = RedisServer(place, None, *options)
        self.link = FaultProxy(self.redis.socket)
        self._fleet = fleet
        self._ask = fleet.ask if fleet else self.redis.ask
        self.services = []
        ours: dict[str, Any] = {"lease_seconds": judge_after or lease, "heartbeat_seconds": 1, **settings}
        for number in range(1, nodes + 1):
            place = directory / f"service-{number}"
            place.mkdir(parents=True)
            node = Service(
                place,
                fleet.url if fleet else self.link.redis_url,
                workers=workers,
                config=config,
                environ=environ,
                **ours,
            )
            self.services.append(node)
        self.service = self.services[0]
        self.nginx: Nginx | None = None
        self._edge, self._shutdown_seconds = edge, shutdown_seconds
        self.runners: list[Runner] = []
        self.watchers: dict[JobRef, list[Watcher]] = {}

    def run(self, job: JobRef, writer: str = "a", rate: float = RATE, count: int = ENDLESS, **settings: Any) -> Runner:
        """Starts a runner with the testbed's lease."""
        settings.setdefault("lease_seconds", self.lease)
        store = self._fleet.url if self._fleet else self.redis.socket
        runner = Runner(self.directory, store, job, writer, rate, count, **settings)
        self.runners.append(runner)
        return runner

    def watch(self, job: JobRef, viewers: int = 1) -> list[Watcher]:
        """Starts viewers: the second and every fifth behind it by our own client, all others raw; see ``edge``."""
        cycle = (Watcher, ClientWatcher, Http2Watcher) if self._edge else (Watcher, ClientWatcher, *[Watcher] * 3)
        started = [self.watcher(job, cycle[number % len(cycle)]).start() for number in range(viewers)]
        self.watchers.setdefault(job, []).extend(started)
        return started

    def watcher(self, job: JobRef, kind: type[Watcher] = Watcher, token: str = "") -> Watcher:
        """One viewer, not started, whom nobody waits for or judges; stop it."""
        return kind(self.door.url, job, token or self.service.token(ttl=TOKEN_SECONDS), self.door.verify)

    @property
    def door(self) -> Door:
        """Where viewers come in."""
        return self.nginx or self.service

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
        return history(self.door.url, job, self.service.token(ttl=TOKEN_SECONDS), named=named)

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

    def __enter__(self) -> "FaultTestbed":
        with contextlib.ExitStack() as undo:
            if self._fleet is None:
                undo.enter_context(self.redis)
            undo.enter_context(self.link)
            for service in self.services:
                undo.enter_context(service)
            if self._edge:
                self._open_edge(undo)
            self._undo = undo.pop_all()
        return self

    def _open_edge(self, undo: contextlib.ExitStack) -> None:
        directory = self.directory / "nginx"
        directory.mkdir()
        nodes = [(each.host, each.port) for each in self.services]
        self.nginx = undo.enter_context(Nginx(directory, nodes, shutdown_seconds=self._shutdown_seconds))
        # Our own client knows no other way to be told of a certificate. Another testbed may be on beside this one.
        others = os.environ.get("SSL_CERT_FILE")
        trusted = [self.nginx.certificate, *([Path(others)] if others else [])]
        bundle = directory / "trusted.crt"
        bundle.write_text("".join(each.read_text() for each in trusted))
        undo.enter_context(environment(SSL_CERT_FILE=str(bundle)))

    def __exit__(self, *exception: object) -> None:
        with self._undo:
            for runner in self.runners:
                runner.close()
            watchers = [each for those in self.watchers.values() for each in those]
            for watcher in watchers:
                watcher.leave()
            for watcher in watchers:
                watcher.stop()


@contextlib.contextmanager
def frozen(process: "subprocess.Popen[bytes] | RedisServer") -> Iterator[None]:
    """Stopped by SIGSTOP for as long as the block lasts."""
    os.kill(process.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(process.pid, signal.SIGCONT)


@contextlib.contextmanager
def environment(**variables: str) -> Iterator[None]:
    """This process's environment, with ``variables`` for as long as the block lasts."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            os.environ.update({name: value} if value is not None else {})


def sleep(seconds: float) -> None:
    """Lets time pass: a fault lasts."""
    time.sleep(seconds)
