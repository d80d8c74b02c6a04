"""Small files that record how far each log was published. Without them, log files are compared with published logs."""

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import orjson


class Checkpoints(NamedTuple):
    """Checkpoint files in ``directory``, one per name.

    They survive the process, but are not synced to disk. A damaged file counts as missing.
    """

    directory: Path
    say: Callable[[str], None]

    def load(self, name: str) -> dict[str, Any]:
        """Returns the saved checkpoint, or an empty dictionary."""
        with contextlib.suppress(OSError, ValueError):
            return dict(orjson.loads((self.directory / f"{name}.json").read_bytes()))
        return {}

    def names(self) -> list[str]:
        return sorted(path.stem for path in self.directory.glob("*.json"))

    def save(self, name: str, value: dict[str, Any]) -> None:
        """Replaces the checkpoint. On an error, keeps the previous one; a restart then compares more lines."""
        draft = self.directory / f"{name}.draft"
        try:
            draft.write_bytes(orjson.dumps(value, default=list))
            draft.replace(draft.with_suffix(".json"))
        except OSError as error:
            self.say(f"checkpoints cannot be written: {error.strerror}")
            with contextlib.suppress(OSError):
                draft.unlink(missing_ok=True)

    def delete(self, name: str) -> None:
        with contextlib.suppress(OSError):
            (self.directory / f"{name}.json").unlink(missing_ok=True)
