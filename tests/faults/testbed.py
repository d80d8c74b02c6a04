"""The setup of a fault test: a store, the service, and runners, all of them real processes.

A test can disconnect, kill or freeze the store, or undo the last writes to its disk. The service and each runner reach
the store through their own fault proxies.
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

from chronoverse.joblog.model import JobRef
from tests.faults.emitter import EXIT_CODE, line
from tests.faults.oracle import Seen, Verdict, judge
from tests.faults.runner import PATIENCE_SECONDS, Runner
from tests.faults.watching import ClientWatcher, Http2Watcher, Watcher, history
from tests.support.faultproxy import FaultProxy
from tests.support.fleets import Fleet
from tests.support.nginx import Nginx
from tests.support.servers import RedisServer
from tests.support.service import Service
from tests.support.waiting import wait_until
from tests.web.routes.foreign import Foreign
from tests.web.routes.wire import Endpoint

#: Lines/s of a job, unless a test needs another rate.
RATE: Final = 100
#: Lines of an endless job, which a test ends with :meth:`Runner.end_job`.
ENDLESS: Final = 1_000_000
#: Lifetime of a viewer's token in seconds: more than the hours by which a test moves the clock.
TOKEN_SECONDS: Final = 4 * 3600


class FaultTestbed:
    """A context manager that starts the store and the services, and ends all processes.

    ``lease`` is the runners' lease in whole seconds, ``service_lease`` the service's if different: the service declares
    no job LOST before the store has been up for this time.

    A running ``fleet`` replaces the single server. Then there are no proxies, and ``redis`` and ``link`` are not used.

    ``with_nginx`` puts nginx in front of the service. The watchers then use HTTP/1.1, the Python client, and HTTP/2 in
    turn.
    """

    def __init__(
        self,
        directory: Path,
        *,
        lease: int = 2,
        service_lease: int | None = None,
        redis_dir: str = "",
        workers: int = 1,
        fleet: Fleet | None = None,
        with_nginx: bool = False,
        shutdown_seconds: int | None = None,
        **settings: Any,
    ) -> None:
        self.directory = directory
        self.lease = lease
        options = ("--appendonly", "yes", "--appendfsync", "everysec", "--enable-debug-command", "yes")
        self.redis = RedisServer(Path(redis_dir) if redis_dir else directory / "redis", None, *options)
        self.link = FaultProxy(self.redis.socket)
        self._fleet = fleet
        self._ask = fleet.ask if fleet else self.redis.ask
        ours: dict[str, Any] = {"lease_seconds": service_lease or lease, "heartbeat_seconds": 1, **settings}
        (directory / "service").mkdir(parents=True)
        url = fleet.url if fleet else self.link.redis_url
        self.service = Service(directory / "service", url, workers=workers, **ours)
        self.nginx: Nginx | None = None
        self._with_nginx, self._shutdown_seconds = with_nginx, shutdown_seconds
        self.runners: list[Runner] = []
        self.watchers: dict[JobRef, list[Watcher]] = {}

    def start_runner(
        self, job: JobRef, writer: str = "a", rate: float = RATE, count: int = ENDLESS, **settings: Any
    ) -> Runner:
        """Starts a runner with the testbed's lease."""
        settings.setdefault("lease_seconds", self.lease)
        store = self._fleet.url if self._fleet else self.redis.socket
        runner = Runner(self.directory, store, job, writer, rate, count, **settings)
        self.runners.append(runner)
        return runner

    def start_watchers(self, job: JobRef, viewers: int = 1) -> list[Watcher]:
        """Starts watchers of a job.

        Without nginx, the second, fifth, … use the Python client, and all others read the raw stream.
        """
        cycle = (Watcher, ClientWatcher, Http2Watcher) if self._with_nginx else (Watcher, ClientWatcher, Watcher)
        started = [self.new_watcher(job, cycle[number % len(cycle)]).start() for number in range(viewers)]
        self.watchers.setdefault(job, []).extend(started)
        return started

    def new_watcher(self, job: JobRef, kind: type[Watcher] = Watcher, token: str = "") -> Watcher:
        """Creates a watcher that is not started. The testbed neither waits for it, checks nor stops it."""
        return kind(self.endpoint.url, job, token or self.service.token(ttl=TOKEN_SECONDS), self.endpoint.verify)

    @property
    def endpoint(self) -> Endpoint:
        """What viewers connect to: nginx if present, otherwise the service."""
        return self.nginx or self.service

    def start_job(self, job: JobRef, viewers: int = 2, lines: int = 20, **options: Any) -> tuple[Runner, list[Watcher]]:
        """Starts a runner and watchers, and returns once all watchers have received ``lines`` lines."""
        runner = self.start_runner(job, **options)
        watchers = self.start_watchers(job, viewers)
        self.wait_for_line(watchers, lines)
        return runner, watchers

    def wait_for_line(self, watchers: list[Watcher], number: int, seconds: float = PATIENCE_SECONDS) -> None:
        """Waits until all of them have received line ``number``."""
        wait_until(lambda: all(each.highest >= number for each in watchers), seconds, f"all see line {number}")

    def wait_for_more(self, watchers: list[Watcher], lines: int = 20, seconds: float = PATIENCE_SECONDS) -> None:
        """Waits until all have received ``lines`` lines more than the fastest has now."""
        self.wait_for_line(watchers, max(each.highest for each in watchers) + lines, seconds)

    def wait_for_end(self, job: JobRef, seconds: float = PATIENCE_SECONDS) -> None:
        """Waits until all watchers of the job have received the end of its log."""
        for watcher in self.watchers[job]:
            assert watcher.join(seconds), f"a viewer of {job} has only line {watcher.highest}: {watcher.errors[-5:]}"

    def finish(self, runner: Runner) -> None:
        """Ends the job. The runner must exit like the job, and every viewer must have received every line once."""
        runner.end_job()
        assert runner.wait() == EXIT_CODE, runner.stderr_text
        self.wait_for_end(runner.job)
        verdict = self.verdict(runner.job)
        assert verdict.clean, verdict
        assert self.status(runner.job)["status"] == "FAILED", runner.stderr_text

    def history(self, job: JobRef, *, with_gaps: bool = False) -> list[Seen]:
        """The log as returned by its pages."""
        return history(self.endpoint.url, job, self.service.token(ttl=TOKEN_SECONDS), with_gaps=with_gaps)

    def verdict(self, job: JobRef, foreign: frozenset[str] = frozenset(), **required: int) -> Verdict:
        """The oracle's verdict on all watchers of a job.

        ``required`` has the number of a writer's lines that must be present, by default all that it started to print.

        Also checks the store's count: Redis must have added as many entries to the log as its last number.
        """
        printed = {each.writer: each.printed(required.get(each.writer)) for each in self.runners if each.job == job}
        views = {f"viewer {n}": tuple(each.seen) for n, each in enumerate(self.watchers.get(job, ()))}
        verdict = judge(printed, views, self.history(job, with_gaps=bool(foreign)), foreign=foreign)
        if not foreign and (added := self.entries_added(job)) != (last := self.last_id(job)):
            verdict.misstated.append(f"the store: {added} entries were added, and the last is {last}")
        return verdict

    def key(self, kind: str, job: JobRef) -> str:
        """The job's key of that kind. The name is spelled out, because it is part of the public contract."""
        return f"chronoverse:{{{job.workflow_id}}}:{job.job_id}:{kind}"

    def last_id(self, job: JobRef) -> int:
        """The number of the log's last entry, or 0."""
        entries = self._ask("XREVRANGE", self.key("log", job), "+", "-", "COUNT", 1)
        return int(entries[0][0].partition(b"-")[0]) if entries else 0

    def entries_added(self, job: JobRef) -> int:
        """Redis's count of entries ever added to the log."""
        info = self._ask("XINFO", "STREAM", self.key("log", job))
        return int(dict(zip(info[::2], info[1::2], strict=True))[b"entries-added"])

    def status(self, job: JobRef) -> dict[str, str]:
        """The job's hash."""
        flat = [part.decode() for part in self._ask("HGETALL", self.key("job", job))]
        return dict(zip(flat[::2], flat[1::2], strict=True))

    def freeze_disk(self) -> int:
        """Stops fsync, so that nothing written later is durable.

        Returns how many bytes of the append-only file a power failure would leave. They contain everything that the
        store has ever confirmed as durable, because WAITAOF is called here after all its other calls.
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
        """Kills the store and truncates its file to ``safe`` bytes. Returns how many bytes were cut off."""
        self.redis.kill()
        lost = self._aof().stat().st_size - safe
        os.truncate(self._aof(), safe)
        return lost

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
            undo.enter_context(self.service)
            if self._with_nginx:
                self._start_nginx(undo)
            self._undo = undo.pop_all()
        return self

    def _start_nginx(self, undo: contextlib.ExitStack) -> None:
        directory = self.directory / "nginx"
        directory.mkdir()
        node = self.service.host, self.service.port
        self.nginx = undo.enter_context(Nginx(directory, [node], shutdown_seconds=self._shutdown_seconds))
        # The Python client trusts a certificate only through this variable. Another testbed may have set it already.
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
                watcher.request_stop()
            for watcher in watchers:
                watcher.stop()


@contextlib.contextmanager
def frozen(process: "subprocess.Popen[bytes] | RedisServer") -> Iterator[None]:
    """Stops a process with SIGSTOP during the block."""
    os.kill(process.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(process.pid, signal.SIGCONT)


@contextlib.contextmanager
def environment(**variables: str) -> Iterator[None]:
    """Sets environment variables of this process during the block."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            os.environ.update({name: value} if value is not None else {})


def add_lines(job: Foreign, count: int, padding: int = 0) -> None:
    """Appends the next ``count`` lines of writer ``a`` to a foreign runner's log."""
    job.lines(line("a", number, padding) for number in range(job.last + 1, job.last + count + 1))


def sleep(seconds: float) -> None:
    """Waits while a fault lasts."""
    time.sleep(seconds)
