"""Kernel statistics of this machine and its processes: cores, CPU time, memory."""

import contextlib
import os
import platform
import resource
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple


class Memory(NamedTuple):
    """Kilobytes. ``anon`` is private memory; ``rss`` includes files and shared memory."""

    rss: int
    anon: int


def raise_limits() -> None:
    """Allows this process and its children as many descriptors as possible, and no core dumps."""
    resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def cpu_seconds(pids: Iterable[int]) -> float:
    """The user and system time of all threads of these processes."""
    ticks = 0
    for pid in pids:
        with contextlib.suppress(OSError):
            fields = Path(f"/proc/{pid}/stat").read_text(encoding="latin-1").rpartition(") ")[2].split()
            ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def memory(pids: Iterable[int]) -> Memory:
    rss = anon = 0
    for pid in pids:
        with contextlib.suppress(OSError):
            for line in Path(f"/proc/{pid}/status").read_text(encoding="latin-1").splitlines():
                name, _, value = line.partition(":")
                rss += int(value.split()[0]) if name == "VmRSS" else 0
                anon += int(value.split()[0]) if name == "RssAnon" else 0
    return Memory(rss, anon)


def children(pid: int) -> list[int]:
    with contextlib.suppress(OSError):
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return []


def describe() -> dict[str, Any]:
    """The machine's description for readers of the results."""
    model = ""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                model = line.partition(":")[2].strip()
                break
    memory_mb = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2**20
    return {
        "cores": len(os.sched_getaffinity(0)),
        "cpu": model,
        "memory_mb": memory_mb,
        "kernel": platform.release(),
        "python": platform.python_version(),
    }
