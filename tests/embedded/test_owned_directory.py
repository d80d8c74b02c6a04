"""Directories of killed processes, and only those, are removed by the next process."""

import os
import signal
import tempfile
from pathlib import Path
from typing import Final

import pytest

from chronoverse.embedded import owned_directory

PREFIX: Final = "chronoverse-tests-"


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The directory for temporary files."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def test_the_directory_of_a_killed_process_is_removed() -> None:
    """But not while the process lives."""
    told, tell = os.pipe()
    owner = os.fork()
    if not owner:
        with owned_directory.keep(owned_directory.make(PREFIX)) as lock:
            os.write(tell, os.path.dirname(lock.name).encode())
            signal.pause()
    theirs = Path(os.read(told, 4_096).decode())
    (theirs / "counter.db").touch()
    try:
        owned_directory.make(PREFIX)
        assert theirs.is_dir()
    finally:
        os.kill(owner, signal.SIGKILL)
        os.waitpid(owner, 0)
    owned_directory.make(PREFIX)
    assert not theirs.exists()


def test_a_shared_directory_stays_until_all_its_processes_have_ended() -> None:
    """A restarted service keeps its predecessor's directory."""
    directory = owned_directory.make(PREFIX)
    first, second = owned_directory.keep(directory), owned_directory.keep(directory)
    first.close()
    owned_directory.make(PREFIX)
    assert directory.is_dir()
    second.close()
    owned_directory.make(PREFIX)
    assert not directory.exists()


def test_directories_of_other_programs_stay(temporary: Path) -> None:
    """With another name, without our file (older versions), or behind a link."""
    lock = temporary / "other" / owned_directory.LOCK_NAME
    lock.parent.mkdir()
    lock.touch()
    (temporary / f"{PREFIX}link").symlink_to(lock.parent)
    old = temporary / f"{PREFIX}old"
    old.mkdir()
    owned_directory.make(PREFIX)
    assert lock.exists()
    assert old.is_dir()


def test_a_directory_is_locked_once_it_can_be_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another process that starts at that moment does not remove it."""
    directory, rename = owned_directory.make(PREFIX), Path.rename

    def renamed(path: Path, name: Path) -> Path:
        renamed = rename(path, name)
        owned_directory.make(PREFIX)
        return renamed

    monkeypatch.setattr(Path, "rename", renamed)
    with owned_directory.keep(directory):
        assert directory.is_dir()
