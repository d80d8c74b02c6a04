"""Packaging: pinned requirements that follow pyproject.toml, and a complete wheel."""

import ast
import re
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterable, Iterator
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import NamedTuple

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from chronoverse import __version__
from chronoverse.cli.version import build_version

pytestmark = pytest.mark.long

ROOT = Path(__file__).resolve().parents[2]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PROJECT = PYPROJECT["project"]
RUNTIME = PROJECT["dependencies"]
EXTRAS = PROJECT["optional-dependencies"]

DECLARED = pytest.mark.parametrize(
    ("file_name", "dependencies"),
    [
        ("requirements.txt", RUNTIME),
        ("requirements-dev.txt", RUNTIME + EXTRAS["dev"]),
        ("requirements-image.txt", RUNTIME + EXTRAS["otel"] + EXTRAS["otlp"] + EXTRAS["s3"]),
        ("requirements-build.txt", PYPROJECT["dependency-groups"]["build"]),
    ],
    ids=["runtime", "dev", "image", "build"],
)


class Pin(NamedTuple):
    """One pinned requirement."""

    name: str
    version: str
    hashes: int
    direct: bool


def read_pins(text: str) -> Iterator[Pin]:
    """The pins of a file written by ``uv pip compile``."""
    body = "".join(f"{line}\n" for line in text.splitlines() if not line.startswith("#"))
    for block in body.replace("\n    ", " ").splitlines():
        requirement = Requirement(block.partition("\\")[0].partition("--hash")[0].partition("#")[0])
        (specifier,) = requirement.specifier
        yield Pin(
            canonicalize_name(requirement.name),
            specifier.version,
            block.count("--hash=sha256:"),
            "chronoverse (pyproject.toml" in block,
        )


def stale(dependencies: Iterable[str], text: str) -> list[str]:
    """The differences between the compiled ``text`` and ``dependencies``."""
    pins = list(read_pins(text))
    wanted = {canonicalize_name(each.name): each for each in map(Requirement, dependencies)}
    problems = [f"{pin.name} has no hash" for pin in pins if not pin.hashes]
    problems += [f"{pin.name} is no longer asked for" for pin in pins if pin.direct and pin.name not in wanted]
    for name, requirement in wanted.items():
        versions = [pin.version for pin in pins if pin.name == name and pin.direct]
        if len(versions) != 1 or not requirement.specifier.contains(versions[0], prereleases=True):
            problems.append(f"{requirement} is not met by {versions}")
    return problems


@DECLARED
def test_compiled_requirements_are_up_to_date(file_name: str, dependencies: list[str]) -> None:
    """Each dependency has one pin within its range, and each pin a hash. If this fails, run ``make lock``.

    The files work with any package index.
    """
    text = (ROOT / file_name).read_text(encoding="utf-8")

    assert stale(dependencies, text) == []
    assert "://" not in text
    assert "index-url" not in text


def test_development_pins_include_all_others() -> None:
    """Tests run with the shipped versions, and those that build the wheel."""
    runtime, build, image, dev = (
        {(pin.name, pin.version) for pin in read_pins((ROOT / name).read_text(encoding="utf-8"))}
        for name in ("requirements.txt", "requirements-build.txt", "requirements-image.txt", "requirements-dev.txt")
    )

    assert (runtime | build | image) - dev == set()


#: Modules of the standard library that the oldest supported Python lacks.
NEWER_STANDARD = {"compression"}


def third_party_imports(package: Path) -> set[str]:
    """The top-level names of other projects that the package imports."""
    names = set()
    for path in package.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_bytes())):
            if isinstance(node, ast.Import):
                names |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                names.add(node.module.partition(".")[0])
    return names - sys.stdlib_module_names - NEWER_STANDARD - {package.name}


def test_every_import_is_a_declared_dependency() -> None:
    """No import works only because another library has the same dependency."""
    optional = [each for extra, needed in EXTRAS.items() if extra != "dev" for each in needed]
    requirements = [Requirement(each) for each in RUNTIME + optional]
    declared = {canonicalize_name(each.name) for each in requirements}
    # Backports: newer Pythons have these modules.
    absent = {re.split("[.-]", each.name)[0] for each in requirements if each.marker and not each.marker.evaluate()}
    # Airflow is not installed.
    owners = {"airflow": ["apache-airflow-core"], **packages_distributions()}

    undeclared = {
        name
        for name in third_party_imports(ROOT / "chronoverse") - absent
        if declared.isdisjoint(canonicalize_name(owner) for owner in owners.get(name, [name]))
    }

    assert undeclared == set()


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Iterator[zipfile.ZipFile]:
    """The wheel, built from this tree by its own backend."""
    target = tmp_path_factory.mktemp("dist")
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(target)],
        cwd=ROOT,
        check=True,
        capture_output=True,
        timeout=60,
    )
    (path,) = target.glob("*.whl")
    with zipfile.ZipFile(path) as archive:
        yield archive


def read(wheel: zipfile.ZipFile, name: str) -> str:
    """The text of a file of the wheel's metadata."""
    (path,) = (each for each in wheel.namelist() if each.endswith(f".dist-info/{name}"))
    return wheel.read(path).decode()


def test_the_wheel_is_complete(wheel: zipfile.ZipFile) -> None:
    """It has the modules, scripts, static files, server configuration and license, and no tests or tools.

    It installs one console script and an Airflow plugin, and tells type checkers that it is typed (PEP 561).
    """
    files = {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "chronoverse").rglob("*")
        if path.is_file() and path.suffix != ".pyc"
    }
    names = set(wheel.namelist())

    assert any(name.endswith(".lua") for name in files)
    assert files | {"chronoverse/py.typed"} <= names
    assert {name.partition("/")[0].partition("-")[0] for name in names} == {"chronoverse"}
    assert wheel.read("chronoverse/gunicorn.conf.py") == (ROOT / "gunicorn.conf.py").read_bytes()
    assert "License-Expression: MIT" in read(wheel, "METADATA").splitlines()
    assert read(wheel, "licenses/LICENSE") == (ROOT / "LICENSE").read_text()
    assert read(wheel, "entry_points.txt").split() == [
        *("[console_scripts]", "chronoverse", "=", "chronoverse.cli.main:main"),
        *("[airflow.plugins]", "chronoverse", "=", "chronoverse.integrations.airflow.plugin:ChronoversePlugin"),
    ]


def test_there_is_one_version(wheel: zipfile.ZipFile) -> None:
    """The wheel has the package's version: the changelog's newest release, or the development version after it.

    The Kubernetes example has the newest release.
    """
    releases = re.findall(r"^## \[([0-9.]+)\] - [0-9]{4}-[0-9]{2}-[0-9]{2}$", (ROOT / "CHANGELOG.md").read_text(), re.M)
    images = re.findall(r"image: .*/chronoverse:(\S+)", (ROOT / "deploy" / "kubernetes.yaml").read_text("utf-8"))

    (built,) = re.findall("^Version: (.*)$", read(wheel, "METADATA"), re.M)
    assert built == build_version()
    assert Version(built).public == __version__
    if Version(built).is_devrelease:
        assert Version(releases[0]) < Version(built)
    else:
        assert releases[0] == built
    assert set(images) == {releases[0]}


def test_commit_hooks_run_what_make_lint_runs() -> None:
    """A commit that passes the hooks passes the style checks of ``make check``."""
    recipe = re.search(r"^lint:.*\n((?:\t.+\n)+)", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    assert recipe is not None
    wanted = [line.strip().replace("$(BIN)", ".venv/bin") for line in recipe[1].splitlines()]
    (repo,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))["repos"]

    assert [hook["entry"] for hook in repo["hooks"]] == wanted
