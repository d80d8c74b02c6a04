"""The interface of every side of a comparison: where to watch it, how to publish to it, and its processes."""

import contextlib
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Self

from bench.load import Target
from bench.machine import children
from bench.processes import folder, wait_until
from bench.produce import Sink
from bench.reference import Grammar


@dataclass
class Pids:
    """The processes of a peer: those that serve, and their store."""

    workers: list[int] = field(default_factory=list)
    store: list[int] = field(default_factory=list)


class Peer(ABC):
    """One server, started again for every round: ``with Peer() as peer``."""

    #: Its name in tables, and a sentence that describes it.
    name: ClassVar[str]
    about: ClassVar[str]
    grammar: ClassVar[Grammar]

    def __init__(self) -> None:
        self.pids = Pids()
        self.folder = Path()
        self._stack = contextlib.ExitStack()

    @classmethod
    def missing(cls) -> str:
        """Why it cannot run here; empty if it can."""
        return ""

    @abstractmethod
    def start(self, stack: contextlib.ExitStack) -> None:
        """Starts it in :attr:`folder`. ``stack`` stops it."""

    @abstractmethod
    def target(self, job: int) -> Target:
        """Where to watch a job from its first line on."""

    @abstractmethod
    def sink(self) -> Sink:
        """How to publish to it. Another process may use it."""

    @abstractmethod
    def versions(self) -> dict[str, str]:
        """The versions of its parts."""

    def resume(self, after: int) -> list[str]:
        """Headers of viewers that have line ``after`` of job 0 and reconnect."""
        return [f"Last-Event-ID: {after}\r\n"]

    def store_connections(self) -> int:
        """The number of connections of the workers to the store; 0 without a store."""
        return 0

    def wait_for_worker(self, master: int, *store: int) -> None:
        """Waits for the worker process of a master, and remembers it and the process of the ``store``, if any."""
        wait_until(lambda: bool(children(master)), "the worker does not start")
        self.pids = Pids(children(master)[:1], [*store])

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as stack:
            self.folder = stack.enter_context(folder())
            self.start(stack)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *exception: object) -> None:
        self._stack.close()
