"""The names and types of the store's Redis keys. The key map in :mod:`chronoverse.store` says what each holds. Pure."""

from collections.abc import Mapping
from typing import Final

from chronoverse.joblog.model import JobRef

#: The kind of key that is the archive lock. The keys are a contract with users, so the name stays.
ARCHIVE_LOCK: Final = "sealer"
#: The kinds of keys of a job, which end the keys' names, and their types. The scripts check these types, and a deletion
#: removes all of them but the tombstone.
JOB_KEYS: Final[Mapping[str, str]] = {
    "log": "stream",
    "job": "hash",
    "lease": "string",
    "archive": "zset",
    "audit": "list",
    ARCHIVE_LOCK: "string",
    "garbage": "hash",
    "deleted": "string",
}
#: The same of a workflow.
WORKFLOW_KEYS: Final[Mapping[str, str]] = {"jobs": "zset", "running": "set", "settings": "hash"}


class KeyMap:
    """The key names under one ``prefix``. A workflow's id is the hash tag of all its keys."""

    def __init__(self, prefix: str) -> None:
        self.prefix = prefix

    def of(self, job: JobRef, kind: str) -> str:
        """A job's key of one kind, such as ``log`` or ``lease``."""
        return f"{self.prefix}:{{{job.workflow_id}}}:{job.job_id}:{kind}"

    def log(self, job: JobRef) -> str:
        """The job's stream."""
        return self.of(job, "log")

    def runner(self, job: JobRef) -> tuple[str, str, str]:
        """The job's log, hash and lease, which the scripts for runners take."""
        return self.of(job, "log"), self.of(job, "job"), self.of(job, "lease")

    def listing(self, workflow_id: str) -> str:
        """The sorted set of the workflow's jobs."""
        return f"{self.prefix}:{{{workflow_id}}}:jobs"

    def running(self, workflow_id: str) -> str:
        """The set of the workflow's jobs that have begun and not ended."""
        return f"{self.prefix}:{{{workflow_id}}}:running"

    def workflows(self) -> str:
        """The sorted set of all workflows. Its slot in a Cluster is its own."""
        return f"{self.prefix}:workflows"

    def mark(self) -> str:
        """The sorted set with the age mark. Its slot in a Cluster is its own."""
        return f"{self.prefix}:mark"

    def key_set(self, name: str) -> str:
        """An issuer's public keys. The users of runners and archivers have no rights for a key of this form."""
        return f"{self.prefix}-issuer:{name}"

    def settings(self, workflow_id: str) -> str:
        """The hash with the workflow's own settings."""
        return f"{self.prefix}:{{{workflow_id}}}:settings"
