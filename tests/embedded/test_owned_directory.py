"""Directories of killed processes are removed by the next one, and no others."""

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
    """Not while the process lives."""
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


def test_a_directory_that_several_keep_stays_until_all_have_ended() -> None:
    """A service that was started anew keeps the directory of the one before."""
    directory = owned_directory.make(PREFIX)
    first, second = owned_directory.keep(directory), owned_directory.keep(directory)
    first.close()
    owned_directory.make(PREFIX)
    assert directory.is_dir()
    second.close()
    owned_directory.make(PREFIX)
    assert not directory.exists()


def test_what_may_be_somebody_elses_stays(temporary: Path) -> None:
    """A directory of another name, one without the file, such as of an older version, and what a link leads to."""
    lock = temporary / "other" / owned_directory.LOCK_NAME
    lock.parent.mkdir()
    lock.touch()
    (temporary / f"{PREFIX}link").symlink_to(lock.parent)
    old = temporary / f"{PREFIX}old"
    old.mkdir()
    owned_directory.make(PREFIX)
    assert lock.exists()
    assert old.is_dir()
