"""Celery tasks as jobs: real workers with each kind of pool, a real broker, and a store with outages."""

import contextlib
import io
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final

import psutil
import pytest
from celery import Celery, signals

from chronoverse.auth.minting import mint
from chronoverse.integrations.celery import AWAY_SECONDS, DELIVER_SECONDS, OPEN_SECONDS, install
from chronoverse.joblog.model import JobRef, Status
from chronoverse.settings import Settings
from chronoverse.store import Store
from tests.support.jobs import key, outcome, read_lines, read_log
from tests.support.processes import stop_process
from tests.support.scripted import ScriptedService, problem
from tests.support.servers import RedisServer, running
from tests.support.service import ROOT, Service
from tests.support.waiting import wait_until

#: Seconds for prompt events on a busy machine.
SOON: Final = 30.0


def url_of(broker: RedisServer) -> str:
    """The broker's URL for Celery."""
    return f"redis+socket://{broker.socket}"


class Shop:
    """A worker of the app in ``tests/integrations/shop.py``, and a client that sends it tasks."""

    def __init__(
        self,
        broker: RedisServer,
        store: RedisServer,
        directory: Path,
        *options: str,
        app: str = "tests.integrations.shop",
        **environ: str,
    ) -> None:
        self.store = store
        self.spool = directory / "data" / "spool"
        self._log = directory / "worker.log"
        ours = {"REDIS_URL": store.url, "DATA_DIR": str(directory / "data"), "LEASE_SECONDS": "2"}
        environ = {"SHOP_BROKER": url_of(broker), **{f"CHRONOVERSE_{name}": ours[name] for name in ours}, **environ}
        command = [sys.executable, "-m", "celery", "-A", app, "worker", "-l", "INFO"]
        command += ["--without-gossip", "--without-mingle", "--without-heartbeat", *options]
        with self._log.open("wb") as log:
            self._worker = subprocess.Popen(command, cwd=ROOT, env=os.environ | environ, stdout=log, stderr=log)
        self.app = Celery("client", broker=url_of(broker), backend=url_of(broker))

    def wait_until_ready(self) -> None:
        wait_until(lambda: " ready." in self.worker_log, SOON, "the worker is ready")

    @property
    def worker_log(self) -> str:
        return self._log.read_text()

    def send(self, task: str, *args: Any, **options: Any) -> Any:
        """Sends the task. Returns its result, which may be pending."""
        return self.app.send_task(f"tests.integrations.shop.{task}", args, **options)

    def job(self, task: str, result: Any) -> JobRef:
        return JobRef(f"tests.integrations.shop.{task}", result.id)

    def end(self, job: JobRef) -> tuple[str, str | None]:
        """Waits until the job ends. Returns its status and exit code."""
        wait_until(lambda: read_log(self.store, job)[1], SOON, f"the end of {job}")
        return outcome(self.store, job)

    def stop(self) -> None:
        self.app.close()
        stop_process(self._worker, SOON)


@contextlib.contextmanager
def shop(broker: RedisServer, store: RedisServer, directory: Path, *options: str, **environ: str) -> Iterator[Shop]:
    """A running worker."""
    started = Shop(broker, store, directory, *options, **environ)
    try:
        started.wait_until_ready()
        yield started
    finally:
        started.stop()


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with running(tmp_path_factory.mktemp("broker")) as server:
        yield server


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with running(tmp_path_factory.mktemp("store")) as server:
        yield server


@pytest.fixture(scope="module")
def prefork(broker: RedisServer, store: RedisServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    """A worker with two processes."""
    with shop(broker, store, tmp_path_factory.mktemp("prefork"), "-P", "prefork", "-c", "2") as started:
        yield started


@pytest.fixture(scope="module")
def lone(broker: RedisServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    """A worker with one process and a store of its own."""
    directory = tmp_path_factory.mktemp("lone")
    with (
        running(directory / "store", None, "--appendonly", "yes", "--appendfsync", "always") as store,
        shop(broker, store, directory, "-P", "prefork", "-c", "1", "-Q", "lone") as started,
    ):
        yield started


def texts(server: RedisServer, job: JobRef, stream: str) -> list[str]:
    return [line["message"] for line in read_log(server, job)[0] if line["stream"] == stream]


def test_what_a_task_prints_and_logs_is_its_jobs_log(prefork: Shop) -> None:
    """Each line on its own stream, in order. The return value is unchanged."""
    result = prefork.send("talk", 1)

    assert result.get(timeout=SOON) == 2
    job = prefork.job("talk", result)
    assert prefork.end(job) == ("COMPLETED", "0")
    assert texts(prefork.store, job, "stdout") == ["printed", "no newline until here", "in a thread", "not ended"]
    assert texts(prefork.store, job, "stderr") == ["to stderr", "a warning", "of the task's logger"]
    assert prefork.store.ask("HGET", key("job", job), "label:task") == job.workflow_id.encode()


def test_retries_are_attempts_of_one_job(prefork: Shop) -> None:
    """Each attempt continues the log after the previous one's traceback."""
    result = prefork.send("flaky", 2)

    assert result.get(timeout=SOON) == "done"
    job = prefork.job("flaky", result)
    assert prefork.end(job) == ("COMPLETED", "0")
    assert texts(prefork.store, job, "stdout") == ["attempt 1", "attempt 2", "attempt 3"]
    assert prefork.store.ask("HGET", key("job", job), "attempt") == b"3"
    messages = read_lines(prefork.store, job)
    reason = "celery.exceptions.Retry: Retry in 0.1s: OSError('not yet')"
    assert [messages.index(f"attempt {number}") for number in (1, 2, 3)] == [
        0,
        messages.index(reason) + 1,
        len(messages) - 1,
    ]
    assert "OSError: not yet" in messages


def test_a_job_is_not_lost_between_two_attempts(prefork: Shop) -> None:
    """It stays RUNNING, even for longer than a lease, until its task is revoked."""
    result = prefork.send("flaky", 1, 1)
    job = prefork.job("flaky", result)
    wait_until(lambda: prefork.store.ask("GET", key("lease", job)) == b"next", SOON, "the end of the first attempt")
    with contextlib.closing(Store(prefork.store.url, lease_seconds=0.1)) as store:
        for _ in range(3):
            found = store.get_job(job)
            assert found is not None
            assert found.status is Status.RUNNING
    result.revoke()

    assert prefork.end(job) == ("CANCELED", None)
    assert texts(prefork.store, job, "stdout") == ["attempt 1"]


@pytest.mark.parametrize(
    ("how", "end", "last"),
    [
        ("error", ("FAILED", "1"), "ValueError: bad luck"),
        ("ignore", ("COMPLETED", "0"), "failing"),
        ("reject", ("FAILED", "1"), "failing"),
    ],
)
def test_the_tasks_state_is_the_jobs(prefork: Shop, how: str, end: tuple[str, str], last: str) -> None:
    """A traceback goes to stderr. The exception is unchanged."""
    result = prefork.send("fail", how)
    job = prefork.job("fail", result)

    assert prefork.end(job) == end
    assert read_lines(prefork.store, job)[-1] == last
    if how == "error":
        with pytest.raises(ValueError, match="bad luck"):
            result.get(timeout=SOON)


def pid_of(shop: Shop, job: JobRef) -> int:
    """The process that runs the task ``hang``."""
    wait_until(lambda: read_lines(shop.store, job), SOON, "the process id")
    return int(read_lines(shop.store, job)[0])


@pytest.mark.parametrize(("how", "code"), [("SIGTERM", "143"), ("SIGKILL", None)])
def test_a_terminated_task_is_canceled(prefork: Shop, how: str, code: str | None) -> None:
    """The main process ends the log of a process that it killed."""
    result = prefork.send("hang", 60)
    job = prefork.job("hang", result)
    pid_of(prefork, job)
    result.revoke(terminate=True, signal=how)

    assert prefork.end(job) == ("CANCELED", code)


Install = Callable[..., Any]


@pytest.fixture
def eager_app(tmp_path: Path) -> Iterator[tuple[Any, Install]]:
    """An app in this process, and a function that installs the logs of its tasks."""
    installed: list[Any] = []
    app = Celery("eager", set_as_current=False)
    app.conf.task_always_eager = True

    def install_logs(**options: Any) -> None:
        settings = Settings(data_dir=tmp_path)
        installed.append(install(app, "eager", settings=settings, **options))

    yield app, install_logs
    for logs in installed:
        logs.uninstall()


def test_eager_tasks_are_jobs_too(
    eager_app: tuple[Any, Install],
    store: RedisServer,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """In the caller's process. A task that calls another one then continues with its own log.

    A stream that a task replaces stays replaced.
    """
    app, install_logs = eager_app
    install_logs(store=store.url)

    @app.task(bind=True, max_retries=1)
    def inner(self: Any) -> str:
        print("inner", self.request.retries, end="")
        if self.request.retries == 0:
            raise self.retry(countdown=0)
        return "done"

    @app.task
    def outer() -> str:
        print("before")
        answer: str = inner.apply(task_id="inner").get(disable_sync_subtasks=False)
        print("after")
        return answer

    before = sys.stdout
    assert outer.apply(task_id="outer").get() == "done"
    assert sys.stdout is before
    assert capsys.readouterr().out == "before\ninner 0inner 1after\n"
    assert read_lines(store, JobRef("eager", "outer")) == ["before", "after"]
    assert texts(store, JobRef("eager", "inner"), "stdout") == ["inner 0", "inner 1"]
    assert store.ask("HGET", key("job", JobRef("eager", "inner")), "attempt") == b"2"

    @app.task
    def replace() -> None:
        sys.stdout = other

    other = io.StringIO()
    monkeypatch.setattr(sys, "stdout", sys.stdout)
    replace.apply()
    assert sys.stdout is other


def test_a_task_that_runs_again_after_its_jobs_end_has_another_log(
    eager_app: tuple[Any, Install], store: RedisServer
) -> None:
    """For example if its job became LOST before the broker redelivered the task."""
    app, install_logs = eager_app
    install_logs(store=store.url)

    @app.task
    def say(text: str) -> None:
        print(text)

    for text in ("first", "second"):
        say.apply((text,), task_id="again")
    assert read_lines(store, JobRef("eager", "again")) == ["first"]
    assert read_lines(store, JobRef("eager", "again.2")) == ["second"]


def test_a_refused_log_changes_no_task(
    eager_app: tuple[Any, Install], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The reason is logged, and no file is left."""
    app, install_logs = eager_app

    @app.task
    def double(number: int) -> int:
        return 2 * number

    with ScriptedService(problem("401 Unauthorized", "no")) as service:
        install_logs(store=service.url, token="shown")
        assert double.delay(4).get() == 8

    (said,) = [record.getMessage() for record in caplog.records if record.name.startswith("chronoverse.")]
    assert "is not published" in said
    assert list(tmp_path.rglob("*.sqlite")) == []


def test_an_exit_ends_the_job(eager_app: tuple[Any, Install], store: RedisServer) -> None:
    """With its code; the caller still gets the exception. Other apps' tasks are not published."""
    app, install_logs = eager_app
    other = Celery("other", set_as_current=False)
    other.conf.task_always_eager = True
    install_logs(store=store.url)

    @app.task
    def leave(code: int) -> None:
        sys.exit(code)

    @other.task
    def quiet() -> str:
        return "done"

    ended = signal.SIGTERM - 256
    for number, (code, limits, end) in enumerate(
        [
            (3, (None, None), ("FAILED", "3")),
            (ended, (None, None), ("CANCELED", "143")),
            (ended, (60, None), ("CANCELED", "143")),
            # Beyond the hard time limit of the task or of the worker:
            (ended, (0.01, None), ("FAILED", "143")),
            (ended, (None, 0.01), ("FAILED", "143")),
        ]
    ):
        leave.time_limit = limits[0]
        signals.worker_init.send(sender=type("Worker", (), {"time_limit": limits[1]}))
        with pytest.raises(SystemExit):
            leave.apply((code,), task_id=f"exit {number}")
        assert outcome(store, JobRef("eager", f"exit-{number}")) == end
    assert quiet.apply(task_id="quiet").get() == "done"
    assert store.ask("EXISTS", key("job", JobRef("eager", "quiet"))) == 0


@pytest.mark.parametrize("url", ["ftp://x", "127.0.0.1:6379"])
def test_another_url_is_refused(eager_app: tuple[Any, Install], url: str) -> None:
    """At startup, not when a task runs."""
    with pytest.raises(ValueError, match="URL"):
        eager_app[1](store=url)


@pytest.mark.long
def test_tasks_are_published_through_a_service(broker: RedisServer, store: RedisServer, tmp_path: Path) -> None:
    """With the token from the settings."""
    secret = "0123456789abcdef" * 2
    with Service(tmp_path / "service", store.url, jwt_secret=secret) as service:
        token = mint(secret.encode(), "shop", ["logs:write"], ["*"], 600, time.time())
        where = {"CHRONOVERSE_REDIS_URL": "", "CHRONOVERSE_URL": service.url, "CHRONOVERSE_TOKEN": token}
        with shop(broker, store, tmp_path, "-P", "prefork", "-c", "1", "-Q", "http", **where) as worker:
            job = worker.job("flaky", worker.send("flaky", 1, queue="http"))
            assert worker.end(job) == ("COMPLETED", "0")
            assert texts(store, job, "stdout") == ["attempt 1", "attempt 2"]


@pytest.mark.long
def test_a_killed_process_is_lost(prefork: Shop) -> None:
    """Its job is RUNNING until the lease has expired, then LOST."""
    result = prefork.send("hang", 60)
    job = prefork.job("hang", result)
    os.kill(pid_of(prefork, job), signal.SIGKILL)
    with contextlib.closing(Store(prefork.store.url, lease_seconds=2)) as store:
        found = store.get_job(job)
        assert found is not None
        assert found.status is Status.RUNNING
        wait_until(lambda: (now := store.get_job(job)) and now.status is Status.LOST, SOON, "the job is LOST")


@pytest.mark.long
def test_a_task_that_is_delivered_again_is_a_new_attempt(prefork: Shop, tmp_path: Path) -> None:
    """It waits for the killed attempt's lease, and then continues its log."""
    result = prefork.send("die_once", str(tmp_path / "marker"))
    job = prefork.job("die_once", result)

    assert result.get(timeout=SOON) == "survived"
    assert prefork.end(job) == ("COMPLETED", "0")
    assert read_lines(prefork.store, job) == ["here", "here"]
    assert prefork.store.ask("HGET", key("job", job), "attempt") == b"2"


@pytest.mark.long
@pytest.mark.parametrize("pool", ["solo", "threads", "gevent"])
def test_other_pools(broker: RedisServer, store: RedisServer, tmp_path: Path, pool: str) -> None:
    """Each thread's output goes to its own task's log. A task's own threads are only known in a pool of processes."""
    with shop(broker, store, tmp_path, "-P", pool, "-c", "4", "-Q", pool, SHOP_WORKFLOW=f"all of {pool}") as worker:
        results = [worker.send("speak", f"task {number}", 0.2, queue=pool) for number in range(8)]
        retried = worker.send("flaky", 1, queue=pool)
        for number, result in enumerate(results):
            job = JobRef(f"all-of-{pool}", result.id)
            assert worker.end(job) == ("COMPLETED", "0")
            assert read_lines(store, job) == [f"task {number}", f"task {number} again"]
        job = JobRef(f"all-of-{pool}", retried.id)
        assert worker.end(job) == ("COMPLETED", "0")
        assert texts(store, job, "stdout") == ["attempt 1", "attempt 2"]
        if pool == "gevent":
            revoked = worker.send("speak", "long", 60, queue=pool)
            job = JobRef(f"all-of-{pool}", revoked.id)
            wait_until(lambda: read_lines(store, job), SOON, "its first line")
            revoked.revoke(terminate=True)
            assert worker.end(job) == ("CANCELED", None)
            assert read_lines(store, job) == ["long"]


def spooled(shop: Shop) -> list[Path]:
    """Files with undelivered lines."""
    return sorted(shop.spool.glob("*.sqlite"))


@pytest.mark.long
def test_many_tasks_leave_nothing_behind(lone: Shop) -> None:
    """No threads, descriptors, connections to the store, files or memory."""
    count = 100

    def run() -> dict[str, int]:
        """Resources of the pool's process after this many tasks, when idle."""
        for number in range(count):
            lone.send("talk", number, queue="lone", ignore_result=True)
        found: dict[str, int] = lone.app.send_task("celery.usage", queue="lone").get(timeout=2 * SOON)
        process = psutil.Process(found["process"])
        wait_until(lambda: process.num_threads() == 1, SOON, "the end of the logs' threads")
        connections = len(lone.store.ask("CLIENT", "LIST").splitlines())
        return {**found, "descriptors": process.num_fds(), "connections": connections}

    _, before, after = run(), run(), run()  # the first round also fills caches
    assert after.pop("blocks") - before.pop("blocks") < 3 * count
    assert before == after
    assert spooled(lone) == []
    assert "Traceback" not in lone.worker_log


def test_after_an_outage_the_next_tasks_hardly_wait(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Until one is delivered, or the time is over. A forked process has connections of its own.

    Each attempt has its own lease, which another process can end.
    """
    opened: list[tuple[float, float]] = []
    tokens: list[str] = []
    writers, delivers, now = list[object](), [False, False, True, True], [100.0]

    def open_try(writer: object, *_: Any, open_seconds: float, deliver_seconds: float, **options: Any) -> Any:
        writers.append(writer)
        opened.append((open_seconds, deliver_seconds))
        tokens.append(options["lease_token"])
        return SimpleNamespace(write=lambda *_: None, finished=False, finish=lambda *_: delivers.pop(0))

    module = "chronoverse.integrations.celery"
    monkeypatch.setattr(f"{module}.JobLog.open_try", open_try)
    monkeypatch.setattr(f"{module}.time", SimpleNamespace(monotonic=lambda: now[0]))
    app = Celery("shop", set_as_current=False)
    logs = install(app, store="http://127.0.0.1:1", token="token", settings=Settings(data_dir=tmp_path))
    try:

        @app.task
        def nothing() -> None:
            pass

        for seconds, retries in ((0, 0), (0, 1), (AWAY_SECONDS, 1), (0, 2)):
            now[0] += seconds
            nothing.apply(task_id="one", retries=retries)
        with monkeypatch.context() as forked:
            forked.setattr(os, "getpid", lambda: 1)
            forked.setattr(f"{module}._is_redelivered", lambda _: True)  # waits for the killed process's lease
            delivers.append(True)
            nothing.apply()
    finally:
        logs.uninstall()
    usual = (OPEN_SECONDS, DELIVER_SECONDS)
    patient = (OPEN_SECONDS, DELIVER_SECONDS + logs.settings.lease_seconds)
    assert opened == [usual, (0, 0.25), usual, usual, patient]
    assert [each is writers[0] for each in writers] == [True, True, True, True, False]
    assert [tokens.index(each) for each in tokens] == [0, 1, 1, 3, 4]


def example(containing: str, store: RedisServer) -> str:
    """The example in docs/celery.md that contains the text, with the address of ``store``."""
    page = (ROOT / "docs" / "celery.md").read_text("utf-8")
    (found,) = [text for text in re.findall(r"^```python\n(.*?)^```$", page, re.M | re.S) if containing in text]
    return str(found).replace("redis://127.0.0.1:6379/1", store.url)


@pytest.mark.long
def test_the_example_of_processes(store: RedisServer, tmp_path: Path) -> None:
    """It runs as printed."""
    (tmp_path / "example.py").write_text(example("ProcessPoolExecutor", store))
    command = [sys.executable, str(tmp_path / "example.py")]
    environ = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environ, cwd=tmp_path, capture_output=True, text=True)

    assert (done.returncode, done.stdout, done.stderr) == (0, "[1, 4, 9]\n", "")
    for number in (1, 2, 3):
        assert read_lines(store, JobRef("square", f"square-{number}")) == [f"squaring {number}"]


@pytest.mark.long
def test_the_example_of_celery(broker: RedisServer, store: RedisServer, tmp_path: Path) -> None:
    """Its worker, and a task that is retried once."""
    text = example("celery", store).replace("redis://127.0.0.1:6379/0", url_of(broker))
    (tmp_path / "shop.py").write_text(text)
    path = f"{tmp_path}:{ROOT}"
    with shop(broker, store, tmp_path, "-c", "1", "-Q", "shop", app="shop", PYTHONPATH=path) as started:
        job = JobRef("shop.charge", started.app.send_task("shop.charge", (7,), queue="shop").id)
        assert started.end(job) == ("COMPLETED", "0")
        assert texts(store, job, "stdout") == ["charging order 7 attempt 1", "charging order 7 attempt 2"]
        assert texts(store, job, "stderr")[-1] == "order 7 was late"
