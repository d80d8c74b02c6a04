"""The manifest of an archived job, ``job.json``: the job, its chunks and dates. Objects it names are not garbage."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import orjson

from chronoverse.archive.object_store import ObjectStore
from chronoverse.errors import ArchiveDamaged
from chronoverse.joblog.chunk import Chunk, folder
from chronoverse.joblog.model import Job, JobRef, iso_timestamp, seconds_of


class Manifest(NamedTuple):
    """A job's manifest. ``names``: its objects, including those of earlier manifests. ``fields``: all of its JSON.

    ``ended_at``: Unix seconds, if known.
    """

    names: frozenset[str]
    ended_at: float | None
    fields: dict[str, Any]

    def keeps(self, retention_seconds: float, now: float) -> bool:
        """Whether the retention, counted from the job's end, still runs. False for an unknown or future end."""
        return self.ended_at is not None and self.ended_at <= now < self.ended_at + retention_seconds


def read_manifest(objects: ObjectStore, job: JobRef) -> Manifest | None:
    """The job's manifest, or None. Raises :class:`ArchiveDamaged` and :class:`ArchiveUnavailable`."""
    try:
        data = objects.get(manifest_name(job))
    except ArchiveDamaged:
        return None
    try:
        fields: dict[str, Any] = orjson.loads(data)
        names = frozenset([*(str(chunk["object"]) for chunk in fields["chunks"]), *map(str, fields.get("earlier", ()))])
        # Manifests of earlier versions have no "ended_at".
        return Manifest(names, seconds_of(fields.get("ended_at") or fields["job"]["finished_at"]), fields)
    except (ValueError, TypeError, LookupError, AttributeError) as error:
        raise ArchiveDamaged(f"the manifest of {job} cannot be read") from error


def deletion_json(job: JobRef, now: float) -> bytes:
    """Marks a deletion: replaces the job's manifest before the objects are deleted, to prevent an import."""
    fields = {"workflow_id": job.workflow_id, "id": job.job_id, "finished_at": None}
    return orjson.dumps({"job": fields, "deleted_at": iso_timestamp(now), "chunks": []})


def manifest_name(job: JobRef) -> str:
    return f"{folder(job)}job.json"


def manifest_json(
    job: Job, state: dict[str, Any], chunks: Sequence[Chunk], sha256: str, ended_at: float, earlier: Sequence[str] = ()
) -> bytes:
    fields = {**job.to_json(), **state, "redactions": job.redactions, "archive_sha256": sha256}
    manifest = {
        "job": fields,
        "ended_at": iso_timestamp(ended_at),
        "chunks": [orjson.Fragment(chunk.to_json()) for chunk in chunks],
    }
    return orjson.dumps({**manifest, "earlier": list(earlier)} if earlier else manifest)
