"""The agent of a node: finds the logs of its pods, and publishes them in turns, in one thread.

Each turn spends a few milliseconds on a log, so that a fast log does not delay others. Each log has its own publisher.
"""

import os
import re
import threading
import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import InitVar, dataclass, field
from functools import partial
from pathlib import Path
from typing import Final

from chronoverse.collect.container_log import LEAST_BYTES, ContainerLog, RunKey, Surroundings
from chronoverse.collect.pods import ContainerEnd, Pod
from chronoverse.collect.watcher import PodWatcher
from chronoverse.joblog.labels import read_labels
from chronoverse.joblog.model import JobRef

#: Seconds between two turns (0 if a log has more to read), and between two scans for new logs and ended runs.
TURN_SECONDS: Final = 0.05
LOOK_SECONDS: Final = 0.5
#: Seconds after which a container that does not start becomes a failed job. If it starts later, it gets another job.
STUCK_SECONDS: Final = 30.0
#: Maximum bytes in flight of all logs, not counting the LEAST_BYTES that each log may always have.
TOTAL_BYTES: Final = 33_554_432

_LOG_NAME: Final = re.compile(r"([0-9]{1,9})\.log(?:\..*)?", re.ASCII)


@dataclass(eq=False)
class Agent:
    """Publishes the logs below ``directory`` for the pods of ``watcher``, in ``namespaces`` (empty: all).

    ``label_names`` are the pod labels to copy to jobs. ``surround`` gets a function that returns whether logs may have
    more bytes in flight.
    """

    directory: Path
    watcher: PodWatcher
    surround: InitVar[Callable[[Callable[[], bool]], Surroundings]]
    namespaces: Collection[str] = ()
    label_names: Collection[str] = ()
    logs: dict[RunKey, ContainerLog] = field(default_factory=dict)
    #: Runs whose jobs have ended. They are kept until their pods are gone.
    _done: set[RunKey] = field(default_factory=set)
    #: How runs ended; None if that will never be known.
    _ends: dict[RunKey, ContainerEnd | None] = field(default_factory=dict)
    #: When each container was first seen not to start.
    _stuck: dict[RunKey, float] = field(default_factory=dict)
    _cost: int = 0
    #: When the last turn began, in monotonic seconds.
    turned_at: float = field(default_factory=time.monotonic)
    _stop: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self, surround: Callable[[Callable[[], bool]], Surroundings]) -> None:
        self._around = surround(lambda: self._cost < TOTAL_BYTES)

    def run(self, stop_seconds: float = 10.0) -> None:
        """Runs until :meth:`stop`. Unfinished jobs then wait for the next agent, for up to a week."""
        self._resume()
        look_at = 0.0
        while not self._stop.is_set():
            began = self.turned_at = time.monotonic()
            if began >= look_at:
                self._look()
                look_at = began + LOOK_SECONDS
            if not self._turn():
                self._stop.wait(max(0.001, began + TURN_SECONDS - time.monotonic()))
        for log in self.logs.values():
            log.suspend()
        deadline = time.monotonic() + stop_seconds
        for log in self.logs.values():
            log.close(max(0.0, deadline - time.monotonic()))

    def stop(self) -> None:
        self._stop.set()

    def _turn(self) -> bool:
        """Reads each log once. Returns whether any has more to read now."""
        is_busy, cost = False, 0
        for key, log in list(self.logs.items()):
            try:
                is_busy |= log.step(self._ends.get(key), key in self._ends)
            except OSError as error:
                self._around.say(f"{log.job}: {error}")
            if log.is_done:
                del self.logs[key]
                self._done.add(key)
            else:
                cost += max(0, log.cost - LEAST_BYTES)
        self._cost = cost
        return is_busy

    def _resume(self) -> None:
        """Resumes the logs of an earlier agent, even if the API server is unavailable."""
        for name in self._around.checkpoints.names():
            saved = self._around.checkpoints.load(name)
            uid, container, restart = name.split("_")
            key, path = RunKey(uid, container, int(restart)), Path(saved.get("path", ""))
            if saved.get("ended"):
                self._done.add(key)
            elif "job" in saved and key.restart >= 0:
                job, labels = JobRef(*saved["job"]), read_labels(saved.get("labels"))
                started = saved.get("started")
                self._open(key, partial(ContainerLog, key, job, path, labels, self._around, None, started))

    def _look(self) -> None:
        """Finds new logs, and the ends of known ones. Drops the records of deleted pods."""
        pods = self.watcher.pods()
        for pod in pods.values():
            if pod.is_collected(self.namespaces):
                self._look_at(pod, time.monotonic())
        self._ends = {}
        for key in self.logs:
            known = pods.get(key.uid)
            end = known.end(key.container, key.restart) if known else None
            # The pod's status only has the current run and the one before.
            is_gone = known is None or known.is_gone or known.restarts(key.container) > key.restart + 1
            if end or (is_gone and self.watcher.is_synced):
                self._ends[key] = end
        active = {key.uid for key in self.logs}
        gone = {uid for uid, pod in pods.items() if pod.is_gone and uid not in active}
        self.watcher.forget(gone)
        for key in list(self._done) if self.watcher.is_synced else ():
            if key.uid in gone or key.uid not in pods.keys() | active:
                self._around.checkpoints.delete(str(key))
                self._done.discard(key)

    def _look_at(self, pod: Pod, now: float) -> None:
        found = set(self._restarts(pod))
        for container, restart in found:
            self._begin(pod, RunKey(pod.uid, container, restart))
        for container in pod.containers:
            key = RunKey(pod.uid, container, -1)
            has_run = RunKey(pod.uid, container, 0) in self._done or any(each == container for each, _ in found)
            failure = None if has_run else pod.start_failure(container)
            if failure is None:
                self._stuck.pop(key, None)
            elif pod.has_ended or now - self._stuck.setdefault(key, now) >= STUCK_SECONDS:
                self._begin(pod, key, failure)

    def _restarts(self, pod: Pod) -> Iterator[tuple[str, int]]:
        """Yields a container and a run's number for each log file of the pod."""
        for container in pod.containers:
            names: list[str] = []
            try:
                names = os.listdir(self.directory / pod.directory / container)
            except FileNotFoundError:
                pass
            except OSError as error:
                self._around.say(f"logs cannot be read: {error}")
            yield from ((container, int(found[1])) for name in names if (found := _LOG_NAME.fullmatch(name)))

    def _begin(self, pod: Pod, key: RunKey, failure: ContainerEnd | None = None) -> None:
        if key not in self.logs and key not in self._done:
            restart = max(0, key.restart)
            path = self.directory / pod.directory / key.container / f"{restart}.log"
            labels = pod.labels(key.container, self.label_names)
            job, started = pod.job(key.container, restart), pod.started(key.container, restart)
            self._open(key, partial(ContainerLog, key, job, path, labels, self._around, failure, started))

    def _open(self, key: RunKey, make: Callable[[], ContainerLog]) -> None:
        try:
            self.logs[key] = make()
        except OSError as error:  # such as a file that may not be read
            self._around.say(f"{key}: {error}")
