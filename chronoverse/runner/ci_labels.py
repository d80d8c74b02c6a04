"""The labels that a run gets from what CI systems put into the environment: ``commit``, ``branch`` and ``url``."""

import re
from collections.abc import Mapping
from typing import Final, NamedTuple

from chronoverse.joblog.labels import MAX_LABELS, read_labels


class CiSystem(NamedTuple):
    """A CI system: the variable that shows it, with its value if that matters, and what its labels are made of.

    Of several texts the first one counts whose variables are all set.
    """

    shown_by: str
    commit: tuple[str, ...]
    branch: tuple[str, ...]
    url: tuple[str, ...]


#: Each system, with the page that documents its variables. Of a pull request the branch is the one that it comes from.
SYSTEMS: Final = (
    # https://docs.github.com/en/actions/reference/workflows-and-actions/variables
    CiSystem(
        "GITHUB_ACTIONS=true",
        ("$GITHUB_SHA",),
        ("$GITHUB_HEAD_REF", "$GITHUB_REF_NAME"),
        ("$GITHUB_SERVER_URL/$GITHUB_REPOSITORY/actions/runs/$GITHUB_RUN_ID",),
    ),
    # https://docs.gitlab.com/ci/variables/predefined_variables/
    CiSystem(
        "GITLAB_CI",
        ("$CI_COMMIT_SHA",),
        ("$CI_MERGE_REQUEST_SOURCE_BRANCH_NAME", "$CI_COMMIT_BRANCH", "$CI_COMMIT_REF_NAME"),
        ("$CI_JOB_URL",),
    ),
    # https://buildkite.com/docs/pipelines/configure/environment-variables
    CiSystem(
        "BUILDKITE",
        ("$BUILDKITE_COMMIT",),
        ("$BUILDKITE_BRANCH",),
        ("$BUILDKITE_BUILD_URL#$BUILDKITE_JOB_ID", "$BUILDKITE_BUILD_URL"),
    ),
    # https://www.jenkins.io/doc/book/pipeline/jenkinsfile/#using-environment-variables and
    # https://plugins.jenkins.io/git/#plugin-content-environment-variables
    CiSystem(
        "JENKINS_URL",
        ("$GIT_COMMIT",),
        ("$CHANGE_BRANCH", "$BRANCH_NAME", "$GIT_LOCAL_BRANCH", "$GIT_BRANCH"),
        ("$BUILD_URL",),
    ),
    # https://circleci.com/docs/reference/variables/
    CiSystem("CIRCLECI", ("$CIRCLE_SHA1",), ("$CIRCLE_BRANCH",), ("$CIRCLE_BUILD_URL",)),
    # https://woodpecker-ci.org/docs/usage/environment
    CiSystem(
        "CI=woodpecker",
        ("$CI_COMMIT_SHA",),
        ("$CI_COMMIT_SOURCE_BRANCH", "$CI_COMMIT_BRANCH"),
        ("$CI_STEP_URL", "$CI_PIPELINE_URL"),
    ),
)


def add_ci_labels(given: Mapping[str, str], environ: Mapping[str, str]) -> Mapping[str, str]:
    """The labels ``given``, and those of the first system that ``environ`` shows, as far as there is room.

    A value that cannot be a label's is left out.
    """
    labels = dict(given)
    for system in SYSTEMS:
        name, equals, value = system.shown_by.partition("=")
        if environ.get(name) and (not equals or environ[name] == value):
            texts = {"commit": system.commit, "branch": system.branch, "url": system.url}
            for key, text in read_labels({key: _first(choices, environ) for key, choices in texts.items()}):
                if len(labels) < MAX_LABELS:
                    labels.setdefault(key, text)
            break
    return labels


def _first(choices: tuple[str, ...], environ: Mapping[str, str]) -> str | None:
    for text in choices:
        names = re.findall(r"\$([A-Z0-9_]+)", text)
        if all(environ.get(name) for name in names):
            return re.sub(r"\$([A-Z0-9_]+)", lambda found: environ[found[1]], text)
    return None
