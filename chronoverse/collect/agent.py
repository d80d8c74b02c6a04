"""The agent of a node: finds the logs of its pods, and goes through them in turns, in one thread.

Each turn takes some milliseconds of a log, so a fast log delays no other. Each log has a publisher of its own.
"""

import re
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from chronoverse.collect.container_log import LEAST_BYTES, ContainerLog, RunKey, Surroundings
from chronoverse.collect.pods import ContainerEnd, Pod
from chronoverse.collect.watcher import PodWatcher
from chronoverse.joblog.labels import read_labels
from chronoverse.joblog.model import JobRef

#: Seconds between two turns, unless a log has more to read at once; and between two looks for new logs and ends.
TURN_SECONDS: Final = 0.05
LOOK_SECONDS: Final = 0.5
#: Seconds for which a container does not start until its job says so and ends. It may still start, as another job.
STUCK_SECONDS: Final = 30.0
#: Bytes that are on their way of all logs together, beyond the least that each may have.
TOTAL_BYTES: Final = 33_554_432
#: Containers that /metrics names, those with most to do first.
MAX_CONTAINERS: Final = 500
#: Seconds without a turn after which /healthz says that the agent hangs.
HANGS_SECONDS: Final = 30.0

_LOG_NAME: Final = re.compile(r"([0-9]{1,9})\.log(?:\..*)?", re.ASCII)


@dataclass(frozen=True)
class Choice:
    """Whose logs become jobs: those in ``namespaces`` (all, if empty). Their jobs get these ``labels`` of the pod."""

    namespaces: Collection[str] = ()
    labels: Iterable[str] = ()


class Agent:
    """Publishes the logs below ``directory`` of the pods that ``watcher`` knows. :meth:`run` it in one thread."""

    def __init__(
        self,
        directory: Path,
        watcher: PodWatcher,
        choice: Choice,
        surroundings: Callable[[Callable[[], bool]], Surroundings],
    ) -> None:
        self._directory = directory
        self._watcher = watcher
        self._choice = choice
        self._around = surroundings(self._has_room)
        self._logs: dict[RunKey, ContainerLog] = {}
        #: The runs of containers whose jobs have ended, while their pods are there.
        self._done: set[RunKey] = set()
        #: How the runs ended, and those of which nobody will say that.
        self._ends: dict[RunKey, ContainerEnd] = {}
        self._gone: set[RunKey] = set()
        #: Since when containers do not start.
        self._stuck: dict[RunKey, float] = {}
        self._cost = 0
        self._turned_at = time.monotonic()
        self._stop = threading.Event()
        self.metrics: Collector = _Metrics(self)

    def run(self, stop_seconds: float = 10.0) -> None:
        """Runs until :meth:`stop`. Then the jobs wait for the next agent, unless that takes longer than a week."""
        with self._around.checkpoints.lock(self._stop):
            if not self._stop.is_set():
                self._resume()
            look_at = 0.0
            while not self._stop.is_set():
                began = self._turned_at = time.monotonic()
                if began >= look_at:
                    self._look()
                    look_at = began + LOOK_SECONDS
                if not self._turn():
                    self._stop.wait(max(0.001, began + TURN_SECONDS - time.monotonic()))
            self._suspend(stop_seconds)

    def stop(self) -> None:
        self._stop.set()

    @property
    def is_healthy(self) -> bool:
        return time.monotonic() - self._turned_at < HANGS_SECONDS

    @property
    def logs(self) -> list[ContainerLog]:
        return list(self._logs.values())

    def _has_room(self) -> bool:
        return self._cost < TOTAL_BYTES

    def _turn(self) -> bool:
        """Goes through all logs once. Returns whether one of them has more to read at once."""
        is_busy, cost = False, 0
        for key, log in list(self._logs.items()):
            is_busy |= log.step(self._ends.get(key), key in self._gone)
            cost += max(0, log.cost - LEAST_BYTES)
            if log.is_done:
                del self._logs[key]
                self._done.add(key)
        self._cost = cost
        return is_busy

    def _suspend(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        for log in self._logs.values():
            log.suspend()
        for log in self._logs.values():
            log.close(max(0.0, deadline - time.monotonic()))

    # Finding logs

    def _resume(self) -> None:
        """Continues the logs that an agent before has begun, also when the API server is away."""
        for name in self._around.checkpoints.names():
            saved = self._around.checkpoints.load(name)
            uid, container, restart = name.split("_")
            key, path = RunKey(uid, container, int(restart)), Path(saved.get("path", ""))
            if saved.get("ended"):
                self._done.add(key)
            elif "job" in saved and key.restart >= 0 and path.parent.is_dir():
                labels = read_labels(saved.get("labels"))
                self._logs[key] = ContainerLog(key, JobRef(*saved["job"]), path, labels, self._around)

    def _look(self) -> None:
        """Finds the logs that are new, and the ends of those that are known."""
        pods = self._watcher.pods()
        for pod in pods.values():
            if pod.is_collected(self._choice.namespaces):
                self._look_at(pod)
        for key in self._logs:
            known = pods.get(key.uid)
            if known and (end := known.end(key.container, key.restart)):
                self._ends[key] = end
            elif self._watcher.is_synced and (known is None or known.is_gone or self._was_missed(known, key)):
                self._gone.add(key)
        self._forget(pods)

    def _look_at(self, pod: Pod) -> None:
        found = set(self._restarts(pod))
        for container, restart in found:
            self._begin(pod, RunKey(pod.uid, container, restart))
        now = time.monotonic()
        for container in pod.containers:
            key = RunKey(pod.uid, container, -1)
            has_run = any(each == container for each, _ in found) or RunKey(pod.uid, container, 0) in self._done
            failure = None if has_run or key in self._done else pod.start_failure(container)
            if failure is None:
                self._stuck.pop(key, None)
            elif pod.has_ended or now - self._stuck.setdefault(key, now) >= STUCK_SECONDS:
                self._begin(pod, key, failure)

    def _restarts(self, pod: Pod) -> Iterator[tuple[str, int]]:
        """The containers of the pod that have a log, and the runs that it is of."""
        directory = self._directory / pod.directory
        for container in pod.containers:
            try:
                names = [path.name for path in (directory / container).iterdir()]
            except OSError:
                continue
            yield from ((container, int(found[1])) for name in names if (found := _LOG_NAME.fullmatch(name)))

    def _begin(self, pod: Pod, key: RunKey, failure: ContainerEnd | None = None) -> None:
        if key not in self._logs and key not in self._done:
            restart = max(0, key.restart)
            path = self._directory / pod.directory / key.container / f"{restart}.log"
            labels = pod.labels(key.container, self._choice.labels)
            job = pod.job(key.container, restart)
            self._logs[key] = ContainerLog(key, job, path, labels, self._around, failure=failure)

    def _was_missed(self, pod: Pod, key: RunKey) -> bool:
        """Whether the container has run again, twice, before its status was seen."""
        return pod.restarts(key.container) > key.restart + 1

    def _forget(self, pods: dict[str, Pod]) -> None:
        """Drops what is known of pods that are gone, with their files."""
        active = {key.uid for key in self._logs}
        gone = {uid for uid, pod in pods.items() if pod.is_gone and uid not in active}
        self._watcher.forget(gone)
        if not self._watcher.is_synced:
            return
        for key in [key for key in self._done if key.uid not in active and (key.uid in gone or key.uid not in pods)]:
            self._around.checkpoints.delete(str(key))
            self._done.discard(key)
        self._ends = {key: end for key, end in self._ends.items() if key in self._logs}
        self._gone &= self._logs.keys()


class _Metrics(Collector):
    """What the agent measures, for Prometheus."""

    def __init__(self, agent: Agent) -> None:
        self._agent = agent

    def collect(self) -> Iterable[Metric]:
        names = ["namespace", "pod", "container"]
        logs = [(log.lag_bytes, log.lag_seconds, log) for log in self._agent.logs]
        logs.sort(key=lambda each: each[:2], reverse=True)
        lag_bytes = GaugeMetricFamily(
            "chronoverse_collect_lag_bytes", "Bytes that are not safe in the store yet.", labels=names
        )
        lag_seconds = GaugeMetricFamily(
            "chronoverse_collect_lag_seconds", "Age of the oldest line that was read and is not safe yet.", labels=names
        )
        for in_bytes, in_seconds, log in logs[:MAX_CONTAINERS]:
            labels = dict(log.labels)
            values = [labels.get("namespace", ""), labels.get("pod", ""), f"{log.key.container}"]
            lag_bytes.add_metric(values, in_bytes)
            lag_seconds.add_metric(values, in_seconds)
        yield lag_bytes
        yield lag_seconds
        yield GaugeMetricFamily(
            "chronoverse_collect_containers", "Containers whose logs are being published.", len(logs)
        )
