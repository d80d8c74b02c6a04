"""A TOML file with rights, reread when it changes."""

import logging
import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Generic, TypeVar

from chronoverse.errors import RightsUnavailable, SettingsError

#: Maximum bytes of the file. Parsing delays a request by up to 0.1 s.
MAX_FILE_BYTES: Final = 262_144

log = logging.getLogger(__name__)

_Content = TypeVar("_Content")


@dataclass(eq=False)
class TomlFile(Generic[_Content]):
    _path: Path
    _setting: str
    _parse: Callable[[dict[str, Any]], _Content]
    _seen: tuple[int, ...] | None = None
    _content: _Content | None = None
    _is_valid: bool = False

    def read(self) -> _Content:
        """The file's current content. Raises :class:`SettingsError`, which names the first error and its position."""
        try:
            with self._path.open("rb") as file:
                content = file.read(MAX_FILE_BYTES + 1)
            if len(content) > MAX_FILE_BYTES:
                raise ValueError(f"it has more than {MAX_FILE_BYTES} bytes")
            return self._parse(tomllib.loads(content.decode()))
        except OSError as error:
            raise SettingsError(f"{self._setting}: {self._path}: {error.strerror}") from error
        except (ValueError, RecursionError) as error:
            raise SettingsError(f"{self._setting}: {self._path}: {error}") from error

    def refresh(self) -> bool:
        """Reads the file if it has changed. Returns whether its latest content is valid.

        Logs errors, and keeps the previous content.
        """
        seen: tuple[int, ...] = ()
        try:
            status = self._path.stat()
            seen = status.st_ino, status.st_ctime_ns, status.st_size
        except OSError:
            pass  # read() reports the error.
        if seen != self._seen:
            self._seen = seen
            try:
                self._content = self.read()
                log.info("%s was read", self._setting)
                self._is_valid = True
            except SettingsError as error:
                log.error("%s%s", error, "" if self._content is None else "; the previous content stays in use")
                self._is_valid = False
        return self._is_valid

    def check(self) -> _Content:
        """The content. Raises :class:`RightsUnavailable` if this process has never read a valid file."""
        self.refresh()
        if self._content is None:
            raise RightsUnavailable(f"{self._setting} is invalid, and no earlier content is loaded")
        return self._content
