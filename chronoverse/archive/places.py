"""The archive that a URL names."""

from pathlib import Path
from urllib.parse import unquote, urlsplit

from chronoverse.archive.files import FileObjects
from chronoverse.archive.objects import Objects
from chronoverse.errors import SettingsError


def objects_at(url: str) -> Objects:
    """The place for objects at ``url``. Raises :class:`SettingsError`."""
    parts = urlsplit(url)
    if parts.scheme == "file":
        return FileObjects(Path(unquote(parts.path)))
    raise SettingsError(f"there is no archive at {parts.scheme}: yet")
