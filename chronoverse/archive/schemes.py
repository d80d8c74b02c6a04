"""Opens an object store by its URL."""

from pathlib import Path
from urllib.parse import unquote, urlsplit

from chronoverse.archive.object_store import FileObjectStore, ObjectStore
from chronoverse.archive.s3_store import S3ObjectStore


def open_object_store(url: str) -> ObjectStore:
    """The object store at ``CHRONOVERSE_ARCHIVE_URL``. Raises :class:`SettingsError` if boto3 is missing."""
    parts = urlsplit(url)
    if parts.scheme == "s3":
        return S3ObjectStore(parts.netloc, unquote(parts.path))
    return FileObjectStore(Path(unquote(parts.path)))
