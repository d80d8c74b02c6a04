"""The answer to a wait, built from a viewer's frames: its lines, its gaps and the job's state."""

import random
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import orjson
import pytest
from flask import Flask

from chronoverse.joblog.events import error_frame, gap_frame
from chronoverse.joblog.model import Job, JobRef, Line, Status
from chronoverse.live.feed import SLICE_BYTES
from chronoverse.web.routes.wait import LOOK_SECONDS, MAX_GAPS, Wait
from tests.support.bench import JOB, NOW
from tests.support.reading import Clock


class Waiting:
    """A wait whose viewer has these frames, one chunk each, and then ends for ``reason``, if given."""

    def __init__(self, chunks: list[bytes], reason: str, limit: int, *, tail: Job | None, store: Job | None) -> None:
        self.chunks, self.clock = chunks, Clock()
        self.viewer = SimpleNamespace(done=False, reason="", cursor=0, feed=SimpleNamespace(job=None), next=self._next)
        self._reason = reason
        tails = SimpleNamespace(known_job=lambda ref: tail)
        stores = SimpleNamespace(get_job=lambda ref: store)
        deps: Any = SimpleNamespace(monotonic=self.clock, tail=tails, store=stores)
        viewer: Any = self.viewer
        self.wait = Wait(deps, JOB, viewer, limit, with_lines=True)

    def _next(self) -> bytes | None:
        if self.chunks:
            self.viewer.cursor += 1
            return self.chunks.pop(0)
        self.viewer.done, self.viewer.reason = bool(self._reason), self._reason
        return None

    def run(self) -> None:
        while not self.wait.is_over and (frames := self._next()) is not None:
            self.wait.feed(frames)

    def answer(self) -> tuple[int, dict[str, Any]]:
        with Flask("wait").app_context():
            response = self.wait.answer()
        return response.status_code, orjson.loads(response.get_data())


def running(last: int) -> Job:
    return Job(JobRef("wf_1", "job_1"), Status.RUNNING, last=last)


@pytest.mark.parametrize("seed", range(20))
def test_an_answer_contains_the_available_lines(seed: int) -> None:
    """Up to the limits of lines and bytes, but at least one. Gaps are listed, and counted if there are too many.

    The cursor is past each gap of the answer.
    """
    choice = random.Random(seed)
    limit, many = choice.choice([1, 3, 50]), choice.choice([1, 60])
    chunks, lines, gaps = list[bytes](), list[dict[str, Any]](), list[dict[str, Any]]()
    room, is_full, number, cursor = SLICE_BYTES, False, 0, 0
    for _ in range(12):
        frames = b""
        for _ in range(choice.randrange(1, 4)):
            if choice.randrange(3) == 0:
                for _ in range(many):
                    frames += gap_frame(number + 1, number + 2, "lost")
                    number += 2
                    gaps += [{"from": number - 1, "to": number, "reason": "lost"}] if not is_full else []
            number += 1
            line = Line(number, NOW, "x" * choice.choice([3, 3, 90_000, 2 * SLICE_BYTES]), "stdout")
            frames += line.to_frame()
            room -= 0 if is_full else len(line.encode())
            was_full, is_full = is_full, is_full or (bool(lines) and room < 0)
            cursor = cursor if was_full else number - is_full
            lines += [] if is_full else [line.to_json()]
            is_full = is_full or len(lines) == limit
        chunks.append(frames)
    waiting = Waiting(chunks, "", limit, tail=running(number), store=None)
    waiting.run()
    status, body = waiting.answer()
    assert (status, body["outcome"], body["log"], body["logs"]) == (200, "matched", lines[0], lines)
    assert (body.get("gaps", []), body.get("more_gaps", 0)) == (gaps[:MAX_GAPS], max(len(gaps) - MAX_GAPS, 0))
    assert body["cursor"] == (cursor if is_full else waiting.viewer.cursor)


def test_further_lines_are_searched_briefly() -> None:
    chunks = [Line(number, NOW, "x", "stdout").to_frame() for number in range(1, 100)]
    waiting = Waiting(chunks, "", 50, tail=running(99), store=None)
    waiting.run()

    def slow() -> bytes | None:
        waiting.clock.now += LOOK_SECONDS / 4
        return waiting._next()

    waiting.viewer.next = slow
    assert len(waiting.answer()[1]["logs"]) == 1 + 4


@pytest.mark.parametrize(("known", "last"), [(None, 9), (1, 9), (2, 2), (3, 3)])
def test_the_job_in_an_answer_is_not_older_than_its_lines(known: int | None, last: int) -> None:
    """An older state in the tail is not used."""
    frames = [Line(2, NOW, "x", "stdout").to_frame()]
    waiting = Waiting(frames, "", 1, tail=None if known is None else running(known), store=running(9))
    waiting.run()
    assert waiting.answer()[1]["job"]["last_sequence_num"] == last


@pytest.mark.parametrize(
    ("reason", "status", "said"),
    [
        ("end", 200, "ended"),
        ("age", 200, "timeout"),
        ("expired", 401, "why"),
        ("drain", 503, "why"),
        ("error", 503, "why"),
    ],
)
def test_a_wait_without_a_line(reason: str, status: int, said: str) -> None:
    """Its outcome, or an error with the text of the stream's last one."""
    waiting = Waiting([error_frame("why")] if status > 200 else [], reason, 0, tail=None, store=running(4))
    waiting.run()
    found, body = waiting.answer()
    assert (found, body.get("outcome", body.get("detail"))) == (status, said)
    if status == 200:
        assert (body["log"], body["logs"], body["job"]["last_sequence_num"]) == (None, [], 4)
    if reason in ("end", "age", "error"):
        gone = Waiting([], reason, 0, tail=None, store=None)
        gone.run()
        assert gone.answer()[0] == 404


@pytest.mark.parametrize(("limit", "outcome"), [(0, "ended"), (1, "timeout")])
def test_a_slow_search_hides_only_unread_lines(limit: int, outcome: str) -> None:
    """A wait for the end of an ended job does not time out, although its viewer has not passed all lines."""
    waiting = Waiting([], "age", limit, tail=None, store=replace(running(4), status=Status.FAILED))
    waiting.run()
    body = waiting.answer()[1]
    assert (body["outcome"], body["job"]["status"]) == (outcome, "FAILED")
