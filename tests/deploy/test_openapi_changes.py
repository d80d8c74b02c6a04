"""The HTTP interface stays compatible with the last release, except for changes listed in the changelog."""

import copy
import json
import re
from collections.abc import Sequence
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


PAGES = "/workflows/{workflow_id}/jobs/{job_id}/logs"
LOGS = ("components", "schemas", "Logs", "properties")
BODY = ("components", "schemas", "LinesBody")
PARAMETERS = ("paths", PAGES, "get", "parameters")


def change(document: Document, path: Sequence[str | int], value: Any) -> None:
    """Replaces what is at ``path``. Extends a list; removes it without ``value``."""
    *above, name = path
    found: Any = document
    for each in above:
        found = found[each]
    if value is None:
        del found[name]
    else:
        found[name] = [*found.get(name, ()), *value] if isinstance(value, list) else value


@pytest.mark.parametrize(
    ("path", "value", "says"),
    [
        (("paths", PAGES), None, f"GET {PAGES} is gone"),
        (("paths", PAGES, "post"), None, f"POST {PAGES} is gone"),
        ((*PARAMETERS, 0), None, "parameter limit is gone"),
        ((*PARAMETERS, 0, "required"), True, "parameter limit is required"),
        ((*PARAMETERS, 0, "schema", "maximum"), 999, "limit has a narrower maximum"),
        ((*PARAMETERS, 1, "schema", "enum", 1), None, "can no longer be desc"),
        ((*LOGS, "logs"), None, "logs is gone"),
        ((*LOGS, "logs"), {"type": "string"}, "logs has another type"),
        ((*BODY, "required"), ["colour"], "colour is required"),
    ],
)
def test_breaking_changes_are_found(present: Document, path: Sequence[str | int], value: Any, says: str) -> None:
    """In the other direction, each change only adds something, except for types."""
    changed = copy.deepcopy(present)
    change(changed, path, value)

    assert any(says in sentence for sentence in breaking_changes(present, changed))
    assert list(breaking_changes(present, present)) == []
    if says != "logs has another type":
        assert list(breaking_changes(changed, present)) == []
