"""A process's memory, and how much a function leaves allocated."""

import multiprocessing
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path


def resident_bytes(pid: int | str = "self") -> int:
    """The resident memory of a process, by default this one."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0]) * 1024


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
