"""The pages *Connect*: what they have the service trust, and what they have a job do, with tokens of the real kinds.

Each issuer is a stand-in over TLS, whose tokens have the claims that the real one documents.
"""

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import httpx
import pytest
import yaml

from chronoverse.joblog.model import JobRef
from chronoverse.store import Store
from tests.auth.test_trust import GITHUB, GITLAB, KUBERNETES
from tests.support.certificates import Authority
from tests.support.issuer import OidcIssuer
from tests.support.scripted import ScriptedService, answer
from tests.support.servers import RedisServer, running
from tests.support.service import ROOT, Service, serving
from tests.support.tools import tool

pytestmark = pytest.mark.long

#: The URLs on the pages.
LOGS: Final = "https://logs.example.com"
#: The name of each page, and the issuer on it.
ISSUERS: Final = {
    "gitlab": "https://gitlab.example.com",
    "github-actions": "https://token.actions.githubusercontent.com",
    "kubernetes": "https://kubernetes.default.svc.cluster.local",
}


def blocks(page: str, language: str, having: str = "") -> list[str]:
    """The blocks of a page in this language that have this text."""
    text = (ROOT / "docs" / f"{page}.md").read_text("utf-8")
    found: list[str] = re.findall(rf"^```{language}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    return [block for block in found if having in block]


@pytest.fixture(scope="module")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with running(tmp_path_factory.mktemp("store")) as server:
        yield server


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="module")
def issuers(authority: Authority) -> Iterator[dict[str, OidcIssuer]]:
    """A stand-in for each page's issuer."""
    certificate = authority.issue("issuers")
    with OidcIssuer(certificate) as gitlab, OidcIssuer(certificate) as github, OidcIssuer(certificate) as cluster:
        yield dict(zip(ISSUERS, (gitlab, github, cluster), strict=True))


@pytest.fixture(scope="module")
def service(
    tmp_path_factory: pytest.TempPathFactory,
    redis_server: RedisServer,
    authority: Authority,
    issuers: dict[str, OidcIssuer],
) -> Iterator[Service]:
    """A service that trusts what all of the pages say, beside its own key, with which these tests read."""
    directory = tmp_path_factory.mktemp("service")
    trusted = "".join(block for page in ISSUERS for block in blocks(page, "toml", "[[issuer]]"))
    for page, name in ISSUERS.items():
        assert name in trusted
        trusted = trusted.replace(name, issuers[page].name)
    path = directory / "trust.toml"
    path.write_text(trusted)
    with serving(directory, redis_server.url, trust_file=path, ca_file=authority.path) as service:
        yield service


@pytest.fixture
def environ(tmp_path: Path, service: Service) -> dict[str, str]:
    """The environment of a machine with the command, which reaches the service."""
    program = tmp_path / "bin" / "chronoverse"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m chronoverse "$@"\n')
    program.chmod(0o755)
    (tmp_path / "bin" / "make").write_text('#!/bin/sh\necho "making $*"\n')
    (tmp_path / "bin" / "make").chmod(0o755)
    return {
        "PATH": f"{program.parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "HOME": str(tmp_path),
        "CHRONOVERSE_DATA_DIR": str(tmp_path / "data"),
        "CHRONOVERSE_URL": service.url,
    }


@pytest.fixture
def ended(redis_server: RedisServer) -> Callable[[str, str], tuple[str, list[str]]]:
    """How a job has ended, and its messages."""

    def look(workflow: str, job: str) -> tuple[str, list[str]]:
        store = Store(redis_server.url)
        try:
            found = store.get_job(JobRef(workflow, job))
            assert found is not None
            entries = store.read(found.ref, 0, found.last)
            return found.status, [fields[3].decode() for _, fields in entries]
        finally:
            store.close()

    return look


def refused(service: Service, token: str, workflow: str) -> int:
    """The status with which a token is refused that begins a job of the workflow."""
    url = f"{service.url}/workflows/{workflow}/jobs/hostile/attempts"
    headers = {"Authorization": f"Bearer {token}"}
    return httpx.post(url, json={"token": "a" * 32}, headers=headers, verify=service.verify).status_code


@pytest.mark.parametrize("executor", ["shell", "docker", "kubernetes"])
def test_a_gitlab_job_needs_no_secret(
    executor: str,
    service: Service,
    issuers: dict[str, OidcIssuer],
    environ: dict[str, str],
    ended: Callable[[str, str], tuple[str, list[str]]],
) -> None:
    """All three executors give the script and the job's variables to a shell: bash, or what the image has."""
    (page,) = blocks("gitlab", "yaml", "id_tokens:")
    job = yaml.safe_load(page)["test"]
    name, wanted = job["id_tokens"].popitem()
    (line,) = job["script"]
    shell = {"shell": ["bash", "--login"], "docker": ["sh"], "kubernetes": ["sh"]}[executor]
    claims = {**GITLAB, "aud": wanted["aud"], "project_path": "team-a/web/shop", "sub": f"{executor}:x"}
    variables = {
        name: issuers["gitlab"].token(claims),
        "CI_PROJECT_PATH": "team-a/web/shop",
        "CI_JOB_ID": f"{executor}-302",
    }
    assert job["variables"] == {"CHRONOVERSE_URL": LOGS}
    script = f"set -eo pipefail\n{line}\n" if executor == "shell" else f"set -e\n{line}\n"
    done = subprocess.run(
        shell,
        input=f'PATH="{environ["PATH"]}"\n{script}',
        env={**environ, **variables},
        capture_output=True,
        text=True,
        timeout=60,
    )

    assert done.returncode == 0, done.stderr
    assert ended("team-a.web.shop", f"{executor}-302") == ("COMPLETED", ["making test"])
    assert refused(service, variables[name], "team-a.web.shop2") == 404
    assert refused(service, issuers["gitlab"].token({**claims, "project_path": "team-b/shop"}), "team-b.shop") == 403
    assert refused(service, issuers["gitlab"].token({**claims, "aud": "https://vault"}), "team-a.web.shop") == 401


@pytest.fixture
def github(issuers: dict[str, OidcIssuer]) -> Iterator[dict[str, str]]:
    """The variables of a step that may have ID tokens. Whoever has the request token can get one."""
    token = issuers["github-actions"].token({**GITHUB, "aud": LOGS})
    with ScriptedService(*[answer("200 OK", json.dumps({"value": token}).encode())] * 100) as endpoint:
        yield {
            "ACTIONS_ID_TOKEN_REQUEST_URL": f"{endpoint.url}/token?api-version=2.0",
            "ACTIONS_ID_TOKEN_REQUEST_TOKEN": "the-request-token",
            "GITHUB_REPOSITORY": GITHUB["repository"],
            "GITHUB_JOB": "build",
            "GITHUB_RUN_ID": "17",
            "GITHUB_RUN_ATTEMPT": "1",
            "GITHUB_ACTIONS": "true",
        }
    assert {asked.target for asked in endpoint.requests} == {f"/token?api-version=2.0&audience={LOGS}"}
    assert {asked.headers["authorization"] for asked in endpoint.requests} == {"bearer the-request-token"}


def test_a_github_job_needs_no_secret(
    service: Service,
    issuers: dict[str, OidcIssuer],
    environ: dict[str, str],
    github: dict[str, str],
    ended: Callable[[str, str], tuple[str, list[str]]],
    tmp_path: Path,
) -> None:
    """Its first step has a token renewed, and each later step is a part of the job's log."""
    for name in ("curl", "jq", "bash"):
        tool(name)
    (page,) = blocks("github-actions", "yaml", "id-token:")
    workflow = yaml.safe_load(page)
    assert workflow["permissions"]["id-token"] == "write"
    assert workflow["env"].keys() == {"CHRONOVERSE_URL", "CHRONOVERSE_TOKEN_FILE"}
    token_file = tmp_path / "token"
    (tmp_path / "bin" / "pip").write_text("#!/bin/sh\n")
    (tmp_path / "bin" / "pip").chmod(0o755)
    variables = {**environ, **github, "CHRONOVERSE_TOKEN_FILE": str(token_file)}
    build = workflow["jobs"]["build"]
    groups = []

    def execute(number: int, step: dict[str, Any]) -> int:
        """Runs a step as the runner does: its script is a file, whose path takes the place of ``{0}``."""
        script = tmp_path / f"step-{number}.sh"
        script.write_text(step["run"].replace("${{ job.status }}", "success"))
        shell = step.get("shell", build["defaults"]["run"]["shell"])
        shell = "bash --noprofile --norc -eo pipefail {0}" if shell == "bash" else shell
        with subprocess.Popen(
            ["bash", "-c", f"exec {shell.replace('{0}', str(script))}"],
            env=variables,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        ) as process:
            groups.append(process.pid)
            return process.wait(60)

    try:
        steps = [step for step in build["steps"] if "run" in step]
        assert [execute(number, step) for number, step in enumerate(steps)] == [0] * len(steps)
        assert token_file.stat().st_mode & 0o077 == 0
    finally:
        for group in groups:
            # The first step's loop is still there. GitHub ends it with the job.
            try:
                os.killpg(group, signal.SIGKILL)
            except ProcessLookupError:
                continue
    status, messages = ended("octo-org.shop", "build-17-1")
    assert (status, messages) == ("COMPLETED", ["making ", "making test", "the job is success"])
    assert refused(service, token_file.read_text().strip(), "octo-org.other") == 404
    hostile = {**GITHUB, "aud": LOGS, "repository_owner": "attacker", "repository": "attacker/shop"}
    assert refused(service, issuers["github-actions"].token(hostile), "octo-org.shop") == 403
    claimed = {**hostile, "repository_owner": "octo-org", "repository": "octo-org*"}
    assert refused(service, issuers["github-actions"].token(claimed), "octo-org.shop") == 403


def test_each_buildkite_job_has_its_own_log(
    environ: dict[str, str], service: Service, ended: Callable[[str, str], tuple[str, list[str]]]
) -> None:
    """``pipeline upload`` replaces ``$NAME`` with its own job's variable, and ``$$`` with ``$``."""
    command = yaml.safe_load(blocks("buildkite", "yaml")[0])["steps"][0]["command"]
    uploaded = re.sub(r"(?<!\$)\$(?=\w)", "uploading-", command).replace("$$", "$")
    for job in ("job-1", "job-2"):
        own = {"BUILDKITE_PIPELINE_SLUG": "app", "BUILDKITE_JOB_ID": job, "CHRONOVERSE_TOKEN": service.token()}
        subprocess.run(["bash", "-c", uploaded], env=environ | own, check=True, timeout=60)
        assert ended("app", job) == ("COMPLETED", ["making test"])


def test_a_pod_needs_no_secret(
    service: Service,
    issuers: dict[str, OidcIssuer],
    environ: dict[str, str],
    ended: Callable[[str, str], tuple[str, list[str]]],
    tmp_path: Path,
) -> None:
    """The token is in the file that the kubelet renews, and it is for the pod's own namespace."""
    (page,) = blocks("kubernetes", "yaml", "serviceAccountToken:")
    pod = yaml.safe_load(page)["spec"]["template"]["spec"]
    (container,), (volume,) = pod["containers"], pod["volumes"]
    (source,) = volume["projected"]["sources"]
    projected = source["serviceAccountToken"]
    (mount,) = container["volumeMounts"]
    given = {each["name"]: each["value"] for each in container["env"]}
    assert given["CHRONOVERSE_TOKEN_FILE"] == f"{mount['mountPath']}/{projected['path']}"
    assert mount["name"] == volume["name"]
    token_file = tmp_path / "token"
    cluster = issuers["kubernetes"]
    token_file.write_text(cluster.token({**KUBERNETES, "aud": [projected["audience"]]}))

    variables = {**environ, "CHRONOVERSE_TOKEN_FILE": str(token_file), "HOSTNAME": "nightly-x7k2p"}
    done = subprocess.run(container["command"], env=variables, capture_output=True, text=True, timeout=60)

    assert done.returncode == 0, done.stderr
    assert ended("ci.nightly", "nightly-x7k2p") == ("COMPLETED", ["making test"])
    assert refused(service, token_file.read_text(), "prod.nightly") == 404
    own = {**KUBERNETES, "kubernetes.io": {"namespace": "ci*"}, "aud": [projected["audience"]]}
    assert refused(service, cluster.token(own), "ci.nightly") == 403
    assert refused(service, cluster.token({**KUBERNETES, "aud": ["https://kubernetes.default.svc"]}), "ci.x") == 401
