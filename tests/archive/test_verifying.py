"""``chronoverse archive --verify``: what the store records, but the archive lacks."""

from collections.abc import Callable
from pathlib import Path

import pytest

from chronoverse.archive.manifest import manifest_name
from chronoverse.archive.object_store import FileObjectStore
from chronoverse.archive.redaction import Redaction, RedactionRequest
from chronoverse.archive.retention import delete_job
from chronoverse.archive.store_history import MARK
from chronoverse.archive.verifying import verify
from chronoverse.joblog.model import JobRef
from tests.support.archivers import archive
from tests.support.archives import archive_up_to
from tests.support.bench import JOB, Bench, make_lines, write_ended
from tests.support.commands import call_main

RUNNING = JobRef("wf_2", "running")


@pytest.fixture
def objects(bench: Bench, tmp_path: Path) -> FileObjectStore:
    """The archive of an ended job, and of a running one with two chunks."""
    objects = FileObjectStore(tmp_path / "archive")
    write_ended(bench.store, JOB, 100)
    assert archive(bench.store, objects) == 0
    bench.store.append(bench.store.open(RUNNING, "token"), make_lines(1, 100))
    for to in (40, 80):
        archive_up_to(bench.store, objects, RUNNING, to, trim=True)
    return objects


def problems(bench: Bench, objects: FileObjectStore) -> dict[str, str]:
    return {each.name: each.problem for each in verify(bench.store, objects) if each.problem}


def test_a_complete_archive_has_no_problems(bench: Bench, objects: FileObjectStore) -> None:
    """Beside a key of another program that has a log's name."""
    bench.ask("SET", bench.key("log", JobRef("wf_2", "foreign")), "text")
    assert len(list(verify(bench.store, objects))) == 4
    assert problems(bench, objects) == {}


def test_every_object_that_an_emptied_archive_lacks_is_reported(bench: Bench, objects: FileObjectStore) -> None:
    names = {each.name for each in objects.list("") if each.name.endswith(("zst", "job.json"))}
    for each in list(objects.list("")):
        objects.delete(each.name)
    assert set(problems(bench, objects)) == names
    assert len(names) == 4


def flip(data: bytes) -> bytes:
    return data[:40] + bytes([data[40] ^ 1]) + data[41:]


@pytest.mark.parametrize("damage", [flip, lambda data: data[:-20], lambda data: b"", lambda data: b"x" * len(data)])
def test_a_damaged_object_is_reported(bench: Bench, objects: FileObjectStore, damage: Callable[[bytes], bytes]) -> None:
    chunk = bench.store.chunks.chunks(RUNNING)[1]
    objects.put(chunk.name, damage(objects.get(chunk.name)))
    assert list(problems(bench, objects)) == [chunk.name]


def test_a_damaged_manifest_and_records_are_reported(bench: Bench, objects: FileObjectStore) -> None:
    objects.put(manifest_name(JOB), b"{")
    bench.ask("ZADD", bench.key("archive", RUNNING), 90, "no record")
    assert set(problems(bench, objects)) == {manifest_name(JOB), str(RUNNING)}


def test_concurrent_replacements_and_deletions_are_no_problem(bench: Bench, objects: FileObjectStore) -> None:
    """A redaction rewrote a chunk, or the job was deleted, after its records were read."""

    class Changing(FileObjectStore):
        def get(self, name: str, start: int = 0, stop: int | None = None) -> bytes:
            if name == replaced.name:
                request = RedactionRequest(1, 9, lambda line: True, {"subject": "a", "at": "b"}, exact=False)
                assert Redaction(bench.store, objects, RUNNING, request).run().lines == 9
                super().delete(name)
            elif name == deleted.name:
                delete_job(bench.store, objects, JOB)
            return super().get(name, start, stop)

    (deleted,), replaced = bench.store.chunks.chunks(JOB), bench.store.chunks.chunks(RUNNING)[0]
    assert problems(bench, Changing(objects._directory)) == {}


def test_the_command_exits_with_1_and_reports_objects(bench: Bench, objects: FileObjectStore) -> None:
    """As does an import from an archive that lost its mark: it imports nothing and prints the reason."""
    variables = {
        "CHRONOVERSE_URL": "",
        "CHRONOVERSE_REDIS_URL": bench.url,
        "CHRONOVERSE_KEY_PREFIX": bench.prefix,
        "CHRONOVERSE_ARCHIVE_URL": objects._directory.as_uri(),
    }
    assert call_main("archive", "--confirm-store", environ=variables).returncode == 0
    done = call_main("archive", "--verify", environ=variables)
    assert (done.returncode, done.stdout) == (0, "")
    chunk = bench.store.chunks.chunks(RUNNING)[0]
    objects.delete(chunk.name)
    done = call_main("archive", "--verify", environ=variables)
    assert (done.returncode, done.stdout.split("\t")[0]) == (1, chunk.name)
    for each in list(objects.list("")):
        objects.delete(each.name)
    done = call_main("archive", "--verify", environ=variables)
    assert (done.returncode, len(done.stdout.splitlines())) == (1, 4)
    done = call_main("archive", "--import", environ=variables)
    assert done.returncode == 65
    assert "the archive does not belong to this store" in done.stderr
    assert MARK not in [each.name for each in objects.list("")]
    assert call_main("archive", "--confirm-store", environ=variables).returncode == 0
    assert call_main("archive", "--import", environ=variables).returncode == 0
