"""The spool's file: slots that are written, read and freed, and who may. Recoverable after a SIGKILL of its writer.

Its name is only for people: which job it belongs to is in its state. While a process has it open it is locked, and
the kernel drops the lock with the process: a file that can be locked is a leftover.
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

#: Bytes of a slot: large enough for the largest block (a read of 256 KiB behind a line of 1 MiB).
SLOT_BYTES: Final = 2 * 1_048_576
#: Bytes that may wait in memory. What is more goes to the file.
MEMORY_BYTES: Final = 8 * SLOT_BYTES
#: Bytes that the file may take, unless told otherwise, and at least: eight slots.
SPOOL_MAX_BYTES: Final = 1_073_741_824
SPOOL_MIN_BYTES: Final = records.SLOTS_AT + 8 * SLOT_BYTES
#: Bytes of lines safe in the store that are kept all the same, for a store that lost what it had called safe.
KEEP_BYTES: Final = 2 * SLOT_BYTES
#: Seconds after a full disk before the file may grow again.
FULL_SECONDS: Final = 2.0
#: Slots of the largest file that can be asked for, 1 TiB: looking through them takes seconds.
MAX_SLOTS: Final = 2**40 // SLOT_BYTES
#: What spool files end with.
SUFFIX: Final = ".spool"
#: The largest exit code of a command, or its negative, that a log can say.
MAX_EXIT_CODE: Final = 999_999_999
#: A slot has room for one record at least.
_MIN_SLOT_BYTES: Final = records.SLOT_HEAD_BYTES + records.RECORD_HEAD_BYTES
_TOKEN: Final = re.compile("[0-9a-f]{32,128}", re.ASCII)
#: Characters of a job's id in its file's name: the longest ids would not fit.
_NAME_CHARACTERS: Final = 64


@dataclass(frozen=True, slots=True)
class SpoolRoom:
    """The bounds, in bytes, and where the file goes; without a ``directory`` there is none."""

    directory: Path | None = None
    name: str = "job"
    memory_bytes: int = MEMORY_BYTES
    file_bytes: int = SPOOL_MAX_BYTES
    keep_bytes: int = KEEP_BYTES
    slot_bytes: int = SLOT_BYTES


class SpoolFile:
    """Up to ``max_bytes`` of slots. Every method may raise OSError: the disk is full, or gone."""

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
        self._free: list[int] = []
        self._failed: list[int] = []
        self._grow_at = 0.0
        self._slots = 0

    @classmethod
    def create(cls, directory: Path, name: str, max_bytes: int, slot_bytes: int = SLOT_BYTES) -> Self:
        """A new file that nobody else can read, locked."""
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        path = directory / f"{name[:_NAME_CHARACTERS]}-{secrets.token_hex(4)}{SUFFIX}"
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        return cls(path, descriptor, max_bytes, slot_bytes)

    @classmethod
    def open(cls, path: Path, max_bytes: int) -> tuple[Self, dict[str, Any]]:
        """A file that somebody left behind, locked, and its state. Raises :class:`SpoolError`."""
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
        """Writes the state beside the last one, so that one of them is always whole."""
        at, packed = records.pack_state({**state, "slot_bytes": self.slot_bytes}, self._generation + 1)
        self._write(packed, at)
        self._generation += 1

    def allocate(self) -> int | None:
        """A slot to write to, or None at the bound and for a while after the disk was full."""
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
        """Lets the slot be used for something else."""
        self._free.append(slot)
        # One that cannot even be marked would be delivered again, which changes nothing.
        with contextlib.suppress(OSError):
            self._write(b"\0" * 8, self._at(slot))

    def report_full(self, slot: int | None = None) -> None:
        """The disk had no room (for ``slot``): the file does not grow for a while."""
        self._grow_at = self._monotonic() + FULL_SECONDS
        if slot is not None:
            self._failed.append(slot)

    def write_head(self, slot: int, head: records.SlotHead) -> None:
        """Writes the slot's header and prelude; its records stay."""
        self._write(records.pack_slot(head), self._at(slot))

    def write(self, slot: int, at: int, *parts: bytes | bytearray) -> None:
        """Writes records at byte ``at`` of the slot's."""
        offset = self._at(slot) + records.SLOT_HEAD_BYTES + at
        written = os.pwritev(self._descriptor, parts, offset)
        if written != sum(map(len, parts)):
            raise OSError("the disk is full")

    def read(self, slot: int, at: int, length: int) -> bytes:
        """Reads the slot's records from byte ``at``."""
        return os.pread(self._descriptor, length, self._at(slot) + records.SLOT_HEAD_BYTES + at)

    def recover(self) -> Iterator[tuple[int, records.SlotHead, bytes]]:
        """Every slot in use, in order of writing, with the room for its records. Frees the others."""
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
        """Has the disk take it."""
        os.fsync(self._descriptor)

    def close(self) -> None:
        """Leaves it behind, for somebody else to deliver."""
        os.close(self._descriptor)

    def delete(self) -> None:
        """It is not needed any more."""
        with contextlib.suppress(OSError):
            self.path.unlink()
        os.close(self._descriptor)

    def _at(self, slot: int) -> int:
        return records.SLOTS_AT + slot * self.slot_bytes

    def _write(self, data: bytes, at: int) -> None:
        if os.pwrite(self._descriptor, data, at) != len(data):
            raise OSError("the disk is full")


def _checked(state: dict[str, Any]) -> dict[str, Any]:
    """What a file says of itself, without what no runner notes there.

    Raises ValueError, with the name of what cannot be right.
    """
    found = {}
    for name, is_right in _STATE.items():
        if name in state:
            if not is_right(state[name]):
                raise ValueError(name)
            found[name] = state[name]
    if "slot_bytes" not in found:
        raise ValueError("slot_bytes")
    return found


def _is_text(value: object, pattern: re.Pattern[str]) -> bool:
    return isinstance(value, str) and pattern.fullmatch(value) is not None


def _is_whole(value: object, least: int, most: int) -> bool:
    return type(value) is int and least <= value <= most


def _is_ending(value: object) -> bool:
    if not isinstance(value, list) or len(value) != 2:
        return False
    status, code = value
    known = isinstance(status, str) and status in Status.__members__ and Status(status).terminal
    return known and (code is None or _is_whole(code, -MAX_EXIT_CODE, MAX_EXIT_CODE))


#: What a file's state may say, and whether it can be right.
_STATE: Final[Mapping[str, Callable[[Any], bool]]] = {
    "workflow": lambda value: _is_text(value, IDENTIFIER),
    "job": lambda value: _is_text(value, IDENTIFIER),
    "token": lambda value: _is_text(value, _TOKEN),
    "base": lambda value: _is_whole(value, -MAX_NUMBER, MAX_NUMBER),
    "attempt": lambda value: _is_whole(value, 0, MAX_NUMBER),
    "dropped": lambda value: _is_whole(value, 0, MAX_NUMBER),
    "printed": lambda value: _is_whole(value, 0, MAX_NUMBER),
    "ending": _is_ending,
    "slot_bytes": lambda value: _is_whole(value, _MIN_SLOT_BYTES, SLOT_BYTES),
}


def orphaned_spools(directory: Path) -> list[Path]:
    """Spool files that no process has open, oldest first."""
    found = []
    # Whatever else has such a name, a pipe, say, might never be opened.
    for path in filter(Path.is_file, directory.glob(f"*{SUFFIX}")):
        with contextlib.suppress(OSError), path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            found.append((path.stat().st_mtime, path))
    return [path for _, path in sorted(found)]


def read_state(path: Path) -> dict[str, Any] | None:
    """What a spool file says of itself, or None."""
    try:
        with path.open("rb") as file:
            found = records.unpack_state(file.read(records.SLOTS_AT))
    except OSError:
        return None
    return found[0] if found else None
