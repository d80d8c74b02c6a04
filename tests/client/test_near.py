"""Suggestions for ids that were not found."""

import pytest

from chronoverse.client.client import Client
from chronoverse.client.near import explain_not_found, near_ids
from tests.support.scripted import ScriptedService, answer, problem


@pytest.mark.parametrize(
    ("wanted", "ids", "near"),
    [
        ("build-999", ["build-105", "test-1", "build-104"], ["build-105", "build-104"]),
        ("buidl-105", ["build-104", "build-105"], ["build-105", "build-104"]),
        ("Shop-CI", ["shop-ci", "shop-cd"], ["shop-ci", "shop-cd"]),
        ("105", ["build-105", "build-106"], ["build-105"]),
        ("nightly", ["build-105", "x"], []),
        ("a", ["a", "ab", "ac", "ad", "ae"], ["ab", "ac", "ad"]),
    ],
)
def test_near_ids(wanted: str, ids: list[str], near: list[str]) -> None:
    """Closest first; ties go to the newest."""
    assert near_ids(wanted, ids) == near


def test_a_service_that_does_not_answer_has_no_near_ids() -> None:
    """The message then does not say whether the workflow exists."""
    with ScriptedService(problem("403 Forbidden", "no")) as service:
        sentence = explain_not_found(Client(service.url), "wf_1", "job_1")
    assert sentence == "wf_1/job_1: not found, or no access"


def test_a_job_that_is_not_there() -> None:
    """Suggests the newest jobs of its workflow."""
    with ScriptedService(answer("200 OK", b'{"jobs":[{"id":"build-7"}],"cursor":null}')) as service:
        sentence = explain_not_found(Client(service.url), "wf_1", "build-8")
    assert sentence == "no job build-8 in wf_1: did you mean build-7?"


def test_a_line_that_is_not_there() -> None:
    """The job exists, but not the line: there are no suggestions."""
    with ScriptedService(answer("200 OK", b'{"jobs":[{"id":"build-7"},{"id":"build-8"}],"cursor":null}')) as service:
        sentence = explain_not_found(Client(service.url), "wf_1", "build-8")
    assert sentence == "build-8 of wf_1 has no such line"
