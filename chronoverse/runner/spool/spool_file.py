"""The spool file: slots that are written, read and freed. It can be recovered after its writer was killed.

The file's name is only for people. Its state says which job it belongs to. The file is locked while a process has it
open, and the kernel releases the lock when the process ends. So a file that can be locked is orphaned.
"""

import contextlib
import fcntl
import os
import re
import secrets
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self

from chronoverse.errors import SpoolError
from chronoverse.joblog.values import IDENTIFIER, MAX_NUMBER, Status
from chronoverse.runner.spool import records

#: Bytes of a slot: enough for the largest batch, a read of 256 KiB after a line of 1 MiB.
SLOT_BYTES: Final = 2 * 1_048_576
#: Bytes that may wait in memory. More goes to the file.
MEMORY_BYTES: Final = 8 * SLOT_BYTES
#: Bytes that the file may have by default, and the smallest such bound: eight slots.
SPOOL_MAX_BYTES: Final = 1_073_741_824
SPOOL_MIN_BYTES: Final = records.SLOTS_AT + 8 * SLOT_BYTES
#: Bytes of safe lines that are kept nevertheless. A store may lose lines after it said that they were safe.
KEEP_BYTES: Final = 2 * SLOT_BYTES
#: Seconds for which the file does not grow after the disk was full.
FULL_SECONDS: Final = 2.0
#: Slots of the largest file that a user can ask for, 1 TiB. Reading all their headers takes seconds.
MAX_SLOTS: Final = 2**40 // SLOT_BYTES
#: The ending of the names of spool files.
SUFFIX: Final = ".spool"
#: The largest exit code that a log can hold; its negative is the smallest.
MAX_EXIT_CODE: Final = 999_999_999
#: A slot must have room for the head of one record.
_MIN_SLOT_BYTES: Final = records.SLOT_HEAD_BYTES + records.RECORD_HEAD_BYTES
_TOKEN: Final = re.compile("[0-9a-f]{32,128}", re.ASCII)
#: Characters of a job's id in the file's name. The longest ids would make the name too long.
_NAME_CHARACTERS: Final = 64


@dataclass(frozen=True, slots=True)
class SpoolRoom:
    """The room that a spool may take, in bytes. Without a ``directory`` it has no file, and ``name`` is for its file.

    ``keep_bytes`` is how many bytes of safe lines are kept. ``slot_bytes`` is the size of a slot, and of a segment in
    memory.
    """

    directory: Path | None = None
    name: str = "job"
    memory_bytes: int = MEMORY_BYTES
    file_bytes: int = SPOOL_MAX_BYTES
    keep_bytes: int = KEEP_BYTES
    slot_bytes: int = SLOT_BYTES


class SpoolFile:
    """An open spool file of at most ``max_bytes``. Every method may raise OSError: the disk may be full, or gone."""

    def __init__(
        self,
        path: Path,
        descriptor: int,
        max_bytes: int,
        slot_bytes: int,
        generation: int = 0,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self.path = path
        self.slot_bytes = slot_bytes
        self.max_slots = max(2, (max_bytes - records.SLOTS_AT) // slot_bytes)
        self._descriptor = descriptor
        self._generation = generation
        self._monotonic = monotonic
        #: Slots that are not in use.
        self._free: list[int] = []
        #: Slots that could not be written because the disk was full. They may be used again when it has room.
        self._failed: list[int] = []
        self._grow_at = 0.0
        #: Slots that the file has.
        self._slots = 0

    @classmethod
    def create(cls, directory: Path, name: str, max_bytes: int, slot_bytes: int = SLOT_BYTES) -> Self:
        """Creates a file that only this user can read, and locks it."""
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        path = directory / f"{name[:_NAME_CHARACTERS]}-{secrets.token_hex(4)}{SUFFIX}"
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        return cls(path, descriptor, max_bytes, slot_bytes)

    @classmethod
    def open(cls, path: Path, max_bytes: int) -> tuple[Self, dict[str, Any]]:
        """Opens and locks a file that a process left behind. Returns it and its state. Raises :class:`SpoolError`."""
        with contextlib.ExitStack() as undo:
            try:
                descriptor = os.open(path, os.O_RDWR)
                undo.callback(os.close, descriptor)
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                found = records.unpack_state(os.pread(descriptor, records.SLOTS_AT, 0))
            except BlockingIOError:
                raise SpoolError(f"{path} is still being written: its runner lives") from None
            except OSError as error:
                raise SpoolError(f"{path} cannot be opened: {error.strerror}") from error
            if found is None:
                raise SpoolError(f"{path} is not a spool file, or nothing was ever written to it")
            try:
                state, generation = _checked(found[0]), found[1]
            except ValueError as error:
                raise SpoolError(f"{path} is damaged: its {error} cannot be right") from None
            slots = max(0, -(-(os.fstat(descriptor).st_size - records.SLOTS_AT) // state["slot_bytes"]))
            if slots > MAX_SLOTS:
                raise SpoolError(f"{path} is damaged: it is longer than a spool file can be")
            undo.pop_all()
        file = cls(path, descriptor, max_bytes, state["slot_bytes"], generation)
        file._slots = slots
        return file, state

    def write_state(self, state: dict[str, Any]) -> None:
        """Writes the state over the older of its two copies, so that one copy is always complete."""
        at, packed = records.pack_state({**state, "slot_bytes": self.slot_bytes}, self._generation + 1)
        self._write(packed, at)
        self._generation += 1

    def allocate(self) -> int | None:
        """A slot to write to. None if the file is as large as it may be, or the disk was full a moment ago."""
        if self._failed and self._monotonic() >= self._grow_at:
            self._free += self._failed
            self._failed = []
        if self._free:
            return self._free.pop()
        if self._slots >= self.max_slots or self._monotonic() < self._grow_at:
            return None
        self._slots += 1
        return self._slots - 1

    def free(self, slot: int) -> None:
        """Marks the slot as unused."""
        self._free.append(slot)
        # If the mark cannot be written, the lines may be sent again. The store skips lines that it has.
        with contextlib.suppress(OSError):
            self._write(b"\0" * 8, self._at(slot))

    def report_full(self, slot: int | None = None) -> None:
        """The disk was full, perhaps when ``slot`` was written. The file does not grow for a while."""
        self._grow_at = self._monotonic() + FULL_SECONDS
        if slot is not None:
            self._failed.append(slot)

    def write_head(self, slot: int, head: records.SlotHead) -> None:
        """Writes the slot's header and drop marker. Its records stay as they are."""
        self._write(records.pack_slot(head), self._at(slot))

    def write(self, slot: int, at: int, *parts: bytes | bytearray) -> None:
        """Writes records at position ``at`` of the slot's records."""
        offset = self._at(slot) + records.SLOT_HEAD_BYTES + at
        written = os.pwritev(self._descriptor, parts, offset)
        if written != sum(map(len, parts)):
            raise OSError("the disk is full")

    def read(self, slot: int, at: int, length: int) -> bytes:
        """Reads the slot's records from position ``at`` on."""
        return os.pread(self._descriptor, length, self._at(slot) + records.SLOT_HEAD_BYTES + at)

    def recover(self) -> Iterator[tuple[int, records.SlotHead, bytes]]:
        """Every slot in use, in order of writing, with its header and the bytes of its records. Frees the others."""
        used: list[tuple[records.SlotHead, int]] = []
        for slot in range(self._slots):
            head = records.unpack_slot(os.pread(self._descriptor, records.SLOT_HEAD_BYTES, self._at(slot)))
            if head is None:
                self._free.append(slot)
            else:
                used.append((head, slot))
        for head, slot in sorted(used, key=lambda each: each[0].order):
            yield slot, head, self.read(slot, 0, self.slot_bytes - records.SLOT_HEAD_BYTES)

    def sync(self) -> None:
        """Forces the file to the disk."""
        os.fsync(self._descriptor)

    def close(self) -> None:
        """Closes the file, which stays on the disk and can be resent."""
        os.close(self._descriptor)

    def delete(self) -> None:
        """Removes the file from the disk, and closes it."""
        with contextlib.suppress(OSError):
            self.path.unlink()
        os.close(self._descriptor)

    def _at(self, slot: int) -> int:
        return records.SLOTS_AT + slot * self.slot_bytes

    def _write(self, data: bytes, at: int) -> None:
        if os.pwrite(self._descriptor, data, at) != len(data):
            raise OSError("the disk is full")


def _checked(state: dict[str, Any]) -> dict[str, Any]:
    """The values of a file's state that a runner can have written; others are left out.

    Raises ValueError, with the name of the value that is impossible.
    """
    found = {}
    for name, is_valid in _STATE.items():
        if name in state:
            if not is_valid(state[name]):
                raise ValueError(name)
            found[name] = state[name]
    if "slot_bytes" not in found:
        raise ValueError("slot_bytes")
    return found


def _is_text(value: object, pattern: re.Pattern[str]) -> bool:
    return isinstance(value, str) and pattern.fullmatch(value) is not None


def _is_integer(value: object, least: int, most: int) -> bool:
    return type(value) is int and least <= value <= most


def _is_ending(value: object) -> bool:
    if not isinstance(value, list) or len(value) != 2:
        return False
    status, code = value
    known = isinstance(status, str) and status in Status.__members__ and Status(status).terminal
    return known and (code is None or _is_integer(code, -MAX_EXIT_CODE, MAX_EXIT_CODE))


#: The values that a file's state may have, and a check for each.
_STATE: Final[Mapping[str, Callable[[Any], bool]]] = {
    "workflow": lambda value: _is_text(value, IDENTIFIER),
    "job": lambda value: _is_text(value, IDENTIFIER),
    "token": lambda value: _is_text(value, _TOKEN),
    "base": lambda value: _is_integer(value, -MAX_NUMBER, MAX_NUMBER),
    "attempt": lambda value: _is_integer(value, 0, MAX_NUMBER),
    "dropped": lambda value: _is_integer(value, 0, MAX_NUMBER),
    "printed": lambda value: _is_integer(value, 0, MAX_NUMBER),
    "ending": _is_ending,
    "slot_bytes": lambda value: _is_integer(value, _MIN_SLOT_BYTES, SLOT_BYTES),
}


def orphaned_spools(directory: Path) -> list[Path]:
    """Spool files that no process has open, oldest first."""
    found = []
    # Only regular files: opening a pipe that has such a name could block for ever.
    for path in filter(Path.is_file, directory.glob(f"*{SUFFIX}")):
        with contextlib.suppress(OSError), path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            found.append((path.stat().st_mtime, path))
    return [path for _, path in sorted(found)]


def read_state(path: Path) -> dict[str, Any] | None:
    """The state of a spool file; None if the file cannot be read or is not a spool file."""
    try:
        with path.open("rb") as file:
            found = records.unpack_state(file.read(records.SLOTS_AT))
    except OSError:
        return None
    return found[0] if found else None
