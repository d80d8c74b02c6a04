"""The names and types of the store's Redis keys. ``docs/redis.md`` describes their contents. Pure."""

from collections.abc import Mapping
from typing import Final

from chronoverse.joblog.model import JobRef

#: The kind of key that is the archive lock. The keys are a contract with users, so the name stays.
ARCHIVE_LOCK: Final = "sealer"
#: The kinds of keys of a job, which end the keys' names and have only letters, and their types. ``check_types`` in
#: common.lua takes the types from here, and a deletion removes all but the tombstone. The keys of an ended job that is
#: not archived expire instead, if ``end_job`` there decides so.
JOB_KEYS: Final[Mapping[str, str]] = {
    "log": "stream",
    "job": "hash",
    "lease": "string",
    "files": "hash",
    "batches": "zset",
    "archive": "zset",
    "audit": "list",
    ARCHIVE_LOCK: "string",
    "garbage": "hash",
    "deleted": "string",
}
#: The kinds of keys of a workflow, and their types.
WORKFLOW_KEYS: Final[Mapping[str, str]] = {
    "jobs": "zset",
    "running": "set",
    "changes": "stream",
    "settings": "hash",
}
RUNNER_KEYS: Final = ("log", "job", "lease")
RECORD_KEYS: Final = (*RUNNER_KEYS, "files", "batches", "jobs")


class KeyMap:
    """The key names under one ``prefix``. A workflow's id is the hash tag of all its keys."""

    def __init__(self, prefix: str) -> None:
        self.prefix: Final = prefix
        #: The sorted set of all workflows, the age mark's, and the hash of the common quotas, each in a slot of its
        #: own.
        self.workflows: Final = f"{prefix}:workflows"
        self.mark: Final = f"{prefix}:mark"
        self.limits: Final = f"{prefix}:limits"
        #: The stream of the audit trail. As for a key set, runners have no rights for it.
        self.audit_trail: Final = f"{prefix}-audit"

        #: The set of workflows that have watches. Neither have runners rights for the keys of watches.
        self.watched: Final = f"{prefix}-watches"

    def watches(self, workflow_id: str) -> str:
        return f"{self.watched}:{{{workflow_id}}}"

    def told(self, workflow_id: str) -> str:
        """The sorted set of the events that the workflow's watches have queued."""
        return f"{self.watches(workflow_id)}:told"

    def watch_queue(self, workflow_id: str, watch_id: str) -> str:
        """The sorted set of a watch's waiting events."""
        return f"{self.watches(workflow_id)}:{watch_id}:queue"

    def of(self, job: JobRef, kind: str) -> str:
        if kind in WORKFLOW_KEYS:
            return self.of_workflow(job.workflow_id, kind)
        return f"{self.prefix}:{{{job.workflow_id}}}:{job.job_id}:{kind}"

    def of_workflow(self, workflow_id: str, kind: str) -> str:
        """A key of a workflow: its ``jobs``, those that are ``running``, its ``changes`` or its ``settings``."""
        return f"{self.prefix}:{{{workflow_id}}}:{kind}"

    def log(self, job: JobRef) -> str:
        """The job's stream. Without a job id, the stream of the workflow's changes, which readers treat like a log."""
        return self.of(job, "log") if job.job_id else self.of_workflow(job.workflow_id, "changes")

    def key_set(self, name: str) -> str:
        """An issuer's public keys. The Redis users of runners and archivers cannot access keys of this form."""
        return f"{self.prefix}-issuer:{name}"
