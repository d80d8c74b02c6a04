"""The text of the Dockerfile. ``tests/system/image.py`` runs its steps."""

import json
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tests.support.dockerfile import read_stages
from tests.support.scripted import ScriptedService, answer
from tests.support.tools import tool

ROOT = Path(__file__).resolve().parents[2]


STAGES = read_stages((ROOT / "Dockerfile").read_text(encoding="utf-8"))


def last(word: str) -> str:
    """The arguments of the final stage's last ``word``, which is the one that applies."""
    return [step.rest for step in STAGES[-1] if step.word == word][-1]


def test_the_linter_finds_nothing() -> None:
    """Not even about style. Each ignored rule has a reason."""
    command = [tool("hadolint"), "--no-color", "--failure-threshold", "style", str(ROOT / "Dockerfile")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)

    assert (done.stdout, done.returncode) == ("", 0)


def test_every_copied_file_exists_and_is_not_ignored() -> None:
    """.dockerignore excludes everything but the files that the build copies."""
    copies = [shlex.split(step.rest) for stage in STAGES for step in stage if step.word == "COPY"]
    sources = {name for copy in copies if not copy[0].startswith("--from=") for name in copy[:-1]}
    ignored, *exceptions = (ROOT / ".dockerignore").read_text(encoding="utf-8").split()

    assert ignored == "*"
    assert {name for name in sources if not (ROOT / name).exists()} == set()
    assert {f"!{name}" for name in sources} == {name for name in exceptions if name.startswith("!")}


def test_nothing_is_installed_without_a_hash() -> None:
    """Each pip install checks hashes, or installs only the wheel just built."""
    installs = [step.rest for stage in STAGES for step in stage if step.word == "RUN" and " install " in step.rest]
    from_index = [rest for rest in installs if "-r requirements" in rest]

    assert len(from_index) == 2
    assert all("--require-hashes" in rest and "--only-binary :all:" in rest for rest in from_index)
    assert all("--no-index" in rest for rest in installs if "pip" in rest and rest not in from_index)


def test_every_image_and_action_is_pinned_by_its_digest() -> None:
    """Tags can move. Dependabot proposes newer digests."""
    compose, workflow = ROOT / "deploy" / "compose.yaml", ROOT / ".github" / "workflows" / "ci.yml"
    images = [step.rest.split()[0] for stage in STAGES for step in stage if step.word == "FROM"]
    images += re.findall(r"^ +image: (?!chronoverse:)(\S+)$", compose.read_text("utf-8"), re.MULTILINE)
    images += re.findall(r"\bpython:[\w.-]+(?:@\S+)?", workflow.read_text("utf-8"))
    actions = re.findall(r"uses: (\S+)", workflow.read_text("utf-8"))

    assert len(images) == 6
    assert [each for each in images if not re.fullmatch(r"[\w.:-]+@sha256:[0-9a-f]{64}", each)] == []
    assert [each for each in actions if not re.fullmatch(r"[\w/-]+@[0-9a-f]{40}", each)] == []


def test_nothing_is_bound_to_an_architecture() -> None:
    """The release workflow builds it for amd64 and arm64."""
    workflow = (ROOT / ".github" / "workflows" / "release.yml").read_text("utf-8")
    steps = [step.rest for stage in STAGES for step in stage]

    assert "docker buildx build --platform linux/amd64,linux/arm64 " in workflow
    assert [rest for rest in steps if re.search("--platform|amd64|x86|arm64|aarch64|TARGETARCH", rest)] == []


def test_final_stage_has_no_build_tools() -> None:
    """It copies the environment from the first stage, on the same base image, and installs nothing."""
    bases = {step.rest.split()[0] for stage in STAGES for step in stage if step.word == "FROM"}
    assert len(bases) == 1
    assert bases.pop().startswith("python:3.13-slim-trixie@sha256:")
    assert [step.rest for step in STAGES[-1] if step.word == "COPY"] == ["--from=build /opt/venv /opt/venv"]
    assert not any("pip" in step.rest or "apt" in step.rest for step in STAGES[-1] if step.word == "RUN")


def test_container_runs_as_a_fixed_user_that_is_not_root() -> None:
    """The user is a number, so that an orchestrator can check it."""
    user, _, group = last("USER").partition(":")

    assert int(user) >= 10000
    assert int(group) >= 10000
    assert f"--uid {user} " in last("RUN")


def test_command_gets_the_signals() -> None:
    """In the exec form, the service is process 1, so SIGTERM drains it."""
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["scripts"]
    command = json.loads(last("CMD"))

    assert command == ["chronoverse", "serve", "--bind", "0.0.0.0:8000"]
    assert command[0] in scripts
    assert last("STOPSIGNAL") == "SIGTERM"


def test_data_directory_outlives_the_container() -> None:
    """The volume contains the embedded server's files."""
    assert f"CHRONOVERSE_DATA_DIR={last('VOLUME')}" in last("ENV").split()
    assert "PYTHONUNBUFFERED=1" in last("ENV").split()


def check_health(port: int) -> int:
    """The exit code of the image's health check, run against another port."""
    _, _, command = last("HEALTHCHECK").partition("CMD ")
    _, *arguments = json.loads(command)
    arguments = [argument.replace("8000", str(port)) for argument in arguments]
    return subprocess.run([sys.executable, *arguments], capture_output=True, check=False, timeout=30).returncode


@pytest.mark.parametrize(
    ("answered", "is_healthy"), [(answer("200 OK"), True), (answer("503 No"), False), (None, False)]
)
def test_health_check_depends_on_the_status(answered: bytes | None, is_healthy: bool) -> None:
    """Only a 200 is healthy; neither no answer nor a port on which nobody listens."""
    with ScriptedService(answered) as service:
        port = int(service.url.rpartition(":")[2])
        assert (check_health(port) == 0) is is_healthy
    assert [asked.path for asked in service.requests] == ["/healthz"]
    assert check_health(port) != 0
