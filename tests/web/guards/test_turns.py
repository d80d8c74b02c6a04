"""A worker's turns: separate per server, checked for room again after waiting, and for every path of a stream."""

import threading
from contextlib import ExitStack
from operator import attrgetter
from pathlib import Path
from typing import Final

import pytest

from chronoverse.history.pages import PAGE_BYTES
from chronoverse.joblog.model import JobRef
from chronoverse.settings import Settings
from chronoverse.web.app import create_app
from chronoverse.web.guards.memory import UnreadAnswers
from chronoverse.web.guards.turns import DOWNLOAD_WAIT_SECONDS, WAIT_SECONDS, Turns
from tests.support.service import SECRET
from tests.support.waiting import wait_until

A: Final = JobRef("a", "job_1")
B: Final = JobRef("b", "job_1")


KINDS: Final = ("page", "scan", "read", "download")


@pytest.mark.parametrize("kind", KINDS)
def test_a_server_whose_turns_are_taken_delays_no_other(kind: str) -> None:
    """Nor work of other kinds on the same server."""
    turns = Turns(attrgetter("workflow_id"), UnreadAnswers())
    with ExitStack() as held:
        for number in range(12 if kind in ("page", "scan") else 2):
            held.enter_context(getattr(turns, kind)(A, f"subject {number}"))
        # Would raise AtCapacity if one had to wait.
        for other, ref in [(kind, B), *((each, A) for each in KINDS if each != kind)]:
            with getattr(turns, other)(ref, "another"):
                pass


@pytest.mark.parametrize("kind", KINDS)
def test_subjects_take_turns(kind: str) -> None:
    """Whichever jobs they ask for: a subject's second request waits for another subject's first one.

    A download has begun: it waits longer, because it could only be cut off.
    """
    turns, order, threads = Turns(attrgetter("workflow_id"), UnreadAnswers()), list[str](), list[threading.Thread]()

    def ask(subject: str, number: int) -> None:
        with getattr(turns, kind)(JobRef("a", f"job_{number}"), subject):
            order.append(subject)

    with ExitStack() as held:
        for number in range(11 if kind in ("page", "scan") else 1):
            held.enter_context(getattr(turns, kind)(A, f"subject {number}"))
        with getattr(turns, kind)(A, "the last"):
            for number, subject in enumerate("aaab"):
                threads.append(threading.Thread(target=ask, args=(subject, number)))
                threads[-1].start()
                waiting = getattr(turns, f"_{kind}s")["a"]
                wait_until(lambda: waiting.waiting == len(threads), 60, "it waits for its turn")  # noqa: B023
            assert waiting.seconds == (DOWNLOAD_WAIT_SECONDS if kind == "download" else WAIT_SECONDS)
        for thread in threads:
            thread.join(60)
    assert order == [*"abaa"]


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


PREFLIGHT: Final = {"Origin": "https://a.example", "Access-Control-Request-Method": "GET"}


def test_whatever_a_streams_path_gets_waits_for_a_turn(tmp_path: Path) -> None:
    """The worker lets all of them pass without one. Refusals, too, would delay live lines: 400 took 0.7 s."""
    settings = Settings(data_dir=tmp_path, redis_url="unix:///none", jwt_secret=SECRET, cors_origins=("https://b",))
    app = create_app(settings)
    turns, client = app.extensions["chronoverse"].turns, app.test_client()
    turns.viewer.seconds = 0.01
    requests: tuple[tuple[str, str, dict[str, str]], ...] = (
        ("GET", "/workflows/w/jobs/j/events", {}),
        ("GET", "/workflows/w/events", {}),
        ("POST", "/workflows/w/jobs/j/events", {}),
        ("GET", "/nothing/events", {}),
        ("GET", "/nothing/events", {"Host": "in valid"}),
        ("OPTIONS", "/nothing/events", PREFLIGHT),
    )
    for method, path, headers in requests:
        with turns.viewer.hold():
            refusal = client.open(path, method=method, headers=headers)
        assert (path, refusal.status_code) == (path, 503)
        assert refusal.get_json()["request_id"] == refusal.headers["X-Request-ID"]
        assert client.open(path, method=method, headers=headers).status_code != 503
