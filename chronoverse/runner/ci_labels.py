"""The labels ``commit``, ``branch`` and ``url``, from environment variables that CI systems set."""

import re
from collections.abc import Mapping
from typing import Final

from chronoverse.joblog.labels import MAX_LABELS, read_labels

#: For each CI system, detected by a variable (with a value if that matters): the sources of its labels. The first
#: source whose variables are all set is used. A pull request's branch is its source branch.
_SYSTEMS: Final[Mapping[str, Mapping[str, tuple[str, ...]]]] = {
    # https://docs.github.com/en/actions/reference/workflows-and-actions/variables
    "GITHUB_ACTIONS=true": {
        "commit": ("$GITHUB_SHA",),
        "branch": ("$GITHUB_HEAD_REF", "$GITHUB_REF_NAME"),
        "url": ("$GITHUB_SERVER_URL/$GITHUB_REPOSITORY/actions/runs/$GITHUB_RUN_ID",),
    },
    # https://docs.gitlab.com/ci/variables/predefined_variables/
    "GITLAB_CI": {
        "commit": ("$CI_COMMIT_SHA",),
        "branch": ("$CI_MERGE_REQUEST_SOURCE_BRANCH_NAME", "$CI_COMMIT_BRANCH", "$CI_COMMIT_REF_NAME"),
        "url": ("$CI_JOB_URL",),
    },
    # https://buildkite.com/docs/pipelines/configure/environment-variables
    "BUILDKITE": {
        "commit": ("$BUILDKITE_COMMIT",),
        "branch": ("$BUILDKITE_BRANCH",),
        "url": ("$BUILDKITE_BUILD_URL#$BUILDKITE_JOB_ID", "$BUILDKITE_BUILD_URL"),
    },
    # https://www.jenkins.io/doc/book/pipeline/jenkinsfile/#using-environment-variables and
    # https://plugins.jenkins.io/git/#plugin-content-environment-variables
    "JENKINS_URL": {
        "commit": ("$GIT_COMMIT",),
        "branch": ("$CHANGE_BRANCH", "$BRANCH_NAME", "$GIT_LOCAL_BRANCH", "$GIT_BRANCH"),
        "url": ("$BUILD_URL",),
    },
    # https://circleci.com/docs/reference/variables/
    "CIRCLECI": {"commit": ("$CIRCLE_SHA1",), "branch": ("$CIRCLE_BRANCH",), "url": ("$CIRCLE_BUILD_URL",)},
    # https://woodpecker-ci.org/docs/usage/environment
    "CI=woodpecker": {
        "commit": ("$CI_COMMIT_SHA",),
        "branch": ("$CI_COMMIT_SOURCE_BRANCH", "$CI_COMMIT_BRANCH"),
        "url": ("$CI_STEP_URL", "$CI_PIPELINE_URL"),
    },
}


def add_ci_labels(given: Mapping[str, str], environ: Mapping[str, str]) -> Mapping[str, str]:
    """``given``, plus the valid labels of the first CI system detected in ``environ``, as many as fit."""
    labels = dict(given)
    for shown_by, texts in _SYSTEMS.items():
        name, equals, value = shown_by.partition("=")
        if environ.get(name) and (not equals or environ[name] == value):
            for key, text in read_labels({key: _first(choices, environ) for key, choices in texts.items()}):
                if len(labels) < MAX_LABELS:
                    labels.setdefault(key, text)
            break
    return labels


def _first(choices: tuple[str, ...], environ: Mapping[str, str]) -> str | None:
    for text in choices:
        names = re.findall(r"\$([A-Z0-9_]+)", text)
        if all(environ.get(name) for name in names):
            value = re.sub(r"\$([A-Z0-9_]+)", lambda found: environ[found[1]], text)
            # Only this variable includes the remote's name, as in origin/main.
            return value.removeprefix("origin/") if text == "$GIT_BRANCH" else value
    return None
