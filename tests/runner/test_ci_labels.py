"""A run's labels in each CI system, from its documented variables."""

import pytest

from chronoverse.runner.ci_labels import add_ci_labels

SHA = "4f0c1de2b3a4958677685948392a1b0c9d8e7f60"
BUILDKITE = "BUILDKITE_JOB_ID=e4f9"
GITHUB = "GITHUB_SERVER_URL=https://github.com GITHUB_REPOSITORY=octo/repo GITHUB_RUN_ID=1658821493"
#: Each system's variables for a push, the changes for a pull request, and the URL that becomes a label.
PUSHES = {
    "github": (
        f"GITHUB_ACTIONS=true GITHUB_SHA={SHA} GITHUB_HEAD_REF= GITHUB_REF_NAME=main {GITHUB}",
        "GITHUB_REF_NAME=7/merge GITHUB_HEAD_REF=topic",
        "https://github.com/octo/repo/actions/runs/1658821493",
    ),
    "gitlab": (
        f"GITLAB_CI=true CI_COMMIT_SHA={SHA} CI_COMMIT_BRANCH=main CI_COMMIT_REF_NAME=main CI_JOB_URL=https://ci/9",
        "CI_COMMIT_BRANCH= CI_MERGE_REQUEST_SOURCE_BRANCH_NAME=topic",
        "https://ci/9",
    ),
    "buildkite": (
        f"BUILDKITE=true BUILDKITE_COMMIT={SHA} BUILDKITE_BRANCH=main BUILDKITE_BUILD_URL=https://ci/4 {BUILDKITE}",
        "BUILDKITE_BRANCH=topic",
        "https://ci/4#e4f9",
    ),
    "jenkins": (
        f"JENKINS_URL=https://ci/ GIT_COMMIT={SHA} GIT_BRANCH=origin/main BRANCH_NAME=main BUILD_URL=https://ci/12/",
        "BRANCH_NAME=PR-7 CHANGE_BRANCH=topic",
        "https://ci/12/",
    ),
    "jenkins, one branch": (
        f"JENKINS_URL=https://ci/ GIT_COMMIT={SHA} GIT_BRANCH=origin/main BUILD_URL=https://ci/12/",
        "GIT_BRANCH=origin/topic",
        "https://ci/12/",
    ),
    "circleci": (
        f"CIRCLECI=true CIRCLE_SHA1={SHA} CIRCLE_BRANCH=main CIRCLE_BUILD_URL=https://ci/42",
        "CIRCLE_BRANCH=topic",
        "https://ci/42",
    ),
    "woodpecker": (
        f"CI=woodpecker CI_COMMIT_SHA={SHA} CI_COMMIT_BRANCH=main CI_PIPELINE_URL=https://ci/8",
        "CI_COMMIT_SOURCE_BRANCH=topic",
        "https://ci/8",
    ),
}


def variables(text: str) -> dict[str, str]:
    return dict(each.split("=", 1) for each in ("CI=true " + text).split())


@pytest.mark.parametrize("system", PUSHES)
def test_each_system_gives_commit_branch_and_url(system: str) -> None:
    push, changes, url = PUSHES[system]
    assert add_ci_labels({}, variables(push)) == {"branch": "main", "commit": SHA, "url": url}
    assert add_ci_labels({}, variables(f"{push} {changes}")) == {"branch": "topic", "commit": SHA, "url": url}


def test_given_labels_take_precedence_and_invalid_values_are_omitted() -> None:
    push = variables(PUSHES["circleci"][0])
    assert add_ci_labels({"branch": "mine"}, push)["branch"] == "mine"
    full = {f"k{number}": "v" for number in range(15)}
    assert add_ci_labels(full, push) == {**full, "branch": "main"}
    push |= {"CIRCLE_BRANCH": "a\x1b[31m", "CIRCLE_BUILD_URL": "https://" + "x" * 256}
    assert add_ci_labels({}, push) == {"commit": SHA}


def test_without_a_ci_system_there_are_no_labels() -> None:
    # On a developer's machine, such variables can be left over.
    assert add_ci_labels({"a": "b"}, {"CI": "true", "GIT_COMMIT": SHA, "CI_COMMIT_SHA": SHA}) == {"a": "b"}
    assert add_ci_labels({}, {"GITHUB_ACTIONS": "false", "GITHUB_SHA": SHA}) == {}
