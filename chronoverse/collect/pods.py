"""Parses a pod of the API server: whether to collect its logs, its jobs' ids, and how its containers ended.

https://kubernetes.io/docs/reference/kubernetes-api/workload-resources/pod-v1/ Values only, no I/O.
"""

import hashlib
import re
from collections.abc import Collection, Mapping
from typing import Any, Final, NamedTuple

from chronoverse.joblog.labels import Labels, read_labels
from chronoverse.joblog.model import JobRef, Status

#: Pod labels that name a pod's workflow. The CronJob of the pod's Job takes precedence.
_OWNER_LABELS: Final = (
    "workflows.argoproj.io/workflow-template",
    "workflows.argoproj.io/cron-workflow",
    "tekton.dev/pipeline",
    "tekton.dev/task",
    "dag_id",
)
#: The suffix that a CronJob adds to its Jobs' names: the scheduled time in minutes since 1970.
_SCHEDULED: Final = re.compile(r"-[0-9]{8,10}\Z")
#: Suffixes that the API server generates: https://github.com/kubernetes/apimachinery/blob/master/pkg/util/rand/rand.go
_GENERATED: Final = re.compile(r"-[bcdfghjklmnpqrstvwxz2456789]{5}\Z")
#: Reasons that mean that a container will not start without help, or ended without having run.
_STUCK: Final = (
    *("ImagePullBackOff", "ErrImageNeverPull", "InvalidImageName"),
    *("CreateContainerConfigError", "CreateContainerError"),
)
_NEVER_RAN: Final = ("StartError", "ContainerCannotRun", "ContainerStatusUnknown")
_KINDS: Final = ("container", "initContainer", "ephemeralContainer")


class ContainerEnd(NamedTuple):
    """How a container ended. A container that never started has a ``message``, and may have no ``exit_code``.

    Without a ``reason``, nothing is known about the end, and the job is LOST.
    """

    exit_code: int | None
    reason: str
    message: str = ""

    @property
    def status(self) -> Status:
        return Status.LOST if not self.reason else Status.FAILED if self.exit_code != 0 else Status.COMPLETED


class Pod:
    """A pod as the API server last reported it. Raises LookupError, TypeError or AttributeError if invalid."""

    def __init__(self, data: Mapping[str, Any], is_gone: bool = False) -> None:
        meta, self.is_gone = data["metadata"], is_gone
        self.data = data
        self.uid, self.namespace, self.name = (str(meta[name]) for name in ("uid", "namespace", "name"))
        self._spec, self._status = (data.get(name) or {} for name in ("spec", "status"))
        self._labels: Mapping[str, str] = meta.get("labels") or {}
        self._annotations: Mapping[str, str] = meta.get("annotations") or {}
        #: Increases with each change; 0 if the server's versions are not numbers.
        self.version = int(meta["resourceVersion"]) if str(meta.get("resourceVersion")).isdecimal() else 0
        #: The name of the directory with its logs.
        self.directory = f"{self.namespace}_{self.name}_{self.uid}"
        self._has_failed = self._status.get("phase") == "Failed"
        #: Whether no container of the pod will run again.
        self.has_ended = is_gone or self._has_failed or self._status.get("phase") == "Succeeded"
        self._images = {
            str(each["name"]): each.get("image") for kind in _KINDS for each in self._spec.get(f"{kind}s") or ()
        }
        #: The names of the pod's containers, init containers last.
        self.containers = list(self._images)
        statuses = (each for kind in _KINDS for each in self._status.get(f"{kind}Statuses") or ())
        self._statuses: Mapping[str, Mapping[str, Any]] = {str(each["name"]): each for each in statuses}

    def is_collected(self, namespaces: Collection[str]) -> bool:
        """Whether to collect the pod's logs: by its annotation, or because its restartPolicy lets it end."""
        wanted = self._annotations.get("chronoverse/collect")
        ends = self._spec.get("restartPolicy") in ("Never", "OnFailure")
        return (not namespaces or self.namespace in namespaces) and (wanted == "true" or (wanted != "false" and ends))

    def job(self, container: str, restart: int) -> JobRef:
        """The job of a container's run. ``restart`` is 0 for the first run."""
        workflow = self._annotations.get("chronoverse/workflow") or f"{self.namespace}.{self._owner()}"
        if job := self._annotations.get("chronoverse/job"):
            # The annotation applies to the pod, but only one of its containers can have the id.
            job = job if container == self.containers[0] else f"{job}.{container}"
        else:
            job = f"{self.name}.{container}"
        return JobRef(_identifier(workflow), _identifier(job, f".{restart}" if restart else ""))

    def labels(self, container: str, names: Collection[str]) -> Labels:
        """The labels of a container's job, including the pod's labels in ``names``."""
        labels = {name: self._labels.get(name) for name in names}
        labels |= {"namespace": self.namespace, "pod": self.name, "container": container}
        return read_labels({**labels, "node": self._spec.get("nodeName"), "image": self._images.get(container)})

    def restarts(self, container: str) -> int:
        """How often the container was restarted."""
        return self._statuses.get(container, {}).get("restartCount") or 0

    def _state(self, container: str, restart: int) -> Mapping[str, Any]:
        """The state of a container's run. Empty for runs before the previous one."""
        status, later = self._statuses.get(container, {}), self.restarts(container) - restart
        return (status.get("state") if later == 0 else status.get("lastState") if later == 1 else None) or {}

    def started(self, container: str, restart: int) -> str | None:
        """When the run started, if the pod's status has it."""
        state = self._state(container, restart)
        return (state.get("running") or state.get("terminated") or {}).get("startedAt")

    def end(self, container: str, restart: int) -> ContainerEnd | None:
        """How the run ended, if the pod's status has it."""
        if ended := self._state(container, restart).get("terminated"):
            code, reason = int(ended.get("exitCode") or 0), str(ended.get("reason") or "Unknown")
            message = f"{reason}: {ended.get('message')}" if reason in _NEVER_RAN else ""
            # The reason why the containers were killed, such as Evicted.
            is_last = restart == self.restarts(container)
            why = self._status.get("reason") if code and is_last else None
            return ContainerEnd(code, str(why or reason), message)
        # The containers have ended, but the kubelet did not report how.
        return ContainerEnd(None, str(self._status.get("reason") or "Unknown")) if self._has_failed else None

    def start_failure(self, container: str) -> ContainerEnd | None:
        """What prevents a container's start, or None. It may still start, unless the pod :attr:`has_ended`."""
        if (ended := self.end(container, 0)) and ended.message:
            return ended
        status = self._statuses.get(container, {})
        state = status.get("state") or {}
        waiting = state.get("waiting") or {}
        has_run = status.get("restartCount") or status.get("lastState") or "running" in state or "terminated" in state
        if has_run or not (self._has_failed or waiting.get("reason") in _STUCK):
            return None
        why = self._status if self._has_failed and self._status.get("reason") else waiting
        reason = str(why.get("reason") or "NeverStarted")
        return ContainerEnd(None, reason, f"{reason}: {why.get('message') or 'the container never started'}")

    def _owner(self) -> str:
        """The name of the pod's owner, such as its CronJob."""
        owners = self.data["metadata"].get("ownerReferences") or ()
        owner = next((each for each in owners if each.get("controller")), owners[0] if owners else {})
        name = str(owner.get("name") or self.name)
        if owner.get("kind") == "Job" and _SCHEDULED.search(name):
            return _SCHEDULED.sub("", name)
        if label := next((self._labels[each] for each in _OWNER_LABELS if self._labels.get(each)), None):
            return label
        generated = f"-{self._labels.get('pod-template-hash')}"
        return name.removesuffix(generated) if name.endswith(generated) else _GENERATED.sub("", name) if owner else name


def _identifier(text: str, ending: str = "") -> str:
    """Makes an id of ``text`` and ``ending``. If it is too long, a digest replaces the end of the text."""
    text = re.sub(r"[^A-Za-z0-9._-]", "-", text, flags=re.ASCII)
    text = text if text[:1].isalnum() else f"x{text}"
    if len(text) + len(ending) > 128:
        text = f"{text[: 119 - len(ending)]}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"
    return text + ending
