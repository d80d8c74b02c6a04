"""The names and types of the store's Redis keys. ``docs/redis.md`` describes their contents. Pure."""

from collections.abc import Mapping
from typing import Final

from chronoverse.joblog.model import JobRef

#: The archive lock's kind of key. The name is old, but stays, because users rely on the names of keys.
ARCHIVE_LOCK: Final = "sealer"
#: A job's kinds of keys (the last part of a key's name, only letters), and their types, which ``check_types`` in
#: common.lua checks. A deletion removes all of these keys except the tombstone. Without an archive, an ended job's keys
#: expire: ``end_job`` in common.lua decides which.
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
#: A workflow's kinds of keys, and their types.
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
        #: The sorted set of workflows, the sorted set with the age mark, and the hash of quotas. Each has its own slot.
        self.workflows: Final = f"{prefix}:workflows"
        self.mark: Final = f"{prefix}:mark"
        self.limits: Final = f"{prefix}:limits"
        #: The audit trail's stream. Runners' ACLs do not include its name.
        self.audit_trail: Final = f"{prefix}-audit"

        #: The set of workflows with watches. Runners' ACLs include neither this key nor the keys of watches.
        self.watched: Final = f"{prefix}-watches"

    def watches(self, workflow_id: str) -> str:
        return f"{self.watched}:{{{workflow_id}}}"

    def told(self, workflow_id: str) -> str:
        """The sorted set of events that the workflow's watches have queued."""
        return f"{self.watches(workflow_id)}:told"

    def watch_queue(self, workflow_id: str, watch_id: str) -> str:
        """The sorted set of a watch's waiting events."""
        return f"{self.watches(workflow_id)}:{watch_id}:queue"

    def of(self, job: JobRef, kind: str) -> str:
        if kind in WORKFLOW_KEYS:
            return self.of_workflow(job.workflow_id, kind)
        return f"{self.prefix}:{{{job.workflow_id}}}:{job.job_id}:{kind}"

    def of_workflow(self, workflow_id: str, kind: str) -> str:
        """A workflow's key of this ``kind``: ``jobs``, ``running`` (jobs), ``changes`` or ``settings``."""
        return f"{self.prefix}:{{{workflow_id}}}:{kind}"

    def log(self, job: JobRef) -> str:
        """The job's stream. Without a job id: the stream of the workflow's changes, which is read like a log."""
        return self.of(job, "log") if job.job_id else self.of_workflow(job.workflow_id, "changes")

    def key_set(self, name: str) -> str:
        """An issuer's public keys. Runners' and archivers' Redis users cannot access keys of this form."""
        return f"{self.prefix}-issuer:{name}"
