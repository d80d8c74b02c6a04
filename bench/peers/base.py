"""What every side of a comparison is to the bench: where to watch it, how to publish to it, what it runs on."""

import contextlib
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Self

from bench.load import Target
from bench.machine import children
from bench.processes import folder
from bench.produce import Sink
from bench.reference import Grammar


@dataclass
class Pids:
    """The processes that do a peer's work: those that serve, and the store behind them."""

    workers: list[int] = field(default_factory=list)
    store: list[int] = field(default_factory=list)

    @property
    def all(self) -> list[int]:
        """Both."""
        return [*self.workers, *self.store]


class Peer(ABC):
    """One server, started anew for every round: ``with Peer(workers=1) as peer``."""

    #: How it is called in tables, and a sentence on what it is.
    name: ClassVar[str]
    about: ClassVar[str]
    grammar: ClassVar[Grammar]
    #: Whether the response begins before the first line. Otherwise :meth:`watched` counts the viewers.
    answers: ClassVar[bool] = True

    def __init__(self, workers: int = 1) -> None:
        self.workers = workers
        self.pids = Pids()
        self.folder = Path()
        self._stack = contextlib.ExitStack()

    @classmethod
    @abstractmethod
    def missing(cls) -> str:
        """Why it cannot be run here; empty when it can."""

    @abstractmethod
    def start(self, stack: contextlib.ExitStack) -> None:
        """Starts it in :attr:`folder`; ``stack`` will end it."""

    @abstractmethod
    def target(self, job: int) -> Target:
        """Where a job is watched from its first line on."""

    @abstractmethod
    def sink(self) -> Sink:
        """A way in that another process can be given."""

    @abstractmethod
    def versions(self) -> dict[str, str]:
        """What it is made of."""

    def resume(self, after: int) -> list[str]:
        """Headers of viewers that have seen line ``after`` of job 0 and come back."""
        return [f"Last-Event-ID: {after}\r\n"]

    def watched(self) -> int:
        """Viewers that have arrived, for a server whose response does not tell."""
        return 0

    def store_connections(self) -> int:
        """Connections that the workers have to the store; 0 where there is none."""
        return 0

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as stack:
            self.folder = stack.enter_context(folder())
            self.start(stack)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *exception: object) -> None:
        self._stack.close()


def workers_of(master: int, count: int) -> list[int]:
    """The worker processes under a master, as soon as there are ``count``; else those there are."""
    return children(master)[:count]
