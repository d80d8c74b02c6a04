"""Suggestions for ids that were not found."""

import json

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


def listed(*ids: str) -> bytes:
    return answer("200 OK", json.dumps({"jobs": [{"id": each} for each in ids]}).encode())


@pytest.mark.parametrize(
    ("of_line", "said", "sentence"),
    [
        (False, problem("403 Forbidden", "no"), "wf_1/build-8: not found, or no access"),
        (False, listed("build-7"), "no job build-8 in wf_1: did you mean build-7?"),
        (False, listed("x"), "no job build-8 in wf_1"),
        (False, listed("build-7", "build-8"), "build-8 of wf_1 has only just appeared: try again"),
        (True, listed("build-7", "build-8"), "build-8 of wf_1 has no such line"),
    ],
    ids=["unknown", "near", "none near", "created meanwhile", "a line"],
)
def test_what_is_not_there_is_explained(of_line: bool, said: bytes, sentence: str) -> None:
    """With the newest jobs of its workflow, if the service lists them."""
    with ScriptedService(said) as service:
        assert explain_not_found(Client(service.url), "wf_1", "build-8", of_line=of_line) == sentence


@pytest.mark.parametrize(("path", "more"), [("", ""), ("/", ""), ("/logs", "; is {} the right address?")])
def test_a_wrong_path_of_the_service_can_be_the_reason(path: str, more: str) -> None:
    with ScriptedService(*[problem("404 Not Found", "no")] * 2) as service:
        url = f"{service.url}{path}"
        assert explain_not_found(Client(url), "wf_1") == f"workflow wf_1: not found, or no access{more.format(url)}"
