"""Where the archive is, by its URL."""

from pathlib import Path
from urllib.parse import unquote, urlsplit

from chronoverse.archive.file_store import FileObjects
from chronoverse.archive.object_store import Objects
from chronoverse.archive.s3_store import S3Objects


def objects_at(url: str) -> Objects:
    """The place that ``CHRONOVERSE_ARCHIVE_URL`` names: ``file:///DIRECTORY`` or ``s3://BUCKET/PREFIX``.

    Raises: :class:`SettingsError` when what it takes is not installed.
    """
    parts = urlsplit(url)
    if parts.scheme == "s3":
        return S3Objects(parts.netloc, unquote(parts.path))
    return FileObjects(Path(unquote(parts.path)))
