"""Dividing limited memory among subjects."""

import contextlib
import itertools
import random
from collections import Counter
from types import SimpleNamespace

import pytest
from flask import Flask, g, request

from chronoverse.errors import AtCapacity, ShareExceeded
from chronoverse.history.pages import PAGE_BYTES
from chronoverse.web.guards.memory import SHORT_BODY_BYTES, BodyMemory, Shares, UnreadAnswers, bound_unread_answers


@pytest.mark.parametrize("seed", range(20))
def test_no_subject_holds_more_than_remains_free(seed: int) -> None:
    """Taking nothing always succeeds. A refused amount is not taken. A subject that holds nothing is not blamed."""
    choice, shares, held = random.Random(seed), Shares(24, "tests"), Counter[str]()
    for _ in range(60):
        subject, amount = choice.choice("abc"), choice.randint(-9, 12)
        if amount < 0:
            amount = -min(-amount, held[subject])
            shares.give_back(subject, -amount)
        elif amount and held[subject] + amount > 24 - held.total() - amount:
            assert not shares.fits(subject, amount)
            error, message = (
                (ShareExceeded, "used its share") if held[subject] else (AtCapacity, "has no room for tests")
            )
            with pytest.raises(error, match=message):
                shares.take(subject, amount)
            continue
        else:
            assert shares.fits(subject, amount)
            shares.take(subject, amount)
        held[subject] += amount
    for subject in "abc":
        shares.give_back(subject, held[subject])
    assert shares.fits("a", 12)
    assert not shares.fits("a", 13)


@pytest.mark.parametrize("size", [SHORT_BODY_BYTES, 50_000, 1_000_000, 530_000])
def test_bodies_refused_midway_release_their_memory(size: int) -> None:
    """All of it, and no more: otherwise each refusal would change their subject's share."""
    memory = BodyMemory(100_000)
    short, long = memory._short._held, memory._long._held

    def count_parts() -> int:
        """Takes quarters of bodies until one is refused. Returns the number of quarters taken."""
        with contextlib.ExitStack() as bodies:
            for body in itertools.count():
                take = bodies.enter_context(memory.hold("a"))
                for part in range(4):
                    before, taken = short["a"] + long["a"], short["a"]
                    try:
                        take(size // 4)
                        assert short["a"] - taken == max(min(size // 4, SHORT_BODY_BYTES - part * (size // 4)), 0)
                        assert short["a"] + long["a"] - before == size // 4
                    except ShareExceeded:
                        return 4 * body + part
        raise AssertionError

    first = count_parts()
    assert first > 1
    assert [count_parts(), count_parts()] == [first, first]
    assert not short + long


def test_an_answer_counts_until_it_is_closed() -> None:
    """Not if it is refused, short, unauthenticated, or for HEAD. All of its memory is released."""
    app, shares = Flask("answers"), UnreadAnswers()
    bound_unread_answers(app, shares)

    @app.before_request
    def authenticate() -> None:
        if subject := request.args.get("as"):
            g.principal = SimpleNamespace(subject=subject)

    @app.route("/<int:size>")
    def answer(size: int) -> bytes:
        return b"x" * size

    client, half = app.test_client(), 4 * PAGE_BYTES
    held = [client.get(f"/{half}?as=a", buffered=False)]
    assert (shares.has_room("a"), shares.has_room("b")) == (False, True)
    refused = client.get(f"/{PAGE_BYTES}?as=a")
    assert refused.status_code == 429
    assert "this token has used its share" in refused.text
    for path, status in ((f"/{64 * 2**10}?as=a", 200), (f"/{64 * 2**10 + 1}?as=a", 429), (f"/{half}", 200)):
        assert client.get(path).status_code == status
    assert client.head(f"/{half}?as=a").status_code == 200
    held.append(client.get(f"/{2 * PAGE_BYTES}?as=b", buffered=False))
    assert client.get(f"/{2 * PAGE_BYTES}?as=c").status_code == 503
    held.append(client.get(f"/{PAGE_BYTES}?as=d", buffered=False))
    assert (shares.has_room("c"), shares.has_room("d")) == (True, False)
    for each in held:
        each.close()
    assert not shares._held
    assert client.get(f"/{half}?as=a").status_code == 200
