"""Task tries in a real Airflow. Run only by ``make test-airflow``, which creates its environment."""

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import httpx
import pytest

from chronoverse.client.client import Client
from chronoverse.integrations.airflow.tries import TaskTry
from tests.support.ports import free_port
from tests.support.processes import stop_process
from tests.support.servers import RedisServer
from tests.support.service import ROOT, SECRET, Service
from tests.support.waiting import deadline, wait_until

#: Seconds for a DAG run, and for the start of a component, on a busy machine.
PATIENCE_SECONDS: Final = 240.0
LEASE_SECONDS: Final = 5

pytestmark = [pytest.mark.long, pytest.mark.timeout(900)]


class Airflow:
    """All components of an Airflow with a LocalExecutor, set up as in docs/airflow.md."""

    def __init__(self, home: Path, service: Service) -> None:
        self.service = service
        self._home = home
        self._parts: list[subprocess.Popen[bytes]] = []
        port = free_port()
        self._url = f"http://127.0.0.1:{port}"
        self._http = httpx.Client(base_url=self._url, timeout=60)
        (home / "config").mkdir()
        (home / "data").mkdir()
        page = (ROOT / "docs" / "airflow.md").read_text("utf-8")
        (config,) = re.findall(r"^```python\n(.*?)^```$", page, re.M | re.S)
        (home / "config" / "log_config.py").write_text(config)
        shutil.copytree(ROOT / "tests" / "integrations" / "airflow_dags", home / "dags")
        (home / "token").write_text(service.token())
        (shown,) = re.findall(r"^export (AIRFLOW_.*)=(.*)$", page, re.M)
        self._environ = {name: value for name, value in os.environ.items() if not name.startswith("CHRONOVERSE_")} | {
            "AIRFLOW_HOME": str(home),
            "AIRFLOW__API__BASE_URL": self._url,
            "AIRFLOW__API__HOST": "127.0.0.1",
            "AIRFLOW__API__PORT": str(port),
            "AIRFLOW__API__SECRET_KEY": SECRET.decode(),
            "AIRFLOW__API__WORKERS": "1",
            "AIRFLOW__API_AUTH__JWT_SECRET": 2 * SECRET.decode(),
            "AIRFLOW__CORE__DAGS_ARE_PAUSED_AT_CREATION": "False",
            "AIRFLOW__CORE__EXECUTION_API_SERVER_URL": f"{self._url}/execution/",
            "AIRFLOW__CORE__EXECUTOR": "LocalExecutor",
            "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
            "AIRFLOW__CORE__PARALLELISM": "4",
            "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_ALL_ADMINS": "True",
            "AIRFLOW__USAGE_DATA_COLLECTION__ENABLED": "False",
            "CHRONOVERSE_DATA_DIR": str(home / "data"),
            "CHRONOVERSE_LEASE_SECONDS": str(LEASE_SECONDS),
            "CHRONOVERSE_TOKEN_FILE": str(home / "token"),
            "CHRONOVERSE_URL": service.url,
            **dict([shown]),
        }

    def __enter__(self) -> "Airflow":
        try:
            self._run("db", "migrate").wait(PATIENCE_SECONDS)
            # Its log servers would listen on all addresses.
            self._parts += [
                self._run("dag-processor"),
                self._run("api-server"),
                self._run("scheduler", "--skip-serve-logs"),
                self._run("triggerer", "--skip-serve-logs"),
            ]
            wait_until(self._is_ready, PATIENCE_SECONDS, "Airflow has read its DAGs")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *exception: object) -> None:
        self._http.close()
        for part in reversed(self._parts):
            stop_process(part, 20)
            # A killed component leaves its workers behind.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(part.pid, signal.SIGKILL)

    def _run(self, *command: str) -> "subprocess.Popen[bytes]":
        with (self._home / f"{command[0]}.log").open("wb") as log:
            airflow = str(ROOT / ".airflow" / "bin" / "airflow")
            path = f"{ROOT / '.airflow' / 'bin'}:{os.environ['PATH']}"
            return subprocess.Popen(
                ["nice", "-n", "10", airflow, *command],
                env={**self._environ, "PATH": path},
                cwd=self._home,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def _is_ready(self) -> bool:
        for part in self._parts:
            assert part.poll() is None, part.args
        try:
            if "Authorization" not in self._http.headers:
                token = self._http.get("/auth/token").raise_for_status().json()["access_token"]
                self._http.headers["Authorization"] = f"Bearer {token}"
            health = self._http.get("/api/v2/monitor/health").json()
            dags = self._http.get("/api/v2/dags").json()["dags"]
        except httpx.TransportError:
            time.sleep(0.5)
            return False
        time.sleep(0.2)
        return len(dags) == 3 and all(health[part]["status"] == "healthy" for part in ("scheduler", "triggerer"))

    def log(self, of: str) -> str:
        """The log of a component."""
        return (self._home / f"{of}.log").read_text()

    def start(self, dag: str, run: str) -> None:
        """Starts a DAG run."""
        self._http.post(
            f"/api/v2/dags/{dag}/dagRuns", json={"logical_date": None, "dag_run_id": run}
        ).raise_for_status()

    def states(self, dag: str, run: str) -> dict[tuple[str, int], str]:
        """The states of the run's tasks."""
        answer = self._http.get(f"/api/v2/dags/{dag}/dagRuns/{run}/taskInstances").raise_for_status()
        return {(each["task_id"], each["map_index"]): each["state"] for each in answer.json()["task_instances"]}

    def wait(self, dag: str, run: str) -> dict[tuple[str, int], str]:
        """Waits until the run ends. Returns the states of its tasks."""
        in_time = deadline(PATIENCE_SECONDS, f"the end of {run}")
        while in_time():
            answer = self._http.get(f"/api/v2/dags/{dag}/dagRuns/{run}").raise_for_status()
            if answer.json()["state"] in ("success", "failed"):
                break
            time.sleep(0.5)
        return self.states(dag, run)

    def records(self, of: TaskTry) -> list[dict[str, Any]]:
        """The records that Airflow's page shows for the try, without sources."""
        path = f"/api/v2/dags/{of.dag_id}/dagRuns/{of.run_id}/taskInstances/{of.task_id}/logs/{of.try_number}"
        answer = self._http.get(path, params={"map_index": of.map_index}, headers={"Accept": "application/x-ndjson"})
        records = [json.loads(line) for line in answer.raise_for_status().text.splitlines()]
        return records[[record["event"] for record in records].index("::endgroup::") + 1 :]


@pytest.fixture(scope="module")
def airflow(server: RedisServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Airflow]:
    directory = tmp_path_factory.mktemp("airflow")
    settings: dict[str, Any] = {"jwt_secret": SECRET.decode(), "key_prefix": "airflow", "lease_seconds": LEASE_SECONDS}
    (directory / "home").mkdir()
    with (
        Service(directory, server.url, workers=2, **settings) as service,
        Airflow(directory / "home", service) as started,
    ):
        yield started


@pytest.fixture(scope="module")
def client(airflow: Airflow) -> Iterator[Client]:
    client = Client(airflow.service.url, airflow.service.token())
    yield client
    client.close()


@pytest.fixture(scope="module")
def states(airflow: Airflow) -> dict[tuple[str, int], str]:
    """The task states of a whole run of the DAG ``shop``."""
    airflow.start("shop", "run:1+x")
    return airflow.wait("shop", "run:1+x")


def shop(task: str, *, number: int = 1, map_index: int = -1) -> TaskTry:
    """A try of one of the run's tasks."""
    return TaskTry("shop", "run:1+x", task, map_index, number)


def downloaded(client: Client, of: TaskTry) -> list[str]:
    """The lines of the try's download, without the part after a tab in Airflow's own records."""
    text = b"".join(client.download(of.job, format="txt")).decode()
    return [re.sub(r'\t\{"(?!and").*\}$', "", line) for line in text.splitlines()]


def same_everywhere(airflow: Airflow, client: Client, of: TaskTry) -> list[str]:
    """The lines of the try. Checks that Airflow's page and the download have them in the same order."""
    lines = downloaded(client, of)
    assert "\n".join(record["event"] for record in airflow.records(of)).split("\n") == lines
    return lines


def end(client: Client, of: TaskTry) -> tuple[str, int | None]:
    """How the job ended. Airflow knows the task's end slightly earlier."""
    wait_until(lambda: client.job(of.job)["status"] != "RUNNING", PATIENCE_SECONDS, f"the end of {of.job}")
    job = client.job(of.job)
    assert job["labels"]["task"] == of.task_id
    return job["status"], job["exit_code"]


def test_mapped_tasks(airflow: Airflow, client: Client, states: dict[tuple[str, int], str]) -> None:
    """Each is a job with all of its output, shown unchanged in Airflow."""
    for index in range(3):
        assert states["talk", index] == "success"
        assert end(client, shop("talk", map_index=index)) == ("COMPLETED", 0)
        lines = same_everywhere(airflow, client, shop("talk", map_index=index))
        said = [f"printed {index + 1}", "to stderr", 'a tab\t{"and": "JSON"}', f"a warning {index + 1}", "two", "lines"]
        assert sorted(line for line in lines if line in said) == sorted(said)
        records = {record["event"]: record for record in airflow.records(shop("talk", map_index=index))}
        assert (records["two\nlines"]["level"], records["two\nlines"]["logger"]) == ("info", "shop")
        assert records[f"a warning {index + 1}"]["level"] == "warning"
        assert records['a tab\t{"and": "JSON"}']["logger"] == "task.stdout"


def test_tries(airflow: Airflow, client: Client, states: dict[tuple[str, int], str]) -> None:
    """Each is a job. A failed one ends with its traceback."""
    assert (states["flaky", -1], states["fails", -1]) == ("success", "failed")
    assert end(client, shop("flaky")) == end(client, shop("fails")) == ("FAILED", 1)
    assert end(client, shop("flaky", number=2)) == ("COMPLETED", 0)
    first = same_everywhere(airflow, client, shop("flaky"))
    assert "try 1" in first
    assert first.index("OSError: first") < first.index("ValueError: bad luck")
    assert "try 2" in same_everywhere(airflow, client, shop("flaky", number=2))


def test_a_killed_task(airflow: Airflow, client: Client, states: dict[tuple[str, int], str]) -> None:
    """Its job has all of its lines, and is LOST."""
    assert states["killed", -1] == "failed"
    assert end(client, shop("killed")) == ("LOST", None)
    lines = same_everywhere(airflow, client, shop("killed"))
    assert [line for line in lines if line.startswith("line ")] == [f"line {number}" for number in range(1000)]
    assert any(line.startswith("Process terminated by signal") for line in lines)


def test_a_deferred_task(airflow: Airflow, client: Client, states: dict[tuple[str, int], str]) -> None:
    """It is one job, continued by the triggerer and then by another worker."""
    assert states["deferred", -1] == "success"
    assert end(client, shop("deferred")) == ("COMPLETED", 0)
    assert client.job(shop("deferred").job)["attempt"] >= 2
    lines = same_everywhere(airflow, client, shop("deferred"))
    assert [line for line in lines if line in ("before", "after")] == ["before", "after"]
    assert any("trigger" in line for line in lines[lines.index("before") : lines.index("after")])


def test_lines_are_live(airflow: Airflow, client: Client) -> None:
    """Airflow's page shows them within two seconds. An outage neither loses nor repeats lines."""
    airflow.start("slow", "live")
    of = TaskTry("slow", "live", "clock", -1, 1)
    ages: list[float] = []
    in_time = deadline(PATIENCE_SECONDS, "the end of the task")
    outage = False
    seen = 0
    while in_time():
        state = airflow.states("slow", "live").get(("clock", -1))
        if state == "running":
            asked_at = time.time()
            times = [float(record["event"][4:]) for record in airflow.records(of) if record["event"].startswith("now ")]
            assert times == sorted(set(times))
            ages += [time.time() - printed for printed in times[seen:]]
            if not outage:
                assert len(times) >= seen
                assert not times or asked_at - times[-1] < 5
            seen = max(seen, len(times))
            if seen > 40 and not outage:
                outage = True
                airflow.service.kill()
                time.sleep(2)
                airflow.service.start()
        elif state == "success":
            break
        time.sleep(0.1)
    lines = [line for line in same_everywhere(airflow, client, of) if line.startswith("now ")]
    assert len(lines) == len(set(lines)) == 100
    assert lines == sorted(lines)
    before = sorted(ages[:40])
    print(f"age of a line when it is first seen: median {before[20]:.2f} s, highest {before[-1]:.2f} s")
    assert before[20] < 2


def test_a_task_whose_worker_is_killed_too(airflow: Airflow, client: Client) -> None:
    """Its lines stay. It becomes LOST when the lease expires."""
    airflow.start("orphan", "killed")
    of = TaskTry("orphan", "killed", "wait", -1, 1)
    found: list[str] = []

    def has_begun() -> bool:
        with contextlib.suppress(Exception):
            found[:] = [line for line in downloaded(client, of) if line.startswith("worker ")]
        return bool(found)

    wait_until(has_begun, PATIENCE_SECONDS, "the task says who it is")
    _, worker, _, task = found[0].split()
    assert client.job(of.job)["status"] == "RUNNING"
    for process in (worker, task):
        os.kill(int(process), signal.SIGKILL)
    assert end(client, of) == ("LOST", None)
    assert found[0] in same_everywhere(airflow, client, of)
