"""An archive in files."""

from pathlib import Path

import pytest

from chronoverse.archive.object_store import FileObjectStore


@pytest.fixture
def objects(tmp_path: Path) -> FileObjectStore:
    return FileObjectStore(tmp_path / "archive")
