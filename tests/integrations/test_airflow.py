"""Airflow task tries as jobs, without Airflow. ``real_airflow.py`` tests the real one."""

import json
import re
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar, Final, TextIO

import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st

from chronoverse.client.client import Client
from chronoverse.integrations.airflow import RemoteTaskLogs
from chronoverse.integrations.airflow.logs import AWAY_SECONDS, DELIVER_SECONDS, END_FIELD, OPEN_SECONDS
from chronoverse.integrations.airflow.records import lines_of_record, records_of_lines
from chronoverse.integrations.airflow.tries import TaskTry, is_of_triggerer, try_of_path
from chronoverse.joblog.model import IDENTIFIER, JobRef, Line, Status
from chronoverse.settings import Settings
from tests.support.examples import CHARACTERS
from tests.support.servers import RedisServer
from tests.support.service import SECRET, serving
from tests.support.waiting import wait_until

#: Seconds for prompt events on a busy machine.
SOON: Final = 30.0
PARTS: Final = st.text(CHARACTERS, min_size=1, max_size=20) | st.text("a.0F_-", min_size=1, max_size=8)


def parts_of(identifier: str, count: int) -> list[str]:
    """The ``count`` parts of an id: two different lists of parts have different ids."""

    def unescape(found: re.Match[str]) -> str:
        return bytes.fromhex(found[0].replace(".", "")).decode()

    parts = identifier.split("..")
    if parts[0] == "0" and len(parts) == count + 1:
        parts = parts[1:]
    return [re.sub(r"(?:\.[0-9A-F]{2})+", unescape, part) for part in parts]


@given(PARTS, PARTS, PARTS, st.integers(-1, 9999), st.integers(0, 999))
def test_the_job_of_a_try_names_the_try(dag: str, run: str, task: str, map_index: int, number: int) -> None:
    """Whatever its parts contain, unless they are too long for an id."""
    task_try = TaskTry(dag, run, task, map_index, number)
    job = task_try.job
    assert all(IDENTIFIER.fullmatch(name) and len(name) <= 120 for name in job)
    if "..sha256.." not in f"{job}":
        last = f"{number}" if map_index < 0 else f"{number}-{map_index}"
        assert (parts_of(job.workflow_id, 1), parts_of(job.job_id, 3)) == ([dag], [task, run, last])


def test_ids_can_be_read() -> None:
    """Letters, digits, and dots between them are unchanged."""
    task_try = TaskTry("my.deploy", "manual__2026-11-28T14:05:00+00:00", "group.extract", 3, 2)
    assert task_try.job == JobRef("my.deploy", "group.extract..manual__2026-11-28T14.3A05.3A00.2B00.3A00..2-3")
    assert dict(task_try.labels) == {
        "dag": "my.deploy",
        "map": "3",
        "run": "manual__2026-11-28T14:05:00+00:00",
        "task": "group.extract",
        "try": "2",
    }


def test_long_ids_differ() -> None:
    """They end with a digest. The labels identify the try."""
    tries = [TaskTry("d" * 250, "r" * 250, "t" * 250, -1, number) for number in (1, 2)]
    assert len({each.job for each in tries}) == 2
    for each in tries:
        assert ("try", str(each.try_number)) in each.labels
        assert ("task", each.task_id) in each.labels


def test_the_path_of_a_log_file_names_the_try() -> None:
    """In any folder. A triggerer's file belongs to the same try."""
    path = "dag_id=d/run_id=a:1+x/task_id=t.u/attempt=2.log"
    assert try_of_path(path) == try_of_path(f"/opt/logs/{path}") == TaskTry("d", "a:1+x", "t.u", -1, 2)
    assert try_of_path(path.replace("attempt", "map_index=0/attempt")) == TaskTry("d", "a:1+x", "t.u", 0, 2)
    trigger = f"{path}.trigger.12.log"
    assert try_of_path(trigger) == try_of_path(path)
    assert (is_of_triggerer(trigger), is_of_triggerer(path)) == (True, False)
    assert try_of_path("dag_processor/latest/shop.py.log") is None


def through(*records: dict[str, Any], max_line: int = 10**6) -> tuple[list[str], list[dict[str, Any]]]:
    """The lines of records, and the records read back from them."""
    lines: list[dict[str, Any]] = []
    for record in records:
        stream, text, seconds = lines_of_record(record)
        assert seconds == 5.0
        # As ``JobLog.write``, which adds a newline only if the text does not end with one.
        for line in text.removesuffix("\n").split("\n"):
            pieces = [line[start : start + max_line] for start in range(0, max(len(line), 1), max_line)]
            for piece in pieces:
                more = piece is not pieces[-1]
                lines.append(Line(len(lines) + 1, "1970-01-01T00:00:05.000Z", piece, stream, more).to_json())
    return [line["message"] for line in lines], [json.loads(record) for record in records_of_lines(lines)]


def record(event: str, **fields: Any) -> dict[str, Any]:
    return {"event": event, "level": "info", "logger": "shop", "timestamp": datetime.fromtimestamp(5, UTC), **fields}


def test_what_a_task_prints_is_a_line() -> None:
    """And nothing else."""
    lines, _ = through(
        record("hello", logger="task.stdout"), record("oh", logger="task.stderr", level="error", try_number=1)
    )
    assert lines == ["hello", "oh"]


TEXTS: Final = st.sampled_from(
    ["", "a\tb", 'a\t{"x":1}', "a\t{}", "a\t{", "a\nb", "a\n\n", "ä", 'a\t{"chronoverse_lines":3}']
)


@given(
    st.lists(
        st.builds(
            record,
            TEXTS | st.text(CHARACTERS),
            level=st.sampled_from(["debug", "info", "warning", "error"]),
            logger=st.sampled_from(["shop", "task.stdout", "task.stderr"]),
            lines=st.integers(0, 3),
        )
        | st.builds(record, TEXTS, logger=st.just("task.stdout")),
        max_size=8,
    ),
    st.sampled_from([3, 1000]),
)
def test_records_come_back_as_they_were(records: list[dict[str, Any]], max_line: int) -> None:
    """Once, in order and complete. Each is later than its predecessor."""
    _, found = through(*records, max_line=max_line)
    times = [each.pop("timestamp") for each in found]
    assert found == [{name: value for name, value in each.items() if name != "timestamp"} for each in records]
    assert sorted(set(times)) == times


def test_a_value_of_any_type_is_kept_as_text() -> None:
    """A record is never dropped because of its content."""
    lines, found = through(
        record("a\nmore", path=Path("/x"), big=2**70), record("b", half="\ud800"), record("c", path=Path("/x"))
    )
    assert [line.split("\t")[0] for line in lines] == ["a", "more", "b", "c"]
    assert [each["event"] for each in found] == ["a\nmore", "b", "c"]
    assert '"big":"1180591620717411303424"' in lines[0]
    assert '"path":"/x"' in lines[3]


def test_a_traceback_is_lines() -> None:
    """As Python prints it, the first exception first."""
    try:
        try:
            raise OSError("first")
        except OSError as error:
            raise ValueError("bad luck\nand more") from error
    except ValueError as error:
        trace = structlog.tracebacks.ExceptionDictTransformer(show_locals=False)(
            (type(error), error, error.__traceback__)
        )
    name = test_a_traceback_is_lines.__name__
    lines, (found,) = through(record("failed", level="error", error_detail=trace))
    assert lines[0].startswith("failed\t{")
    places = [f'  File "{__file__}", line {frame["lineno"]}, in {name}' for stack in trace for frame in stack["frames"]]
    traceback = "Traceback (most recent call last):"
    between = "The above exception was the direct cause of the following exception:"
    assert lines[1:] == [
        *(traceback, places[1], "OSError: first", "", between, ""),
        *(traceback, places[0], "ValueError: bad luck", "and more"),
    ]
    assert found["event"].split("\n") == ["failed", *lines[1:]]


def test_lines_that_are_missing_are_named() -> None:
    """Also inside a record, and between the pieces of a long line."""
    lines = [
        Line(2, "1970-01-01T00:00:05.000Z", 'a\t{"chronoverse_lines":3}', "stdout"),
        Line(3, "1970-01-01T00:00:05.000Z", "b", "stdout"),
        Line(6, "1970-01-01T00:00:05.000Z", "c", "stdout", partial=True),
        Line(8, "1970-01-01T00:00:05.000Z", "d", "stdout"),
    ]
    events = [json.loads(each)["event"] for each in records_of_lines(line.to_json() for line in lines)]
    assert events == [
        "the log does not have line 1",
        "a\nb",
        "the log does not have line 4 to 5",
        "c",
        "the log does not have line 7",
        "d",
    ]


#: Open log files, one for each try.
FILES: Final[dict[Path, TextIO]] = {}


@pytest.fixture(autouse=True)
def _close_files() -> Iterator[None]:
    yield
    while FILES:
        FILES.popitem()[1].close()


def say(path: Path, logs: RemoteTaskLogs, text: str, **fields: Any) -> None:
    """Logs a line immediately, as Airflow does to a task's log file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    processors: list[Any] = [structlog.processors.add_log_level, *logs.processors, structlog.processors.JSONRenderer()]
    if path not in FILES:
        FILES[path] = path.open("a")
    logger = structlog.wrap_logger(structlog.WriteLogger(FILES[path]), processors=processors)
    logger.info(text, logger="task.stdout", **fields)


def has_lines(logs: RemoteTaskLogs, path: str, *expected: str) -> bool:
    return events(logs, path) == list(expected)


def events(logs: RemoteTaskLogs, path: str) -> list[str]:
    """The records that Airflow's page shows, without sources."""
    return [json.loads(line)["event"] for stream in logs.stream(path, None)[1] for line in stream]


class FakeLog:
    """Stands in for a job's log. ``opened`` are the options of each; ``slow`` opens take seconds of ``now``."""

    opened: ClassVar[list[dict[str, Any]]] = []
    ends: ClassVar[list[tuple[Any, ...]]] = []
    ended_in: ClassVar[list[threading.Thread]] = []
    now: ClassVar[float] = 100.0
    slow: ClassVar[float] = 0.0
    delivers: ClassVar[bool] = True

    @classmethod
    def open_try(cls, *_: Any, **options: Any) -> "FakeLog":
        cls.opened.append(options)
        cls.now += cls.slow
        return cls()

    def write(self, *_: Any, **__: Any) -> None:
        pass

    def finish(self, *end: Any) -> bool:
        self.ended_in.append(threading.current_thread())
        self.ends.append(end)
        return self.delivers


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> type[FakeLog]:
    class Fresh(FakeLog):
        opened: ClassVar[list[dict[str, Any]]] = []
        ends: ClassVar[list[tuple[Any, ...]]] = []
        ended_in: ClassVar[list[threading.Thread]] = []

    monkeypatch.setattr("chronoverse.integrations.airflow.logs.JobLog", Fresh)
    monkeypatch.setattr("chronoverse.integrations.airflow.logs.time", SimpleNamespace(monotonic=lambda: Fresh.now))
    return Fresh


def test_a_try_ends_as_its_process_says_and_a_trigger_ends_no_job(fake: type[FakeLog], tmp_path: Path) -> None:
    """Without a word, the process was killed. A deferred task continues after its trigger, and no trigger waits.

    An abnormal exit after the task's end changes nothing.
    """
    logs = RemoteTaskLogs("http://127.0.0.1:1", "token", settings=Settings(data_dir=tmp_path))
    name = "dag_id=d/run_id=r/task_id=t/attempt=1.log"
    tries = ((name, None, 0), (name, "COMPLETED", 0), (name, None, 3), (name, "COMPLETED", 3))
    for path, end, code in (*tries, (f"{name}.trigger.12.log", None, 0)):
        say(tmp_path / path, logs, "one")
        if end:
            say(tmp_path / path, logs, "the end", **{END_FIELD: end})
        if code:
            say(tmp_path / path, logs, "Process exited abnormally", exit_code=code)
        logs.upload(tmp_path / path)
    wait_until(lambda: len(fake.ends) == 5, SOON, "all have ended")
    completed = Status.COMPLETED, 0
    assert fake.ends == [(Status.LOST, None), completed, (Status.FAILED, 3), completed, (Status.PENDING, None)]
    assert [each is threading.current_thread() for each in fake.ended_in] == [*[True] * 4, False]


def test_a_try_that_airflow_cannot_start_ends(fake: type[FakeLog], tmp_path: Path) -> None:
    """Airflow closes its file, and uploads nothing. The worker continues, and would renew the lease forever."""
    logs = RemoteTaskLogs("http://127.0.0.1:1", "token", settings=Settings(data_dir=tmp_path))
    path = tmp_path / "dag_id=d/run_id=r/task_id=t/attempt=1.log"
    say(path, logs, "one")
    FILES[path].close()
    wait_until(lambda: fake.ends, SOON, "the end")
    assert fake.ends == [(Status.LOST, None)]


@pytest.mark.parametrize(("slow", "delivers"), [(OPEN_SECONDS, True), (0.0, False)], ids=["open", "delivery"])
def test_after_an_outage_the_next_tries_hardly_wait(
    fake: type[FakeLog], tmp_path: Path, slow: float, delivers: bool
) -> None:
    logs = RemoteTaskLogs("http://127.0.0.1:1", "token", settings=Settings(data_dir=tmp_path))
    fake.slow, fake.delivers = slow, delivers
    for number in range(3):
        path = tmp_path / f"dag_id=d/run_id=r/task_id=t/attempt={number}.log"
        say(path, logs, "one")
        logs.upload(path)
        fake.now += AWAY_SECONDS * (number == 1)
    waits = [(each["open_seconds"], each["deliver_seconds"]) for each in fake.opened]
    assert waits == [(OPEN_SECONDS, DELIVER_SECONDS), (0, 1), (OPEN_SECONDS, DELIVER_SECONDS)]


@pytest.mark.long
def test_a_try_is_published_while_it_runs(
    server: RedisServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Airflow reads it while it runs. It ends with its process's status. During an outage nothing is forgotten."""
    settings = Settings(data_dir=tmp_path / "data")
    with serving(tmp_path, server.url, jwt_secret=SECRET.decode(), key_prefix=tmp_path.name) as service:
        logs = RemoteTaskLogs(service.url, service.token(), settings=settings)
        client = Client(service.url, service.token())
        for number, end in enumerate(("COMPLETED", "FAILED", "PENDING", None), 1):
            name = f"dag_id=d/run_id=r/task_id=t/attempt={number}.log"
            assert events(logs, name) == []
            say(tmp_path / name, logs, "one")
            say(tmp_path / name, logs, "two")
            wait_until(partial(has_lines, logs, name, "one", "two"), SOON, "both lines")
            if end:
                say(tmp_path / name, logs, "the end", **{END_FIELD: end})
            logs.upload(name)
            job = client.job(JobRef("d", f"t..r..{number}"))
            assert (job["status"], job["exit_code"]) == {
                "COMPLETED": ("COMPLETED", 0),
                "FAILED": ("FAILED", 1),
                "PENDING": ("RUNNING", None),
                None: ("LOST", None),
            }[end]
            assert logs.read(name, None)[1] == ["\n".join(*logs.stream(name, None)[1])]
        # The deferred task continues, and a lost one gets another log if Airflow reruns it.
        for number in (3, 4):
            name = f"dag_id=d/run_id=r/task_id=t/attempt={number}.log"
            say(tmp_path / name, logs, "three")
            logs.upload(name)
            assert events(logs, name) == ["one", "two", "three"]
        assert client.job(JobRef("d", "t..r..3"))["attempt"] == 2
        assert client.job(JobRef("d", "t..r..4.2"))["labels"]["try"] == "4"
        client.close()
        assert {path.stat().st_size for path in tmp_path.rglob("attempt=*")} == {0}

        refused = RemoteTaskLogs(service.url, "shown", settings=settings)
        say(tmp_path / "refused" / name, refused, "kept in the file")
        assert "kept in the file" in (tmp_path / "refused" / name).read_text()

    away = "dag_id=d/run_id=r/task_id=t/attempt=5.log"
    say(tmp_path / away, logs, "later")
    logs.upload(away)
    assert "deliver later: chronoverse deliver" in caplog.text
    assert len(list((tmp_path / "data" / "spool").glob("*.sqlite"))) == 1
    (source,), streams = logs.stream(away, None)
    assert "is not responding" in source
    assert streams == []
