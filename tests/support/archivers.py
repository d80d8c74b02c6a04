"""Archivers that run here or in a process that is killed at a given step; and reading a job's log from both tiers."""

import contextlib
import copy
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Final, cast

import orjson

from chronoverse.archive.archiver import Archiver
from chronoverse.archive.codec import decode_entry, frame_text
from chronoverse.archive.manifest import manifest_name
from chronoverse.archive.object_store import FileObjectStore, ObjectStore, StoredObject
from chronoverse.archive.retention import RetentionPolicy
from chronoverse.errors import ArchiveDamaged
from chronoverse.joblog.entries import Entry, read_entries
from chronoverse.joblog.model import JobRef, Line, iso_timestamp
from chronoverse.store import Store
from chronoverse.store.chunk_index import ChunkIndex
from tests.support.bench import Bench

#: The minimum ``hot_bytes``: about 7,000 lines of :func:`padded_lines`.
HOT_BYTES: Final = 2**20
#: An archiver's steps, in order. A test can kill it after each.
STEPS: Final = ("read", "upload begun", "put", "read back", "committed", "derived", "manifest", "completed")
TIMEOUT_SECONDS: Final = 60
DAY: Final = 86_400.0


def policy(**changes: Any) -> RetentionPolicy:
    """A retention policy for tests: small logs, long retention, and unrecorded objects are deleted immediately."""
    values: dict[str, Any] = {
        "hot_bytes": HOT_BYTES,
        "hot_seconds": 3_600,
        "retention_seconds": 3_650 * DAY,
        "running_seconds": 36_500 * DAY,
        "orphan_seconds": 0,
    }
    return RetentionPolicy(**(values | changes))


class _SteppedIndex:
    """Wraps ``index`` and calls ``on_step`` before or after some calls."""

    def __init__(self, index: ChunkIndex, on_step: Callable[[str], object]) -> None:
        self._index = index
        self._on_step = on_step

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._index, name)
        before = {"begin_upload": "read"}.get(name)
        steps = {"commit_chunk": "committed", "mark_complete": "completed", "mark_deleting": "marked for deletion"}
        after = {"begin_upload": "upload begun", **steps}.get(name)

        def call(*args: Any, **options: Any) -> Any:
            if before:
                self._on_step(before)
            answer = found(*args, **options)
            if after:
                self._on_step(after)
            return answer

        return call


class _SteppedObjects:
    """Wraps ``objects`` and calls ``on_step`` after some calls."""

    def __init__(self, objects: ObjectStore, on_step: Callable[[str], object]) -> None:
        self._objects = objects
        self._on_step = on_step
        self._to_read_back = ""

    def put(self, name: str, data: bytes) -> None:
        self._objects.put(name, data)
        kind = name.rpartition("/")[2]
        if kind.endswith(".jsonl.zst"):
            self._to_read_back = name
            self._on_step("put")
        elif kind.startswith("timeline"):
            self._on_step("derived")
        elif kind == "job.json":
            self._on_step("manifest")

    def get(self, name: str, start: int = 0, stop: int | None = None) -> bytes:
        data = self._objects.get(name, start, stop)
        if name == self._to_read_back:
            self._to_read_back = ""
            self._on_step("read back")
        return data

    def delete(self, name: str) -> None:
        self._objects.delete(name)
        self._on_step("object deleted")

    def list(self, prefix: str) -> Iterator[StoredObject]:
        return self._objects.list(prefix)


def stepped(store: Store, objects: ObjectStore, on_step: Callable[[str], object]) -> tuple[Store, ObjectStore]:
    """Both stores wrapped for an archiver or a deletion, which call ``on_step`` with the name of each completed step.

    An archiver's steps are :data:`STEPS`; a deletion's are "marked for deletion" and "object deleted".
    """
    stepping = copy.copy(store)
    stepping.chunks = cast(ChunkIndex, _SteppedIndex(store.chunks, on_step))
    return stepping, _SteppedObjects(objects, on_step)


def archiver(
    store: Store, objects: ObjectStore, *, on_step: Callable[[str], object] | None = None, **changes: Any
) -> Archiver:
    """An archiver that has not yet read anything from the store."""
    if on_step is not None:
        store, objects = stepped(store, objects, on_step)
    clock = {name: changes.pop(name) for name in ("clock", "monotonic") if name in changes}
    return Archiver(store, objects, policy(**changes), stop=threading.Event(), **clock)


def archive(store: Store, objects: ObjectStore, **changes: Any) -> int:
    """Does all pending work. Returns the number of jobs that had a problem."""
    return archiver(store, objects, **changes).run_once()


def set_ended(bench: Bench, objects: ObjectStore, job: JobRef, seconds_ago: float) -> None:
    """Sets the job's end to ``seconds_ago``, in the store and in the manifest, if there is one."""
    bench.set_end_seen(seconds_ago, job)
    with contextlib.suppress(ArchiveDamaged):
        manifest = orjson.loads(objects.get(manifest_name(job)))
        manifest["ended_at"] = iso_timestamp(time.time() - seconds_ago)
        objects.put(manifest_name(job), orjson.dumps(manifest))


def padded_lines(first: int, count: int) -> list[Line]:
    """``count`` lines of a little more than 100 bytes each."""
    stamp = "2026-03-03T10:00:05.123Z"
    return [Line(each, stamp, f"line {each} ".ljust(100, "x"), "stdout") for each in range(first, first + count)]


def append(store: Store, attempt: Any, first: int, count: int) -> int:
    """Appends ``count`` lines, in batches of a thousand. Returns the next number."""
    for start in range(first, first + count, 1_000):
        store.append(attempt, padded_lines(start, min(1_000, first + count - start)))
    return first + count


def all_entries(store: Store, objects: ObjectStore, job: JobRef) -> list[Entry]:
    """All entries of a log in order: archived ones from the archive, the rest from the store."""
    entries: list[Entry] = []
    archived = 0
    for chunk in store.chunks.chunks(job):
        data = objects.get(chunk.name)
        for frame in chunk.frames:
            entries += map(decode_entry, frame_text(frame, data).splitlines())
        archived = chunk.last
    found = store.get_job(job)
    return [
        *entries,
        *read_entries(store.page(job, after=archived, count=1_000_000), archived, found.first if found else 1),
    ]


def line_numbers(entries: Iterable[Entry]) -> list[int]:
    """The line numbers in ``entries``."""
    return [entry.sequence_num for entry in entries if isinstance(entry, Line)]


#: Forks processes from one that has imported this module: 15 ms of CPU time each instead of 400.
_PROCESSES: Final = multiprocessing.get_context("forkserver")
_PROCESSES.set_forkserver_preload([__name__])


def run_until_killed(url: str, prefix: str, directory: Path, step: str, **changes: Any) -> int:
    """Runs an archiver in a process that kills itself at the first ``step``. Returns the exit code."""
    process = _PROCESSES.Process(target=_archive_until, args=(url, prefix, directory, step, changes))
    process.start()
    process.join(TIMEOUT_SECONDS)
    code = process.exitcode
    assert code is not None, "the archiver is still busy"
    process.close()
    return code


def _archive_until(url: str, prefix: str, directory: Path, step: str, changes: dict[str, Any]) -> None:
    """Runs in the process of :func:`run_until_killed`."""

    def kill_at_step(name: str) -> None:
        if name == step:
            os.kill(os.getpid(), signal.SIGKILL)

    store = Store(url, prefix=prefix)
    assert archive(store, FileObjectStore(directory), on_step=kill_at_step, **changes) == 0
