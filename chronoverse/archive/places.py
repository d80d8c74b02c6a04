"""Where a URL says that objects are."""

from pathlib import Path
from urllib.parse import unquote, urlsplit

from chronoverse.archive.files import FileObjects
from chronoverse.archive.objects import Objects


def objects_at(url: str) -> Objects:
    """The place for objects at ``url``."""
    return FileObjects(Path(unquote(urlsplit(url).path)))
