"""A node as its kubelet keeps it: pods with log directories, writers in CRI format, rotation, and an agent."""

import contextlib
import gzip
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from datetime import UTC, datetime
from itertools import count
from pathlib import Path
from typing import Any, Final, Self

from chronoverse.client.client import Client
from chronoverse.errors import JobNotFound
from chronoverse.joblog.model import Gap, JobRef, Line
from tests.collect.apiserver import ApiServer
from tests.support.service import ROOT, Service
from tests.support.waiting import wait_until

NODE: Final = "node-1"
#: Time limit of an agent's prompt actions on a busy machine, in seconds.
SOON: Final = 60.0


def pod(name: str, uid: str = "", *, owner: tuple[str, str] | None = None, **changes: Any) -> dict[str, Any]:
    """A pod with one container, ``main``, as returned by an API server. ``owner`` is a kind and a name."""
    meta: dict[str, Any] = {"name": name, "namespace": changes.pop("namespace", "shop"), "uid": uid or f"uid-{name}"}
    meta |= {"labels": changes.pop("labels", {}), "annotations": changes.pop("annotations", {})}
    if owner:
        controller = changes.pop("controller", True)
        meta["ownerReferences"] = [{"kind": owner[0], "name": owner[1], "controller": controller}]
    names = changes.pop("containers", ["main"])
    spec: dict[str, Any] = {"nodeName": NODE, "restartPolicy": "Never"}
    spec |= {"containers": [{"name": each, "image": "registry.example.com/app:1"} for each in names]}
    spec |= changes.pop("spec", {})
    return {"metadata": meta, "spec": spec, "status": {"phase": "Pending", **changes}}


def with_state(pod: dict[str, Any], container: str = "main", restarts: int = 0, **state: Any) -> dict[str, Any]:
    """The pod with a container in a state: ``running={}``, ``terminated={…}``, ``waiting={…}``, ``last={…}``."""
    last = {"lastState": {"terminated": state.pop("last")}} if "last" in state else {}
    if state.get("running") == {}:
        state["running"] = {"startedAt": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")}
    status = {"name": container, "restartCount": restarts, "state": state, **last}
    others = [each for each in pod["status"].get("containerStatuses", []) if each["name"] != container]
    phase = state.get("terminated") and ("Failed" if state["terminated"]["exitCode"] else "Succeeded")
    changed = {**pod["status"], "phase": phase or "Running", "containerStatuses": [*others, status]}
    return {**pod, "status": changed}


def ended(pod: dict[str, Any], code: int = 0, reason: str = "", container: str = "main", restarts: int = 0) -> Any:
    """The pod with a terminated container."""
    reason = reason or ("Error" if code else "Completed")
    return with_state(pod, container, restarts, terminated={"exitCode": code, "reason": reason})


def cri_line(text: str | bytes, stream: str = "stdout", tag: str = "F", at: float | None = None) -> bytes:
    """A line as written by containerd: the time in nanoseconds, without trailing zeros."""
    seconds, nanoseconds = divmod(time.time_ns() if at is None else int(at * 1e9), 1_000_000_000)
    whole = datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S")
    fraction = f"{nanoseconds:09d}".rstrip("0")
    stamp = f"{whole}.{fraction}Z" if fraction else f"{whole}Z"
    data = text.encode() if isinstance(text, str) else text
    return f"{stamp} {stream} {tag} ".encode() + data + b"\n"


def texts(count: int, first: int = 0) -> list[str]:
    return [f"line {number}" for number in range(first, count)]


class ContainerWriter:
    """Handles a container's output like a runtime: appends to ``N.log``, and reopens it on request."""

    def __init__(self, pods: Path, pod: dict[str, Any], container: str = "main", restart: int = 0) -> None:
        meta = pod["metadata"]
        self.path = pods / f"{meta['namespace']}_{meta['name']}_{meta['uid']}" / container / f"{restart}.log"
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._lock = threading.Lock()
        self._file = self._open()

    def write(self, *lines: bytes) -> None:
        with self._lock:
            os.write(self._file, b"".join(lines))

    def print(self, *texts: str, stream: str = "stdout") -> None:
        self.write(*(cri_line(text, stream) for text in texts))

    def reopen(self) -> None:
        """Like ReopenContainerLog: the next line goes to a new file."""
        with self._lock:
            os.close(self._file)
            self._file = self._open()

    def close(self) -> None:
        os.close(self._file)

    def _open(self) -> int:
        return os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o640)


def rotate(
    writer: ContainerWriter, max_files: int = 5, *, reopen_fails: bool = False, now: float | None = None
) -> None:
    """One rotation with the kubelet's steps: pkg/kubelet/logs/container_log_manager.go, rotateLog."""
    log = writer.path
    logs = sorted(log.parent.glob(f"{log.name}.*"))
    # cleanupUnusedLogs
    for each in [each for each in logs if each.suffix == ".tmp" or each.with_name(f"{each.name}.gz") in logs]:
        each.unlink()
        logs.remove(each)
    # removeExcessLogs
    excess = max(0, len(logs) - max(0, max_files - 2))
    for each in logs[:excess]:
        each.unlink()
    # compressLog
    for each in [each for each in logs[excess:] if each.suffix != ".gz"]:
        draft = each.with_name(f"{each.name}.tmp")
        with each.open("rb") as source, gzip.open(draft, "wb") as target:
            shutil.copyfileobj(source, target)
        draft.rename(each.with_name(f"{each.name}.gz"))
        each.unlink()
    # rotateLatestLog. A kubelet waits at least 3 s until the next, so no two files have the same name.
    names = (f"{log.name}.{datetime.fromtimestamp(at, UTC):%Y%m%d-%H%M%S}" for at in count(now or time.time()))
    known = {each.name.removesuffix(".gz") for each in log.parent.iterdir()}
    rotated = log.with_name(next(name for name in names if name not in known))
    log.rename(rotated)
    if reopen_fails:
        rotated.rename(log)
    else:
        writer.reopen()


class Agent:
    """``chronoverse collect kubernetes`` as a process that can be killed and restarted."""

    def __init__(self, directory: Path, api: ApiServer, environ: dict[str, str], *options: str) -> None:
        self.pods, self.state, self.log = directory / "pods", directory / "state", directory / "agent.log"
        self.pods.mkdir(exist_ok=True)
        command = ["-m", "chronoverse", "collect", "kubernetes", "--node", NODE, "--api", api.url]
        self._command = [sys.executable, *command, "--pods", str(self.pods), "--state", str(self.state), *options]
        self._environ = {**os.environ, **environ}
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> Self:
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(self._command, cwd=ROOT, env=self._environ, stdout=log, stderr=log)
        return self

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def stop(self) -> None:
        """Like a node's kubelet stopping a pod. Raises AssertionError if it fails."""
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        assert self.process.wait(SOON) == 0, self.log.read_text()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        if self.process is not None and self.process.poll() is None:
            self.kill()


class Jobs:
    """A service's jobs as seen by readers."""

    def __init__(self, service: Service) -> None:
        self.client = Client(service.url, service.token())

    def job(self, workflow: str, job: str) -> dict[str, Any]:
        """The job, or empty if missing."""
        with contextlib.suppress(JobNotFound):
            return self.client.job(JobRef(workflow, job))
        return {}

    def wait_for_end(self, workflow: str, job: str, seconds: float = SOON) -> dict[str, Any]:
        """The job, once it has ended."""

        def has_ended() -> bool:
            return bool(self.job(workflow, job).get("finished_at"))

        wait_until(has_ended, seconds, f"{workflow}/{job} ends")
        return self.job(workflow, job)

    def entries(self, workflow: str, job: str, offset: int = 0) -> list[Line | Gap]:
        """The lines and gaps of an ended job, in order, as received by viewers."""
        found = self.client.follow(JobRef(workflow, job), offset=offset)
        return [each for each in found if isinstance(each, Line | Gap)]

    def summary(self, workflow: str, job: str) -> list[str | Gap]:
        """The texts and gaps of an ended job."""
        return [each.message if isinstance(each, Line) else each for each in self.entries(workflow, job)]

    def texts(self, workflow: str, job: str) -> list[str]:
        return [line.message for line in self.client.logs(JobRef(workflow, job))]

    def wait_for_lines(self, workflow: str, job: str, count: int, seconds: float = SOON) -> None:
        """Waits until the log has that many lines."""
        wait_until(
            lambda: self.job(workflow, job).get("last_sequence_num", 0) >= count, seconds, f"{job} has {count} lines"
        )
