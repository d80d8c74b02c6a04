"""The agent of a node: finds the logs of its pods, and publishes them in turns, in one thread.

Each turn spends a few milliseconds on a log, so that a fast log does not delay others. Each log has its own publisher.
"""

import os
import re
import threading
import time
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from chronoverse.collect.container_log import ContainerLog, RunKey, Surroundings
from chronoverse.collect.pods import ContainerEnd, Pod
from chronoverse.collect.watcher import PodWatcher

#: Seconds between two turns (0 if a log has more to read), and between two scans for new logs and ended runs.
TURN_SECONDS: Final = 0.05
LOOK_SECONDS: Final = 0.5
#: Seconds after which a container that does not start becomes a failed job. If it starts later, it gets another job.
STUCK_SECONDS: Final = 30.0
#: Bytes in flight: what each log can always have, what one log can have at most, and what all logs can have together
#: beyond their LEAST_BYTES.
LEAST_BYTES: Final = 262_144
MOST_BYTES: Final = 8_388_608
TOTAL_BYTES: Final = 33_554_432

_LOG_NAME: Final = re.compile(r"([0-9]{1,9})\.log(?:\..*)?", re.ASCII)


@dataclass(eq=False)
class Agent:
    """Publishes the logs below ``directory`` for the pods of ``watcher``, in ``namespaces`` (empty: all).

    ``label_names`` are the pod labels to copy to jobs.
    """

    directory: Path
    watcher: PodWatcher
    around: Surroundings
    namespaces: Collection[str] = ()
    label_names: Collection[str] = ()
    #: The runs' logs, until their pods are gone. None if the job has ended.
    _logs: dict[RunKey, ContainerLog | None] = field(default_factory=dict)
    #: When the agent first saw that a container does not start.
    _stuck: dict[RunKey, float] = field(default_factory=dict)
    #: When the last turn began, in monotonic seconds.
    turned_at: float = field(default_factory=time.monotonic)
    _stop: threading.Event = field(default_factory=threading.Event)

    def active(self) -> list[ContainerLog]:
        """The logs whose jobs have not ended."""
        return [log for log in list(self._logs.values()) if log]

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
        for log in self.active():
            log.suspend()
        deadline = time.monotonic() + stop_seconds
        for log in self.active():
            log.close(max(0.0, deadline - time.monotonic()))

    def stop(self) -> None:
        self._stop.set()

    def _turn(self) -> bool:
        """Reads each log once. Returns whether any has more to read now."""
        is_busy = False
        has_room = sum(max(0, log.cost - LEAST_BYTES) for log in self.active()) < TOTAL_BYTES
        for log in self.active():
            try:
                is_busy |= log.step(MOST_BYTES if has_room else LEAST_BYTES)
            except OSError as error:
                self.around.say(f"{log.job}: {error}")
            if log.is_done:
                self._logs[log.key] = None
        return is_busy

    def _resume(self) -> None:
        """Resumes the logs of an earlier agent, even if the API server is unavailable."""
        for name in self.around.checkpoints.names():
            saved = self.around.checkpoints.load(name)
            uid, container, restart = name.split("_")
            key = RunKey(uid, container, int(restart))
            if saved.get("ended"):
                self._logs[key] = None
            elif "job" in saved and key.restart >= 0:
                self._open(key, saved)

    def _look(self) -> None:
        """Finds new logs, and the ends of known ones. Drops the records of deleted pods."""
        pods = self.watcher.pods()
        for pod in pods.values():
            if pod.is_collected(self.namespaces):
                self._look_at(pod, time.monotonic())
        for log in self.active():
            key, known = log.key, pods.get(log.key.uid)
            # The pod's status only has the current run and the one before.
            is_gone = known is None or known.is_gone or known.restarts(key.container) > key.restart + 1
            end = known.end(key.container, key.restart) if known else None
            log.end = log.failure or end or (ContainerEnd(None, "") if is_gone and self.watcher.is_synced else None)
        active = {log.key.uid for log in self.active()}
        gone = {uid for uid, pod in pods.items() if pod.is_gone and uid not in active}
        self.watcher.forget(gone)
        for key in list(self._logs) if self.watcher.is_synced else ():
            if key.uid not in (pods.keys() - gone) | active:
                self.around.checkpoints.delete(str(key))
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
            elif pod.has_ended or now - self._stuck.setdefault(key, now) >= STUCK_SECONDS:
                self._begin(pod, key, failure)

    def _begin(self, pod: Pod, key: RunKey, failure: ContainerEnd | None = None) -> None:
        if key not in self._logs:
            container, restart = key.container, max(0, key.restart)
            path = self.directory / pod.directory / container / f"{restart}.log"
            labels = dict(pod.labels(container, self.label_names))
            new: dict[str, Any] = {"job": pod.job(container, restart), "path": str(path), "labels": labels}
            new["started"] = pod.started(container, restart)
            self._open(key, new | self.around.checkpoints.load(str(key)), failure)

    def _open(self, key: RunKey, saved: dict[str, Any], failure: ContainerEnd | None = None) -> None:
        try:
            self._logs[key] = ContainerLog(key, self.around, saved, failure)
        except OSError as error:  # such as a file that may not be read
            self.around.say(f"{key}: {error}")
