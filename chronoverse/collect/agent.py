"""The agent of a node: finds the logs of the node's pods, and publishes them round-robin, in one thread.

Each turn spends a few milliseconds on a log, so that a fast log does not delay others. Each log has its own publisher.
"""

import os
import re
import threading
import time
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from chronoverse.collect.container_log import ContainerLog, RunKey, Surroundings
from chronoverse.collect.pods import ContainerEnd, Pod
from chronoverse.collect.watcher import PodWatcher

#: Bytes in flight: the amount that each log can always have, the maximum of one log, and the maximum that all logs
#: together can have beyond their LEAST_BYTES.
LEAST_BYTES: Final = 262_144
MOST_BYTES: Final = 8_388_608
TOTAL_BYTES: Final = 33_554_432

_LOG_NAME: Final = re.compile(r"([0-9]{1,9})\.log(?:\..*)?", re.ASCII)


@dataclass(eq=False)
class Agent(Collector):
    """Publishes the logs below ``directory`` for the pods of ``watcher``, in ``namespaces`` (empty: all).

    ``label_names`` are the pod labels to copy to jobs. Runs until ``stop`` is set. Unfinished jobs then wait up to a
    week for the next agent.
    """

    directory: Path
    watcher: PodWatcher
    around: Surroundings
    stop: threading.Event
    namespaces: Collection[str] = ()
    label_names: Collection[str] = ()
    #: The log of each run, until its pod is gone. None if the job has ended.
    _logs: dict[RunKey, ContainerLog | None] = field(default_factory=dict)
    #: When the agent first saw that a container does not start.
    _stuck: dict[RunKey, float] = field(default_factory=dict)
    #: When the last turn began, in monotonic seconds.
    turned_at: float = field(default_factory=time.monotonic)

    def collect(self) -> Iterable[Metric]:
        """Metrics: how far the agent is behind the log files, for the 500 containers with the longest lag.

        Raises RuntimeError if the agent has had no turn for 30 s: ``/metrics`` then answers 500.
        """
        if time.monotonic() - self.turned_at > 30:
            raise RuntimeError("the agent hangs")
        names = ["namespace", "pod", "container"]
        in_bytes = GaugeMetricFamily("chronoverse_collect_lag_bytes", "Bytes not safe in the store.", labels=names)
        what = "Age of the oldest line that was read but is not safe in the store."
        in_seconds = GaugeMetricFamily("chronoverse_collect_lag_seconds", what, labels=names)
        logs = [(log.lag_bytes, log.lag_seconds, dict(log.labels)) for log in self.active()]
        for size, seconds, labels in sorted(logs, key=lambda each: each[:2], reverse=True)[:500]:
            values = [labels.get(name, "") for name in names]
            in_bytes.add_metric(values, size)
            in_seconds.add_metric(values, seconds)
        return in_bytes, in_seconds

    def active(self) -> list[ContainerLog]:
        """The logs whose jobs have not ended."""
        return [log for log in list(self._logs.values()) if log]

    def run(self, stop_seconds: float = 10.0) -> None:
        self._resume()
        look_at = 0.0
        while not self.stop.is_set():
            began = self.turned_at = time.monotonic()
            if began >= look_at:
                self._look()
                self.around.checkpoints.write()
                look_at = began + 0.5
            if not self._turn():
                self.stop.wait(max(0.001, began + 0.05 - time.monotonic()))
        for log in self.active():
            log.suspend()
        deadline = time.monotonic() + stop_seconds
        for log in self.active():
            log.close(max(0.0, deadline - time.monotonic()))
        self.around.checkpoints.write()

    def _turn(self) -> bool:
        """Reads each log once. Returns whether any has more to read now."""
        is_busy = False
        has_room = sum(max(0, log.cost - LEAST_BYTES) for log in self.active()) < TOTAL_BYTES
        for log in self.active():
            is_busy |= log.step(MOST_BYTES if has_room else LEAST_BYTES)
            if log.is_done:
                self._logs[log.key] = None
        return is_busy

    def _resume(self) -> None:
        """Resumes the logs of an earlier agent, even if the API server is unavailable."""
        for name, saved in list(self.around.checkpoints.items()):
            uid, container, restart = name.split("_")
            key = RunKey(uid, container, int(restart))
            if saved.get("ended"):
                self._logs[key] = None
            elif "job" in saved and key.restart >= 0:
                self._open(key, saved)

    def _look(self) -> None:
        """Finds new logs, and the ends of known ones. Drops the records of deleted pods."""
        pods = dict(self.watcher.pods)
        for pod in pods.values():
            if pod.is_collected(self.namespaces):
                self._look_at(pod, time.monotonic())
        for log in self.active():
            key, known = log.key, pods.get(log.key.uid)
            # A pod's status has only the current and the previous run.
            is_gone = known is None or known.is_gone or known.restarts(key.container) > key.restart + 1
            end = known.end(key.container, key.restart) if known else None
            log.end = log.failure or end or (ContainerEnd(None, "") if is_gone and self.watcher.is_synced else None)
        active = {log.key.uid for log in self.active()}
        for uid, pod in pods.items():
            if pod.is_gone and uid not in active:
                del self.watcher.pods[uid]
        for key in list(self._logs) if self.watcher.is_synced else ():
            if key.uid not in active and key.uid not in self.watcher.pods:
                self.around.checkpoints.pop(str(key), None)
                del self._logs[key]

    def _look_at(self, pod: Pod, now: float) -> None:
        for container in pod.containers:
            names: list[str] = []
            try:
                names = os.listdir(self.directory / pod.directory / container)
            except FileNotFoundError:
                pass
            except OSError as error:
                self.around.say(f"logs cannot be read: {error}")
            restarts = {int(found[1]) for name in names if (found := _LOG_NAME.fullmatch(name))}
            for restart in restarts:
                self._begin(pod, RunKey(pod.uid, container, restart))
            key, has_run = RunKey(pod.uid, container, -1), restarts or RunKey(pod.uid, container, 0) in self._logs
            failure = None if has_run else pod.start_failure(container)
            if failure is None:
                self._stuck.pop(key, None)
            elif pod.has_ended or now - self._stuck.setdefault(key, now) >= 30.0:
                self._begin(pod, key, failure)  # if the container starts later, its run gets another job

    def _begin(self, pod: Pod, key: RunKey, failure: ContainerEnd | None = None) -> None:
        if key not in self._logs:
            container, restart = key.container, max(0, key.restart)
            path = self.directory / pod.directory / container / f"{restart}.log"
            new: dict[str, Any] = {"job": pod.job(container, restart), "path": str(path)}
            new |= {"labels": dict(pod.labels(container, self.label_names)), "started": pod.started(container, restart)}
            self._open(key, new | self.around.checkpoints.get(str(key), {}), failure)

    def _open(self, key: RunKey, saved: dict[str, Any], failure: ContainerEnd | None = None) -> None:
        try:
            self._logs[key] = ContainerLog(key, self.around, saved, failure)
        except OSError as error:  # such as a file that may not be read
            self.around.say(f"{key}: {error}")
