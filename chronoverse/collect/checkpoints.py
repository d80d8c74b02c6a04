"""A small file that records how far each log was published. If it is lost, log files are compared with their jobs."""

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson


class Checkpoints(dict[str, dict[str, Any]]):
    """The logs' checkpoints, in the file ``path``. It is not synced to disk; a damaged file is treated as missing."""

    def __init__(self, path: Path, say: Callable[[str], None]) -> None:
        super().__init__()
        self._path, self._say, self._written = path, say, b""
        with contextlib.suppress(OSError, ValueError):
            found = orjson.loads(path.read_bytes())
            if isinstance(found, dict) and all(isinstance(each, dict) for each in found.values()):
                self.update(found)

    def write(self) -> None:
        """Writes all checkpoints, if any has changed. If that fails, a restart compares more lines."""
        if (content := orjson.dumps(self, default=list)) == self._written:
            return
        draft = self._path.with_suffix(".draft")
        try:
            draft.write_bytes(content)
            draft.replace(self._path)
            self._written = content
        except OSError as error:
            self._say(f"checkpoints cannot be written: {error.strerror}")
