"""The file that gives rights to groups: its content, its errors, and reloads."""

import logging
import os
from pathlib import Path
from typing import Any, Final

import jwt
import pytest

from chronoverse.auth.rights import ADMIN, READ, WRITE, Workflows, rights_by
from chronoverse.auth.tokens import Principal, Verifier
from chronoverse.auth.toml_file import MAX_FILE_BYTES, TomlFile
from chronoverse.cli.serve import service_settings
from chronoverse.errors import Forbidden, JobNotFound, RightsUnavailable, SettingsError, Unauthorized
from chronoverse.settings import Settings
from tests.support.waiting import wait_until

SECRET: Final = b"a secret of at least 32 bytes for HS256"
NOW: Final = 1_800_000_000.0
GROUPS: Final = """
[developers]
workflows = ["team-a.*", "shared"]
scopes = ["logs:read"]

# The group of the build machines.
[6f1f4e8c-3a55-4f7c-9a3c-6a2f0c1f7b1e]
workflows = ["team-b.*"]
scopes = ["logs:write"]

["/platform/on call"]
workflows = ["*"]

[admins]
workflows = ["team-a.*"]
scopes = ["logs:read", "logs:admin"]

[readers]
workflows = ["team-c.*"]
scopes = ["logs:read"]
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "groups.toml"
    path.write_text(GROUPS)
    return path


def settings(path: Path) -> Settings:
    return Settings(
        data_dir=path.parent, jwt_secret=SECRET, jwt_workflows_claim="groups", jwt_workflows_map=path, redis_url="x"
    )


def principal(path: Path, groups: Any, **claims: Any) -> Principal:
    """The principal of a token with these groups."""
    token = jwt.encode({"sub": "ada", "exp": NOW + 60, "groups": groups, **claims}, SECRET)
    return Verifier(settings(path)).verify(f"Bearer {token}", NOW)


def workflows_map(path: Path) -> TomlFile[Any]:
    """The file, as read by a service."""
    groups = Verifier(settings(path)).groups
    assert groups is not None
    return groups


def developers(groups: TomlFile[Any]) -> dict[str, Workflows]:
    """The rights of the group ``developers``."""
    return rights_by(groups.check(), {"groups": ["developers"]}, ())


def test_each_group_gives_its_scopes_for_its_own_workflows(path: Path) -> None:
    """A group's scopes do not apply to other groups' workflows. Workflows of groups with the same scope are joined."""
    groups = ["developers", "6f1f4e8c-3a55-4f7c-9a3c-6a2f0c1f7b1e", "admins", "unknown", "readers"]
    for ordered in (groups, groups[::-1]):
        user = principal(path, ordered)
        assert user.rights.keys() == {READ, WRITE, ADMIN}
        for scope, workflow in ((READ, "team-a.x"), (READ, "shared"), (WRITE, "team-b.x"), (ADMIN, "team-a.x")):
            user.require(scope, workflow)
        user.require(READ, "team-c.x")
        for scope, workflow in ((WRITE, "team-a.x"), (READ, "team-b.x"), (ADMIN, "shared")):
            with pytest.raises(Forbidden, match="for this workflow"):
                user.require(scope, workflow)
        with pytest.raises(JobNotFound):
            user.require(READ, "team-d.x")


@pytest.mark.parametrize("scope", [{"scope": "openid logs:read"}, {"scp": ["logs:read"]}])
def test_a_group_without_scopes_keeps_the_tokens_scopes(path: Path, scope: dict[str, Any]) -> None:
    """For this group only: a token's scopes add nothing to other groups'."""
    user = principal(path, ["/platform/on call"], **scope)
    user.require(READ, "anything")
    with pytest.raises(Forbidden):
        user.require(WRITE, "anything")
    with pytest.raises(Forbidden):
        principal(path, ["developers"], scope=WRITE).require(WRITE, "team-a.x")


@pytest.mark.parametrize("groups", [[], ["unknown"], ["Developers"], ["*"], ["team-a.x"], ["/platform/on call"]])
def test_groups_without_rights_allow_nothing(path: Path, groups: list[str]) -> None:
    """No group name is mistaken for a workflow. The last one's tokens need scopes."""
    with pytest.raises(Forbidden, match="no group of the token"):
        principal(path, groups)


@pytest.mark.parametrize("groups", [None, "developers", {"developers": 1}, ["developers", 7]])
def test_a_claim_that_is_not_a_list_of_groups_is_refused(path: Path, groups: Any) -> None:
    """Issuers can omit the claim, for example if a user has too many groups."""
    with pytest.raises(Unauthorized, match="claim groups is not a list of groups"):
        principal(path, groups)


ERRORS: Final = {
    "": "no group",
    "[a]\n[a]": "line 2",
    "[a": "at end of document",
    "a = 1": "group 'a': is not a table",
    "[a]": "group 'a': workflows is not a list",
    "[a]\nworkflows = 'x'": "group 'a': workflows is not a list",
    "[b]\nworkflows = ['x']\n[a]\nworkflows = ['x', '*-x']": "workflows has '*-x': * is allowed only as the last",
    "[a]\nworkflows = ['a*b']": "has 'a*b': * is allowed only as the last",
    "[a]\nworkflows = ['']": "has '': an entry must not be empty",
    "[a]\nworkflows = [7]": "an entry must be a string",
    "[a]\nworkflows = ['x']\nscopes = ['logs:raed']": "group 'a': scopes must be a list of one or more of logs:read",
    "[a]\nworkflows = ['x']\nscopes = []": "group 'a': scopes must be a list of one or more of logs:read",
    "[a]\nworkflows = ['x']\nscopes = 'logs:read'": "group 'a': scopes must be a list of one or more of logs:read",
    "[a]\nworkflows = ['x']\nscope = ['logs:read']": "group 'a': has 'scope': expected workflows, scopes",
    "[team.a]\nworkflows = ['x']": "group 'team': has 'a': expected workflows, scopes",
    "\xff": "decode",
    "#" * (MAX_FILE_BYTES + 1): "more than 262144 bytes",
    "x = " + "[" * 5_000: "",
}


@pytest.mark.parametrize(("content", "words"), ERRORS.items(), ids=map(str, range(len(ERRORS))))
def test_an_error_in_the_file_is_named(path: Path, content: str, words: str) -> None:
    """With the file, and with the group if it is in one."""
    path.write_bytes(content.encode("latin-1"))

    with pytest.raises(SettingsError) as caught:
        workflows_map(path).read()
    assert f"CHRONOVERSE_JWT_WORKFLOWS_MAP: {path}: " in str(caught.value)
    assert words in str(caught.value)


def test_a_service_does_not_start_with_errors_in_the_file(path: Path) -> None:
    """Nor without the file, nor with its own secret, whose tokens name workflows."""
    environ = {"CHRONOVERSE_DATA_DIR": str(path.parent), "CHRONOVERSE_JWT_WORKFLOWS_MAP": str(path)}
    keyed = {**environ, "CHRONOVERSE_JWT_SECRET": SECRET.decode()}
    assert service_settings(keyed).jwt_workflows_map == path
    with pytest.raises(SettingsError, match="needs the key of an issuer"):
        service_settings(environ)
    path.write_text("[a]")
    with pytest.raises(SettingsError, match="group 'a'"):
        service_settings(keyed)
    path.unlink()
    with pytest.raises(SettingsError, match="No such file"):
        service_settings(keyed)


def test_a_changed_file_is_reloaded_immediately(path: Path) -> None:
    """Even with the same size, or replaced by a rename or by Kubernetes."""
    groups = workflows_map(path)
    assert developers(groups).keys() == {READ}

    path.write_text('[developers]\nworkflows = ["x"]\nscopes = ["logs:write"]')
    assert developers(groups).keys() == {WRITE}
    # Two writes within a tick of the file system's clock look the same.
    other = '[developers]\nworkflows = ["y"]\nscopes = ["logs:write"]'
    wait_until(lambda: path.write_text(other) and developers(groups)[WRITE].ids == {"y"}, 60, "the other workflow")
    draft = path.with_name("draft")
    draft.write_text('[developers]\nworkflows = ["x"]\nscopes = ["logs:admin"]')
    os.replace(draft, path)
    assert developers(groups).keys() == {ADMIN}


@pytest.mark.parametrize("damage", ["[a]", "", None])
def test_a_file_with_errors_changes_nothing(path: Path, caplog: pytest.LogCaptureFixture, damage: str | None) -> None:
    """The error is logged once. Once corrected, the file applies.

    A worker that restarts meanwhile answers 503, so that runners retry.
    """
    groups = workflows_map(path)
    assert groups.refresh()
    if damage is None:
        path.unlink()
    else:
        path.write_text(damage)

    with caplog.at_level(logging.ERROR):
        assert not groups.refresh()
        assert developers(groups).keys() == {READ}
    (record,) = caplog.records
    assert "CHRONOVERSE_JWT_WORKFLOWS_MAP" in record.getMessage()
    assert "the previous content stays in use" in record.getMessage()
    restarted = workflows_map(path)
    with pytest.raises(RightsUnavailable):
        developers(restarted)
    assert "previous" not in caplog.messages[-1]
    path.write_text('[developers]\nworkflows = ["x"]\nscopes = ["logs:write"]')
    assert groups.refresh()
    assert [developers(each).keys() for each in (groups, restarted)] == [{WRITE}] * 2
