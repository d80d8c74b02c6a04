"""A process's memory, and how much a function leaves allocated."""

import multiprocessing
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path


def resident_bytes(pid: int | str = "self") -> int:
    """The resident memory of a process, by default this one."""
    return _status_bytes(pid, "VmRSS")


def peak_bytes(pid: int | str) -> int:
    """The maximum of a process's resident memory since its start, or since :func:`reset_peak`."""
    return _status_bytes(pid, "VmHWM")


def reset_peak(pid: int) -> None:
    """https://man7.org/linux/man-pages/man5/proc_pid_clear_refs.5.html"""
    Path(f"/proc/{pid}/clear_refs").write_text("5")


def _status_bytes(pid: int | str, name: str) -> int:
    return int(Path(f"/proc/{pid}/status").read_text().partition(f"{name}:")[2].split()[0]) * 1024


def bytes_left_by(work: Callable[[], object]) -> int:
    """How much a new process grows by calling ``work``, a function of a module.

    In this process, it could reuse memory that earlier code has freed.
    """
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as new_process:
        return new_process.submit(_growth, work).result(60)


def _growth(work: Callable[[], object]) -> int:
    before = resident_bytes()
    work()
    return resident_bytes() - before
