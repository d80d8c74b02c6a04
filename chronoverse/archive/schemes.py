"""Which object store an URL names."""

from pathlib import Path
from urllib.parse import unquote, urlsplit

from chronoverse.archive.object_store import FileObjectStore, ObjectStore
from chronoverse.archive.s3_store import S3ObjectStore


def open_object_store(url: str) -> ObjectStore:
    """The object store that ``CHRONOVERSE_ARCHIVE_URL`` names: ``file:///DIRECTORY`` or ``s3://BUCKET/PREFIX``.

    ``settings.parse.archive_url`` refuses any other. Raises :class:`SettingsError` when boto3 is not installed.
    """
    parts = urlsplit(url)
    if parts.scheme == "s3":
        return S3ObjectStore(parts.netloc, unquote(parts.path))
    return FileObjectStore(Path(unquote(parts.path)))
