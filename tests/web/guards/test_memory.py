"""Dividing a limited amount between subjects."""

import contextlib
import itertools
from types import SimpleNamespace

import pytest
from flask import Flask, g, request

from chronoverse.errors import AtCapacity, ShareExceeded
from chronoverse.history.pages import PAGE_BYTES
from chronoverse.web.guards.memory import SHORT_BODY_BYTES, BodyMemory, Shares, UnreadAnswers, bound_unread_answers


def test_one_subject_can_hold_half() -> None:
    """A subject that is alone gets half of the total and not more."""
    shares = Shares(100, "tests")
    for _ in range(5):
        shares.take("a", 10)

    with pytest.raises(ShareExceeded, match="this token has used its share of tests"):
        shares.take("a", 10)


def test_a_new_subject_gets_a_share_despite_greedy_ones() -> None:
    """A subject that takes all that it can leaves enough for others."""
    shares = Shares(120, "tests")
    for subject, amount in (("a", 60), ("b", 30), ("c", 15)):
        shares.take(subject, amount)
        with pytest.raises(ShareExceeded):
            shares.take(subject, 1)

    shares.take("d", 7)


def test_an_amount_that_does_not_fit_is_not_the_fault_of_its_subject() -> None:
    """A subject that holds nothing gets another error than one that has used its share."""
    shares = Shares(10, "tests")
    shares.take("a", 5)

    with pytest.raises(AtCapacity, match="this worker has no room"):
        shares.take("b", 4)


def test_an_amount_that_was_returned_can_be_taken_again() -> None:
    """That holds for its subject and for others."""
    shares = Shares(10, "tests")
    for subject in ("a", "a", "b"):
        shares.take(subject, 5)
        with pytest.raises(ShareExceeded):
            shares.take(subject, 1)
        shares.give_back(subject, 5)


def test_an_amount_of_zero_always_fits() -> None:
    """Also for a subject that holds more than what others have left free."""
    shares = Shares(100, "tests")
    shares.take("a", 50)
    shares.take("b", 25)

    shares.take("a", 0)


@pytest.mark.parametrize("size", [SHORT_BODY_BYTES, 50_000, 1_000_000])
def test_bodies_that_are_refused_midway_give_back_what_they_took(size: int) -> None:
    """Otherwise each refusal would leave their subject more room."""
    memory = BodyMemory(100_000)

    def count_parts() -> int:
        """Takes quarters of bodies until one is refused."""
        with contextlib.ExitStack() as bodies:
            for body in itertools.count():
                take = bodies.enter_context(memory.hold("a"))
                for part in range(4):
                    try:
                        take(size // 4)
                    except ShareExceeded:
                        return 4 * body + part
        raise AssertionError

    first = count_parts()
    assert first > 1
    assert [count_parts(), count_parts()] == [first, first]


def test_an_answer_counts_until_it_is_closed() -> None:
    """A refused one does not, nor one that is short, for HEAD, or for nobody. All of it is given back."""
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
    for path in (f"/{64 * 2**10}?as=a", f"/{half}"):
        assert client.get(path).status_code == 200
    assert client.head(f"/{half}?as=a").status_code == 200
    held.append(client.get(f"/{2 * PAGE_BYTES}?as=b", buffered=False))
    assert client.get(f"/{2 * PAGE_BYTES}?as=c").status_code == 503
    for each in held:
        each.close()
    assert not shares._held
    assert client.get(f"/{half}?as=a").status_code == 200
