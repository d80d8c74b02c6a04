"""``clients/js`` as an npm package: its files, types and version, and the examples in its README."""

import json
import re
import subprocess
from pathlib import Path

import pytest

from chronoverse import __version__
from tests.clients.javascript import HERE, PACKAGE, PATIENCE_SECONDS
from tests.support.service import ROOT
from tests.support.tools import tool, unavailable

pytestmark = pytest.mark.long

README = PACKAGE / "README.md"
_FENCE = re.compile(r"^```(?:js|ts)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
#: What the examples do not define themselves.
_ELSEWHERE = """declare const process: { env: Record<string, string | undefined> };
declare const token: string;
declare function currentToken(): string;
declare function renewToken(): Promise<string>;
"""


def test_the_package_is_complete_and_has_no_dependencies(installed: tuple[Path, list[str]]) -> None:
    """It depends on nothing."""
    assert installed[1] == [
        "LICENSE",
        "README.md",
        "blocks.js",
        "follow.js",
        "history.js",
        "index.d.ts",
        "index.js",
        "package.json",
        "request.js",
        "watches.js",
    ]


def test_the_package_agrees_with_the_project() -> None:
    """It is the page's module. Version and license are the project's."""
    described = json.loads((PACKAGE / "package.json").read_text("utf-8"))

    assert PACKAGE.resolve() == ROOT / "chronoverse" / "web" / "static" / "client"
    # npm writes the development version 0.3.0.dev0 as 0.3.0-dev.0.
    assert described["version"] == __version__.replace(".dev", "-dev.")
    assert (PACKAGE / "LICENSE").read_bytes() == (ROOT / "LICENSE").read_bytes()
    assert not {"dependencies", "scripts", "peerDependencies"} & set(described)


def compile_types(directory: Path, *files: str) -> str:
    """TypeScript's errors in ``files``."""
    compiler = HERE / "node_modules" / "typescript" / "bin" / "tsc"
    if not compiler.is_file():
        unavailable("npm install --prefix tests/clients was not run")
    options = ["--strict", "--noEmit", "--target", "es2022", "--lib", "es2022,dom,dom.iterable", "--types", ""]
    command = [tool("node"), str(compiler), *options, "--module", "nodenext", *files]
    done = subprocess.run(command, cwd=directory, capture_output=True, text=True, check=False, timeout=PATIENCE_SECONDS)
    return done.stdout + done.stderr


def examples() -> dict[str, str]:
    """The module's examples in all documents, by the name of a file."""
    documents = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")), README]
    printed = [text for path in documents for text in _FENCE.findall(path.read_text("utf-8"))]
    return {f"example{at}.mts": text for at, text in enumerate(printed) if 'from "chronoverse"' in text}


def test_programs_with_types_compile(installed: tuple[Path, list[str]]) -> None:
    """With the package's declarations: a program whose mistakes are found where marked, and all examples.

    Types are strict, also in JavaScript examples. Only names defined elsewhere are added.
    """
    found = examples()
    assert len(found) >= 5
    for name, text in {**found, "elsewhere.d.ts": _ELSEWHERE}.items():
        (installed[0] / name).write_text(text)
    assert compile_types(installed[0], "types.ts", "elsewhere.d.ts", *found) == ""


@pytest.mark.parametrize("checker", ["publint", "attw"])
def test_package_linters_find_nothing(installed: tuple[Path, list[str]], checker: str) -> None:
    """In the packed module. Checks for CommonJS are off: it is only an ES module."""
    program = HERE / "node_modules" / ".bin" / checker
    if not program.is_file():
        unavailable("npm install --prefix tests/clients was not run")
    (packed,) = installed[0].glob("*.tgz")
    options = {"publint": ["run", str(packed), "--strict"], "attw": [str(packed), "--profile", "esm-only"]}[checker]
    done = subprocess.run(
        [str(program), *options], capture_output=True, text=True, check=False, timeout=PATIENCE_SECONDS
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_declarations_are_those_of_the_code() -> None:
    """The code is checked, too: its functions have the declared types."""
    modules = sorted(path.name for path in PACKAGE.glob("*.js"))
    assert all((PACKAGE / name).read_text("utf-8").startswith("// @ts-check\n") for name in modules)
    assert compile_types(PACKAGE.resolve(), "--allowJs", "index.d.ts", *modules) == ""
