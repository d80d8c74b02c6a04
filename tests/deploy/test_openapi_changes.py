"""The HTTP interface stays compatible with the last release, except for changes listed in the changelog."""

import copy
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from packaging.version import Version

from chronoverse import __version__
from chronoverse.settings import Settings
from chronoverse.web.app import create_app
from tests.deploy.openapi import breaking_changes
from tests.support.service import ROOT, SECRET

Document = dict[str, Any]


@pytest.fixture(scope="module")
def present(tmp_path_factory: pytest.TempPathFactory) -> Document:
    """The document served by the service."""
    data_dir = tmp_path_factory.mktemp("data")
    settings = Settings(data_dir=data_dir, redis_url=f"unix://{data_dir}/none.sock", jwt_secret=SECRET)
    document: Document = create_app(settings).test_client().get("/openapi.json").get_json()
    return document


def last_release() -> Path:
    """The document of the newest release before this version."""
    documents = sorted((ROOT / "docs" / "openapi").glob("*.json"), key=lambda path: Version(path.stem))
    return [path for path in documents if Version(path.stem) < Version(__version__)][-1]


def test_the_interface_only_adds_to_the_last_releases(present: Document) -> None:
    """Except for the changes under *Breaking* in CHANGELOG.md's newest section, in these words."""
    section = re.split(r"^## ", (ROOT / "CHANGELOG.md").read_text("utf-8"), flags=re.MULTILINE)[1]
    _, _, breaking = section.partition("\n### Breaking\n")
    announced = re.findall(r"^- (.*)", breaking.partition("\n### ")[0], flags=re.MULTILINE)

    assert list(breaking_changes(json.loads(last_release().read_text("utf-8")), present)) == announced


def get(document: Document, path: str) -> Document:
    """The operation that reads this path."""
    operation: Document = document["paths"][path]["get"]
    return operation


PAGES = "/workflows/{workflow_id}/jobs/{job_id}/logs"


def lose_a_path(document: Document) -> None:
    del document["paths"][PAGES]


def lose_a_method(document: Document) -> None:
    del document["paths"][PAGES]["post"]


def lose_a_parameter(document: Document) -> None:
    get(document, PAGES)["parameters"].pop(0)


def demand_a_parameter(document: Document) -> None:
    get(document, PAGES)["parameters"][0]["required"] = True


def lower_a_bound(document: Document) -> None:
    get(document, PAGES)["parameters"][0]["schema"]["maximum"] = 999


def lose_a_choice(document: Document) -> None:
    get(document, PAGES)["parameters"][1]["schema"]["enum"] = ["asc"]


def lose_a_member_of_an_answer(document: Document) -> None:
    del document["components"]["schemas"]["Logs"]["properties"]["logs"]


def change_the_type_of_an_answer(document: Document) -> None:
    document["components"]["schemas"]["Logs"]["properties"]["logs"] = {"type": "string"}


def demand_a_member_of_a_body(document: Document) -> None:
    document["components"]["schemas"]["LinesBody"].setdefault("required", []).append("colour")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lose_a_path, f"GET {PAGES} is gone"),
        (lose_a_method, f"POST {PAGES} is gone"),
        (lose_a_parameter, "parameter limit is gone"),
        (demand_a_parameter, "parameter limit is required"),
        (lower_a_bound, "limit has a narrower maximum"),
        (lose_a_choice, "can no longer be desc"),
        (lose_a_member_of_an_answer, "logs is gone"),
        (change_the_type_of_an_answer, "logs has another type"),
        (demand_a_member_of_a_body, "colour is required"),
    ],
)
def test_breaking_changes_are_found(present: Document, change: Callable[[Document], None], says: str) -> None:
    """In the other direction, each change only adds something, except for types."""
    changed = copy.deepcopy(present)
    change(changed)

    assert any(says in sentence for sentence in breaking_changes(present, changed))
    assert list(breaking_changes(present, present)) == []
    if change is not change_the_type_of_an_answer:
        assert list(breaking_changes(changed, present)) == []
