"""The Python API with a real store: what a program writes, and how its outcome becomes the job's."""

import contextlib
import itertools
import logging
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from textwrap import indent
from typing import Any, Final, cast

import pytest

from chronoverse.api import JobLog, JobLogHandler, JobLogStream
from chronoverse.errors import Closed, Held, Unauthorized
from chronoverse.joblog.line_splitter import LineBatch
from chronoverse.joblog.model import JobRef, Status
from chronoverse.runner.http_log_writer import HttpLogWriter
from chronoverse.runner.spool.spool_file import SpoolRoom
from chronoverse.settings import Settings
from chronoverse.store import Durability, Store
from tests.support.jobs import JOB, key, outcome, read_lines, read_log
from tests.support.scripted import ScriptedService, problem
from tests.support.secret_keys import GITHUB, MASKED_PEM, PEM
from tests.support.servers import RedisServer
from tests.support.service import ROOT
from tests.support.waiting import wait_until

SOON: Final = 10.0
#: The clock's time, as a number and as a timestamp.
NOW: Final = 1_772_532_005.123
STAMP: Final = "2026-03-03T10:00:05.123Z"

OpenLog = Callable[..., JobLog]
_names = itertools.count()


@pytest.fixture
def open_log(store: Store) -> Iterator[OpenLog]:
    """Opens the job's log, and ends it unless the test does."""
    opened: list[JobLog] = []

    def open_log(**options: Any) -> JobLog:
        opened.append(JobLog.open(store, *JOB, clock=lambda: NOW, **options))
        return opened[-1]

    yield open_log
    for log in opened:
        log.finish()


@pytest.fixture
def logger() -> Iterator[logging.Logger]:
    """The test's own logger, with no handlers but the test's."""
    logger = logging.getLogger(f"tests.api.{next(_names)}")
    logger.setLevel(logging.DEBUG)
    logger.propagate = False
    yield logger
    logger.handlers.clear()


def test_written_lines_are_the_log(server: RedisServer, open_log: OpenLog) -> None:
    """Lines are in call order across both streams, and the job completes, with its labels."""
    with open_log(labels={"branch": "main"}) as log:
        log.write("stdout", "one")
        log.write("stderr", "two\n")
        log.write("stdout", "three\n\nfive")
        log.write("stdout", b"caf\xc3\xa9 \xff")
        log.write("stdout", "")
        log.write("stderr", "a\rb \ud800", at=NOW + 1)

    lines, _ = read_log(server)
    assert [(line["stream"], line["message"]) for line in lines] == [
        ("stdout", "one"),
        ("stderr", "two"),
        ("stdout", "three"),
        ("stdout", ""),
        ("stdout", "five"),
        ("stdout", "café \ufffd"),
        ("stdout", ""),
        ("stderr", "a\rb ?"),
    ]
    assert [line["timestamp"] for line in lines] == [STAMP] * 7 + ["2026-03-03T10:00:06.123Z"]
    assert (outcome(server), server.ask("HGET", key("job"), "label:branch")) == (("COMPLETED", "0"), b"main")
    assert (log.finished, log.undelivered, log.dropped) == (True, 0, 0)


@pytest.mark.parametrize("forms", [None, "off", "file"])
def test_secrets_known_by_their_form_are_masked(
    server: RedisServer, open_log: OpenLog, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, forms: str | None
) -> None:
    """Even a private key written line by line. The setting is the process's."""
    if forms is not None:
        path = tmp_path / "forms.toml"
        path.write_text("[forms]\nacme = 'acme_[a-z]{8}'\n")
        monkeypatch.setenv("CHRONOVERSE_MASK_FORMS", "off" if forms == "off" else str(path))
    with open_log() as log:
        log.write("stdout", f"with {GITHUB} and acme_abcdefgh")
        for line in PEM:
            log.write("stderr", line)
    acme = "[masked]" if forms == "file" else "acme_abcdefgh"
    masked = [f"with [masked] and {acme}", *MASKED_PEM]
    assert read_lines(server) == ([f"with {GITHUB} and {acme}", *PEM] if forms == "off" else masked)


@pytest.mark.parametrize(
    ("raised", "status", "code", "said"),
    [
        (ValueError("bad luck"), "FAILED", "1", "ValueError: bad luck"),
        (KeyboardInterrupt(), "CANCELED", "130", None),
        (SystemExit(), "COMPLETED", "0", None),
        (SystemExit(0), "COMPLETED", "0", None),
        (SystemExit(4), "FAILED", "4", None),
        (SystemExit("no more"), "FAILED", "1", "no more"),
    ],
    ids=repr,
)
def test_an_exception_decides_how_the_job_ends(
    server: RedisServer, open_log: OpenLog, raised: BaseException, status: str, code: str, said: str | None
) -> None:
    """The exception is written to stderr and propagates out of the block."""
    with pytest.raises(type(raised)), open_log():
        raise raised

    lines, _ = read_log(server)
    assert outcome(server) == (status, code)
    assert (lines[-1]["message"] if lines else None) == said
    assert all(line["stream"] == "stderr" for line in lines)


@pytest.mark.parametrize(
    ("given", "ended"),
    [(("CANCELED", None), ("CANCELED", None)), ((Status.LOST,), ("LOST", None)), ((Status.FAILED, 4), ("FAILED", "4"))],
)
def test_finish_decides_how_the_job_ends(
    server: RedisServer, open_log: OpenLog, given: Any, ended: tuple[str, str | None]
) -> None:
    """A second call and the end of the block have no effect. A killed command has no exit code."""
    with open_log() as log:
        for status in ("RUNNING", "done"):
            with pytest.raises(ValueError, match="COMPLETED, FAILED, CANCELED or LOST"):
                log.finish(status)
        with pytest.raises(ValueError, match="stdin"):
            log.write("stdin", "a")
        with pytest.raises(TypeError, match="'int'"):
            log.write("stdout", 5)  # type: ignore[arg-type]  # Not five NUL bytes.
        log.write("stdout", "a")
        assert log.finish(*given)
        assert log.finish(Status.COMPLETED, 0)

    assert (outcome(server), read_lines(server)) == (ended, ["a"])
    with pytest.raises(ValueError, match="finished"):
        log.write("stdout", "b")


def test_a_write_during_which_the_log_is_finished_says_so(store: Store) -> None:
    """Its text is not in the log: the call raises ValueError."""

    def finish() -> float:
        log.finish()
        return NOW

    log = JobLog.open(store, *JOB, clock=finish)
    with pytest.raises(ValueError, match="finished"):
        log.write("stdout", "late")


def test_attempts_continue_one_log(server: RedisServer) -> None:
    """An attempt ends once its lines are safe, and leaves the job open for the next one, without its exit code."""
    with contextlib.closing(Store(server.url, durability=Durability.FSYNCED)) as store:
        for attempt in ("first", "second"):
            log = JobLog.open(store, *JOB)
            log.write("stdout", attempt)
            assert log.finish("PENDING", 3)
            assert (read_log(server)[1], server.ask("HGET", key("job"), "status")) == (None, b"RUNNING")
        with JobLog.open(server.url, *JOB) as log:
            log.write("stdout", "third")

    assert read_lines(server) == ["first", "second", "third"]
    assert (outcome(server), server.ask("HGET", key("job"), "attempt")) == (("COMPLETED", "0"), b"3")


def test_a_frameworks_try_has_the_settings_of_the_process(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """If the job has ended, it gets another id. Other refusals are raised."""
    opened, refusals = list[dict[str, Any]](), [Closed("ended"), None, Held("held")]

    def open_log(*_: Any, **options: Any) -> None:
        opened.append(options)
        if refusal := refusals.pop(0):
            raise refusal

    monkeypatch.setattr(JobLog, "open", open_log)
    settings = Settings(data_dir=tmp_path, spool_max_bytes=2**24, max_line_bytes=1_000, lease_seconds=7)
    JobLog.open_try("url", JOB, settings, deliver_seconds=3)
    with pytest.raises(Held):
        JobLog.open_try("url", JOB, settings)
    room = SpoolRoom(tmp_path / "spool", file_bytes=2**24)
    shared = {"max_line_bytes": 1_000, "lease_seconds": 7, "room": room}
    first = {**shared, "deliver_seconds": 3}
    assert opened == [first | {"wait_for_lease": True}, first | {"retry": True}, shared | {"wait_for_lease": True}]


def test_lines_can_wait_for_another_runners_lease(server: RedisServer, store: Store, open_log: OpenLog) -> None:
    """The log is opened in the background once the previous runner's lease expires, as after a kill."""
    store.open(JobRef(*JOB), "another")
    said: list[str] = []
    with open_log(wait_for_lease=True, open_seconds=0.1, say=said.append) as log:
        log.write("stdout", "late")
        server.ask("DEL", key("lease"))
    assert (read_lines(server), outcome(server)) == (["late"], ("COMPLETED", "0"))
    assert said[-1] == "the other runner no longer holds the job"


def test_an_attempt_can_be_ended_with_its_lease_token(server: RedisServer, store: Store, open_log: OpenLog) -> None:
    """Without starting a new attempt or waiting for the lease. A log that is printed does not show it."""
    with open_log(lease_token="ab" * 16, say=lambda text: None) as log:
        assert "ab" * 16 not in repr(log)
        attempt = store.open(JobRef(*JOB), "ab" * 16)
        store.finish(attempt, Status.CANCELED, None, 0, attempt.next)
        assert not log.finish()
    assert (attempt.attempt, outcome(server)) == (1, ("CANCELED", None))


class Recorder:
    """Stands in for a log."""

    def __init__(self) -> None:
        self.writes: list[tuple[str, str]] = []
        self.finished = False
        #: Called in each write, as a signal handler can be.
        self.meanwhile: Callable[[], object] = lambda: None

    def write(self, stream: str, text: str) -> None:
        self.meanwhile()
        if self.finished:
            raise ValueError
        self.writes.append((stream, text))


MOST: Final = 65_536


@pytest.mark.parametrize(
    ("pieces", "writes"),
    [
        (["one", " 2", "\n\n"], ["one 2\n\n"]),
        (["a\nb", "c\nd"], ["a\n", "bc\n", "d\n"]),
        (["x" * MOST, "\n"], ["x" * MOST + "\n"]),
        (["x" * MOST, "y", "z"], ["x" * MOST + "y\n", "z\n"]),
        (["x" * MOST + "y", "", "\n", "\n"], ["x" * MOST + "y\n", "\n"]),
        (["a\n" + "x" * (MOST + 1)], ["a\n" + "x" * (MOST + 1) + "\n"]),
        (["", "not ended"], ["not ended\n"]),
    ],
    ids=["parts", "rest", "longest", "too long", "too long, ended", "too long rest", "close"],
)
def test_a_stream_publishes_lines_when_they_end(pieces: list[str], writes: list[str]) -> None:
    """Or when they are too long, or the stream is closed. Later text is ignored, also if the log ends meanwhile."""
    log = Recorder()
    with JobLogStream(cast("JobLog", log), "stderr") as stream:
        assert [stream.write(piece) for piece in pieces] == list(map(len, pieces))
    stream.close()
    assert stream.write("late\n") == 5
    assert log.writes == [("stderr", text) for text in writes]
    log.meanwhile = partial(setattr, log, "finished", True)
    with JobLogStream(cast("JobLog", log), "stdout") as late, contextlib.redirect_stdout(late):
        print("late")
        print("later", end="")
    assert len(log.writes) == len(writes)


def test_a_signal_handler_can_write_to_a_stream_that_is_writing() -> None:
    """It runs in the same thread, between any two instructions. No text is lost or repeated."""
    log = Recorder()
    stream = JobLogStream(cast("JobLog", log), "stdout")

    def handle() -> None:
        log.meanwhile = lambda: None
        stream.write("handled\nand ")

    log.meanwhile = handle
    stream.write("one\nt")
    stream.write("wo\n")
    assert "".join(text for _, text in log.writes) == "one\nthandled\nand wo\n"


@pytest.mark.parametrize(("patience", "seconds"), [(60, 0.3), (0.01, 60)], ids=["waits", "is stuck"])
def test_text_is_published_when_its_write_returns(patience: float, seconds: float) -> None:
    """The log can be finished next, and a thread that prints a lot does not fill the memory.

    But if another thread that writes waits for this one, that one publishes the text.
    """
    log, begun, seen = Recorder(), threading.Event(), list[tuple[str, str]]()
    stream = JobLogStream(cast("JobLog", log), "stdout")
    stream._texts.patience = patience

    def write_second() -> None:
        begun.wait(60)
        stream.write("two\n")
        seen.extend(log.writes)

    def let_write() -> None:
        log.meanwhile = lambda: None
        begun.set()
        second.join(seconds)

    second, log.meanwhile = threading.Thread(target=write_second, name="chronoverse-reader"), let_write
    second.start()
    stream.write("one\n")
    second.join(60)
    assert log.writes == [("stdout", "one\n"), ("stdout", "two\n")]
    assert seen == (log.writes if patience > seconds else [])


def test_a_finalizer_or_signal_handler_can_write_to_a_log_that_is_written_to(
    server: RedisServer, open_log: OpenLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its lines follow the interrupted ones. In the publisher's thread, it waits for no other thread.

    Any thread can end the log.
    """
    log = open_log()
    spool = log._publisher.spool
    put, is_stuck = spool.put, []
    printed = JobLogStream(log, "stdout")

    def interrupted(batch: LineBatch) -> None:
        monkeypatch.undo()
        printed.write("handled\n")
        finalizer = threading.Thread(
            target=printed.write, args=("finalized\n",), name="chronoverse-publisher", daemon=True
        )
        with spool._changed:
            finalizer.start()
            finalizer.join(20)
        is_stuck.append(finalizer.is_alive())
        put(batch)

    monkeypatch.setattr(spool, "put", interrupted)
    printed.write("one\ntwo\n")
    assert is_stuck == [False]
    for target, name in (
        (partial(log.write, "stdout", "last"), "chronoverse-durability"),
        (log.finish, "chronoverse-end"),
    ):
        thread = threading.Thread(target=target, name=name)
        thread.start()
        thread.join()
    assert log.finish()
    assert read_lines(server) == ["one", "two", "handled", "finalized", "last"]


def test_threads_can_write_concurrently(server: RedisServer, open_log: OpenLog) -> None:
    """Each thread's lines stay whole and in order."""
    with open_log() as log:

        def write(name: int) -> None:
            for number in range(500):
                log.write("stdout", f"{name} {number}\n{name} {number} again")

        threads = [threading.Thread(target=write, args=(name,)) for name in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    lines = read_lines(server)
    assert len(lines) == 8000
    assert all(second == f"{first} again" for first, second in zip(lines[::2], lines[1::2], strict=True))
    for name in range(8):
        assert [line for line in lines[::2] if line.startswith(f"{name} ")] == [f"{name} {n}" for n in range(500)]


@pytest.mark.parametrize(
    ("job", "options", "says"),
    [
        *((job, {}, "invalid id") for job in (("a b", "j"), ("w", ""), ("w", "../x"))),
        *((JOB, {"lease_seconds": each}, f"invalid lease_seconds {each}") for each in (0, -1, float("nan"))),
        (JOB, {"ca_file": "/missing"}, "invalid ca_file '/missing': must be the path"),
        (JOB, {"labels": {"Branch": "main"}}, "key is 1 to 63"),
    ],
)
def test_invalid_arguments_are_rejected(job: tuple[str, str], options: dict[str, Any], says: str) -> None:
    """Before the store is contacted."""
    with pytest.raises(ValueError, match=says):
        JobLog.open("http://127.0.0.1:1", *job, **options)


@pytest.mark.parametrize("is_interrupted", [False, True], ids=["timeout", "Ctrl-C"])
def test_undelivered_lines_are_reported(
    is_interrupted: bool, server: RedisServer, open_log: OpenLog, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """With a directory, the lines are saved to a file, and the message includes the command that delivers it."""
    said: list[str] = []

    def interrupt(seconds: float) -> bool:
        raise KeyboardInterrupt

    log = open_log(deliver_seconds=0.1, say=said.append, room=SpoolRoom(tmp_path / "spool"))
    if is_interrupted:
        monkeypatch.setattr(log._publisher, "join", interrupt)
    with pytest.raises(KeyboardInterrupt) if is_interrupted else contextlib.nullcontext(), log:
        server.kill()
        log.write("stdout", "late")

    assert (log.undelivered, log.finish()) == (1, False)
    assert "1 line was not delivered to the store" in said
    assert "chronoverse deliver" in said[-1]
    server.start()


def test_the_url_of_a_service_is_enough() -> None:
    """With a token; the service's rejection is raised immediately. Only URLs of stores and services are accepted."""
    with ScriptedService(problem("401 Unauthorized", "no")) as service, pytest.raises(Unauthorized):
        JobLog.open(service.url, *JOB, token="shown", open_seconds=SOON)
    assert service.requests[0].headers["authorization"] == "Bearer shown"
    for url in ("ftp://x", "x", "", "127.0.0.1:8000"):
        with pytest.raises(ValueError, match="invalid URL of a store or service: must be a complete"):
            JobLog.open(url, *JOB)


def test_log_records_become_lines(
    server: RedisServer, open_log: OpenLog, logger: logging.Logger, capsys: pytest.CaptureFixture[str]
) -> None:
    """WARNING and above go to stderr, or a chosen level. A line has its record's time; a traceback is several lines.

    As with any handler, an error in a record is printed and not raised.
    """
    with open_log() as log:
        for handler in (JobLogHandler(log, logging.INFO), JobLogHandler(log, "WARNING", stderr_level=logging.ERROR)):
            handler.setFormatter(logging.Formatter("%(levelname)s %(message)s"))
            logger.addHandler(handler)
        logger.debug("unheard")
        JobLogHandler(log).handle(logger.makeRecord("name", logging.INFO, "file", 1, "%d", ("no number",), None))
        logger.info("hello %s", "you")
        logger.warning("careful")
        try:
            raise ValueError("bad luck")
        except ValueError:
            logger.exception("it failed")
    logger.info("after the end")
    assert "Logging error" in capsys.readouterr().err

    lines, _ = read_log(server)
    messages = [(line["stream"], line["message"]) for line in lines]
    assert messages[:5] == [
        ("stdout", "INFO hello you"),
        ("stderr", "WARNING careful"),
        ("stdout", "WARNING careful"),
        ("stderr", "ERROR it failed"),
        ("stderr", "Traceback (most recent call last):"),
    ]
    assert messages[-1] == ("stderr", "ValueError: bad luck")
    assert lines[0]["timestamp"] > STAMP


def test_records_of_the_loggers_own_requests_are_omitted(logger: logging.Logger) -> None:
    """Publishing each such line would need another request, which logs another line."""
    library = logging.getLogger("tests.tokens")
    before, made = library.level, list[str]()

    def token() -> str:
        library.info("a token is made for a request")
        made.append("token")
        return made[-1]

    refused = problem("503 Service Unavailable", "away")
    with ScriptedService(*[refused] * 3) as service:
        log = JobLog.open(HttpLogWriter(service.url, token), *JOB, deliver_seconds=0, say=lambda text: None)
        handler = JobLogHandler(log)
        library.addHandler(handler)
        library.setLevel(logging.DEBUG)
        try:
            known = len(made)
            wait_until(lambda: len(made) >= known + 2, SOON, "two more requests")
            assert log.undelivered == 0
        finally:
            library.removeHandler(handler)
            library.setLevel(before)
            log.finish()


def test_the_examples_of_the_page_publish_what_they_say(server: RedisServer) -> None:
    """Each block runs as printed, in its own process, with an open log."""
    page = (ROOT / "docs" / "python-api.md").read_text("utf-8")
    examples = [
        each
        for each in re.findall(r"^```python\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
        if "open(" not in each and "follow(" not in each
    ]
    for number, example in enumerate(examples):
        begin = (
            f"from chronoverse.api import JobLog\nwith JobLog.open({server.url!r}, 'wf_1', 'job_{number}') as log:\n"
        )
        done = subprocess.run(
            [sys.executable, "-c", begin + indent(example, "    ")], timeout=60, cwd=ROOT, check=False
        )
        assert done.returncode == 0
        assert read_lines(server, JobRef("wf_1", f"job_{number}")) == [["published"], ["published, too"]][number]
    assert len(examples) == 2
