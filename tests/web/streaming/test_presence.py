"""Presence: every worker knows whether anybody watches live in one of them."""

import mmap
import os
from types import SimpleNamespace
from typing import Any

import gevent
import pytest

from chronoverse.web.streaming.presence import STALE_SECONDS, Presence
from chronoverse.web.worker import Worker


def test_what_one_worker_announces_all_know_for_a_moment() -> None:
    """Here a forked process announces it, and its parent knows it until it is stale."""
    now = [100.0]
    presence = Presence(lambda: now[0], mmap.mmap(-1, mmap.PAGESIZE))
    assert not presence

    child = os.fork()
    if child == 0:  # pragma: no cover
        presence.announce()
        os._exit(0)
    os.waitpid(child, 0)

    assert presence
    now[0] += STALE_SECONDS
    assert not presence
    presence.announce()
    assert presence


@pytest.mark.parametrize("watched", [0, 1])
def test_a_worker_announces_its_live_viewers_with_each_tick(monkeypatch: pytest.MonkeyPatch, watched: int) -> None:
    """It does so while a job is watched live in it, and not otherwise."""
    pauses: list[float] = []
    monkeypatch.setattr(gevent, "sleep", pauses.append)
    monkeypatch.setattr(Worker, "notify", lambda self: None)
    presence = Presence(page=mmap.mmap(-1, mmap.PAGESIZE))
    deps: Any = SimpleNamespace(tail=SimpleNamespace(watched=watched), presence=presence)

    Worker.__new__(Worker)._tick(deps)

    assert bool(presence) is bool(watched)
    assert pauses
