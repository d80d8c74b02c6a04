"""A worker's turns: separate per server, and checked for room again after waiting."""

import threading
from contextlib import ExitStack
from operator import attrgetter
from typing import Final

import pytest

from chronoverse.history.pages import PAGE_BYTES
from chronoverse.joblog.model import JobRef
from chronoverse.web.guards.memory import UnreadAnswers
from chronoverse.web.guards.turns import Turns
from tests.support.waiting import wait_until

A: Final = JobRef("a", "job_1")
B: Final = JobRef("b", "job_1")


@pytest.mark.parametrize("kind", ["page", "scan", "read", "download"])
def test_a_server_whose_turns_are_taken_delays_no_other(kind: str) -> None:
    turns = Turns(attrgetter("workflow_id"), UnreadAnswers())
    with ExitStack() as held:
        for number in range(12 if kind in ("page", "scan") else 2):
            held.enter_context(getattr(turns, kind)(A, f"subject {number}"))
        # Would raise AtCapacity if it had to wait.
        with getattr(turns, kind)(B, "another"):
            pass


def test_a_page_checks_for_room_again_after_waiting_for_its_turn() -> None:
    """Another request of the same subject can have used the room meanwhile."""
    turns, had_room = Turns(attrgetter("workflow_id"), UnreadAnswers()), list[bool]()

    def ask() -> None:
        with turns.page(A, "s"):
            had_room.append(turns.unread.has_room("s"))

    thread = threading.Thread(target=ask)
    with turns.page(A, "s"), turns.page(A, "s"):
        thread.start()
        wait_until(lambda: turns._pages["a"].waiting == 1, 60, "it waits for its turn")
        turns.unread.take("s", 4 * PAGE_BYTES)
    # Without a second check, the thread would end immediately.
    thread.join(0.3)
    turns.unread.give_back("s", 4 * PAGE_BYTES)
    thread.join(60)
    assert had_room == [True]
