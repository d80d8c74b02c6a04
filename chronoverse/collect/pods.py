"""What an API server says of a pod: whether its logs are collected, as which jobs, and how its containers ended.

https://kubernetes.io/docs/reference/kubernetes-api/workload-resources/pod-v1/ Values only, no I/O.
"""

import hashlib
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from chronoverse.joblog.labels import Labels, read_labels
from chronoverse.joblog.model import JobRef

#: Pod labels that name what a pod is a run of, after the CronJob of its Job.
_OWNER_LABELS: Final = (
    "workflows.argoproj.io/workflow-template",
    "workflows.argoproj.io/cron-workflow",
    "tekton.dev/pipeline",
    "tekton.dev/task",
    "dag_id",
)
#: What a CronJob adds to the names of its Jobs: the scheduled time in minutes since 1970.
_SCHEDULED: Final = re.compile(r"-[0-9]{8,10}\Z")
#: What the API server adds to a name that it generates. It leaves out vowels and what looks like other characters.
#: https://github.com/kubernetes/apimachinery/blob/master/pkg/util/rand/rand.go
_GENERATED: Final = re.compile(r"-[bcdfghjklmnpqrstvwxz2456789]{5}\Z")
#: Why a container waits that does not start without somebody's help.
_STUCK: Final = (
    "ImagePullBackOff",
    "ErrImageNeverPull",
    "InvalidImageName",
    "CreateContainerConfigError",
    "CreateContainerError",
)
#: Why a container has ended that never ran.
_NEVER_RAN: Final = ("StartError", "ContainerCannotRun", "ContainerStatusUnknown")


class ContainerEnd(NamedTuple):
    """How a container ended. One that never started has a ``message``, and perhaps no ``exit_code``."""

    exit_code: int | None
    reason: str
    message: str = ""


@dataclass(frozen=True)
class Pod:
    """A pod as it was when the API server last told of it. ``is_gone``: it was deleted."""

    uid: str
    namespace: str
    name: str
    data: Mapping[str, Any]
    is_gone: bool = False
    #: Grows with each change; 0 if the server does not count.
    version: int = 0

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "Pod":
        """Reads a pod of the API. Raises LookupError, TypeError or AttributeError for anything else."""
        meta = data["metadata"]
        version = str(meta.get("resourceVersion") or "")
        names = str(meta["uid"]), str(meta["namespace"]), str(meta["name"])
        return cls(*names, data, version=int(version) if version.isdecimal() else 0)

    @property
    def directory(self) -> str:
        """The name of the directory that has its logs."""
        return f"{self.namespace}_{self.name}_{self.uid}"

    @property
    def node(self) -> str | None:
        return self._spec.get("nodeName")

    @property
    def containers(self) -> list[str]:
        """The names of its containers, those that only prepare it last."""
        kinds = ("containers", "initContainers", "ephemeralContainers")
        return [str(each["name"]) for kind in kinds for each in self._spec.get(kind) or ()]

    def is_collected(self, namespaces: Collection[str]) -> bool:
        """Whether its containers' logs become jobs: its annotation says so, or it is one that ends."""
        wanted = self._meta("annotations").get("chronoverse/collect")
        ends = self._spec.get("restartPolicy") in ("Never", "OnFailure")
        return (not namespaces or self.namespace in namespaces) and (wanted == "true" or (wanted != "false" and ends))

    def job(self, container: str, restart: int) -> JobRef:
        """The job of a run of one of its containers. ``restart`` is 0 for the first."""
        annotations = self._meta("annotations")
        workflow = annotations.get("chronoverse/workflow") or f"{self.namespace}.{self._owner()}"
        if job := annotations.get("chronoverse/job"):
            # An annotation is about the pod. Only one of its containers can have that id.
            job = job if container == self.containers[0] else f"{job}.{container}"
        else:
            job = f"{self.name}.{container}"
        return JobRef(_identifier(workflow), _identifier(job, f".{restart}" if restart else ""))

    def labels(self, container: str, names: Iterable[str]) -> Labels:
        """The labels of a container's job; those of the pod that ``names`` names are among them."""
        images = [each.get("image") for each in self._containers("Statuses") if each.get("name") == container]
        given = [each.get("image") for each in self._containers("s") if each.get("name") == container]
        labels = {name: self._meta("labels").get(name) for name in names}
        labels |= {"namespace": self.namespace, "pod": self.name, "container": container, "node": self.node}
        return read_labels({**labels, "image": next((image for image in [*given, *images] if image), None)})

    def end(self, container: str, restart: int) -> ContainerEnd | None:
        """How a run of a container ended, if the pod's status says that."""
        for status in self._containers("Statuses"):
            count = status.get("restartCount") or 0
            if status.get("name") == container and count in (restart, restart + 1):
                state = status.get("state" if count == restart else "lastState") or {}
                if ended := state.get("terminated"):
                    code, reason = int(ended.get("exitCode") or 0), str(ended.get("reason") or "Unknown")
                    message = _one_line(f"{reason}: {ended.get('message')}") if reason in _NEVER_RAN else ""
                    # Such as Evicted, which is why its containers were killed.
                    why = self._status.get("reason") if code and count == restart else None
                    return ContainerEnd(code, str(why or reason), message)
        # Its containers have ended, and the kubelet did not say how.
        return ContainerEnd(None, str(self._status.get("reason") or "Unknown")) if self._has_failed else None

    def restarts(self, container: str) -> int:
        """How often a container was started again."""
        counts = (each.get("restartCount") for each in self._containers("Statuses") if each.get("name") == container)
        return next(counts, 0) or 0

    def start_failure(self, container: str) -> ContainerEnd | None:
        """Why a container that has never run does not run; None if nothing keeps it from that.

        It may still start, unless the pod :attr:`has_ended`.
        """
        if (ended := self.end(container, 0)) and ended.message:
            return ended
        waiting: Mapping[str, Any] = {}
        for status in self._containers("Statuses"):
            if status.get("name") == container:
                state = status.get("state") or {}
                if status.get("restartCount") or status.get("lastState") or "running" in state or "terminated" in state:
                    return None
                waiting = state.get("waiting") or {}
        if not (self._has_failed or waiting.get("reason") in _STUCK):
            return None
        why = self._status if self._has_failed and self._status.get("reason") else waiting
        reason = str(why.get("reason") or "NeverStarted")
        return ContainerEnd(None, reason, _one_line(f"{reason}: {why.get('message') or 'the container never started'}"))

    @property
    def has_ended(self) -> bool:
        """Whether none of its containers will run again."""
        return self.is_gone or self._status.get("phase") in ("Failed", "Succeeded")

    @property
    def _has_failed(self) -> bool:
        return self._status.get("phase") == "Failed"

    @property
    def _spec(self) -> Mapping[str, Any]:
        return self.data.get("spec") or {}

    @property
    def _status(self) -> Mapping[str, Any]:
        return self.data.get("status") or {}

    def _meta(self, name: str) -> Mapping[str, str]:
        return self.data["metadata"].get(name) or {}

    def _containers(self, what: str) -> list[Mapping[str, Any]]:
        """Its containers of every kind: their ``Statuses``, or with ``s`` what was asked for."""
        kinds = ("container", "initContainer", "ephemeralContainer")
        where = self._status if what == "Statuses" else self._spec
        return [each for kind in kinds for each in where.get(f"{kind}{what}") or ()]

    def _owner(self) -> str:
        """What the pod is a run of."""
        owners = self.data["metadata"].get("ownerReferences") or ()
        owner = next((each for each in owners if each.get("controller")), owners[0] if owners else None)
        kind, name = (owner.get("kind"), str(owner.get("name"))) if owner else ("", self.name)
        if kind == "Job" and _SCHEDULED.search(name):
            return _SCHEDULED.sub("", name)
        labels = self._meta("labels")
        if label := next((labels[each] for each in _OWNER_LABELS if labels.get(each)), None):
            return label
        template = labels.get("pod-template-hash")
        if template and name.endswith(f"-{template}"):
            return name.removesuffix(f"-{template}")
        return _GENERATED.sub("", name) if owner else name


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _identifier(text: str, ending: str = "") -> str:
    """An id of ``text`` and ``ending``. If that is too long, a digest of the text takes the place of its end."""
    text = re.sub(r"[^A-Za-z0-9._-]", "-", text, flags=re.ASCII)
    text = text if text[:1].isalnum() else f"x{text}"
    if len(text) + len(ending) > 128:
        digest = hashlib.sha256(text.encode()).hexdigest()[:8]
        text = f"{text[: 119 - len(ending)]}-{digest}"
    return text + ending
