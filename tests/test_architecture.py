"""The package's rules: which package can import which, and which can use which library."""

import ast
import importlib
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final, NamedTuple

import pytest

TESTS: Final = Path(__file__).resolve().parent
PACKAGE: Final = TESTS.parent / "chronoverse"

#: A package can import only itself and packages above it. The modules of the first row import only each other.
PACKAGES: Final = (
    "errors metrics backoff files fair_lock token_bucket settings",
    "joblog",
    "auth",
    "store",
    "embedded",
    "archive",
    "history",
    "live",
    "client",
    "runner",
    "integrations",
    "web",
    "cli",
    "collect",
)
#: Modules that use all packages, and that nothing imports.
ROOTS: Final = ("", "__main__", "api")

#: The top-level name of a library or its part, and the only package or module that can import it.
OWNERS: Final = {
    "airflow": "integrations.airflow.plugin",
    "structlog": "integrations.airflow",
    "celery": "integrations.celery",
    "redis": "store",
    "flask": "web",
    "flask_smorest": "web",
    "webargs": "web",
    "werkzeug": "web",
    "gevent": "web",
    "opentelemetry": "web.http.tracing",
    "opentelemetry.proto": "web.otlp.decoding",
    "google": "web.otlp",
    "re2": "joblog.matcher",
    "mcp": "cli.mcp.server",
    "anyio": "cli.mcp.server",
    "jsonschema": "cli.mcp.server",
}

#: The modules that can read the environment, and why.
ENVIRONMENT: Final = {
    "settings": "it reads all settings",
    "cli.run": "it reads the variables that --mask-env names",
    "cli.open": "it asks whether there is a display",
    "cli.main": "a shell that completes words asks through a variable of click",
}


class Module(NamedTuple):
    """One file of the package. ``name`` is relative to the package, and empty for its ``__init__``."""

    name: str
    tree: ast.Module
    #: All of the tree's nodes.
    nodes: tuple[ast.AST, ...]

    def imports(self) -> Iterator[str]:
        """Every dotted name imported anywhere in the file; ``from a import b`` gives ``a.b``."""
        for node in self.nodes:
            if isinstance(node, ast.Import):
                yield from (alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                yield from (f"{'.' * node.level}{node.module or ''}.{alias.name}" for alias in node.names)


def read_package(package: Path) -> dict[str, Module]:
    """The package's modules by name."""
    modules = {}
    for path in sorted(package.rglob("*.py")):
        parts = path.relative_to(package).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        tree = ast.parse(path.read_text(encoding="utf-8"))
        modules[name] = Module(name, tree, tuple(ast.walk(tree)))
    return modules


def rank(name: str) -> int | None:
    """The row of a module's package in :data:`PACKAGES`, or None."""
    package = name.partition(".")[0]
    return next((row for row, packages in enumerate(PACKAGES) if package in packages.split()), None)


def target(imported: str, modules: dict[str, Module]) -> str | None:
    """The package's module for an imported name, or the module it is in. None for names of other projects."""
    if imported != PACKAGE.name and not imported.startswith(f"{PACKAGE.name}."):
        return None
    name = imported.removeprefix(PACKAGE.name).removeprefix(".")
    while name not in modules:
        name = name.rpartition(".")[0]
    return name


def modules_without_a_package(modules: dict[str, Module]) -> Iterator[str]:
    """Modules that belong to no package."""
    yield from (f"{name} is in no package" for name in modules if rank(name) is None and name not in ROOTS)


def upward_imports(modules: dict[str, Module]) -> Iterator[str]:
    """Imports of packages below, and relative imports, which are hard to grep."""
    for module in modules.values():
        for imported in module.imports():
            if imported.startswith("."):
                yield f"{module.name} imports {imported} by a relative path"
            name = target(imported, modules)
            mine, other = rank(module.name), rank(name or "")
            if mine is not None and (name in ROOTS[1:] or (other is not None and other > mine)):
                yield f"{module.name} imports {name}, which is not above it"


def borrowed_libraries(modules: dict[str, Module]) -> Iterator[str]:
    """Libraries imported by a module without permission."""
    for module in modules.values():
        for imported in module.imports():
            top, _, rest = imported.partition(".")
            owner = OWNERS.get(f"{top}.{rest.partition('.')[0]}", OWNERS.get(top))
            if owner and module.name != owner and not module.name.startswith(f"{owner}."):
                yield f"{module.name} imports {imported}, which only {owner} may"


def environment_reads(modules: dict[str, Module]) -> Iterator[str]:
    """Uses of ``os.environ`` and similar names outside :data:`ENVIRONMENT`."""
    names = {"environ", "environb", "getenv", "getenvb", "putenv", "unsetenv"}
    for module in modules.values():
        attributes = {
            node.attr
            for node in module.nodes
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "os"
        }
        imported = {name.removeprefix("os.") for name in module.imports() if name.startswith("os.")}
        if module.name not in ENVIRONMENT:
            yield from (f"{module.name} uses os.{name}" for name in names & (attributes | imported))


def monkey_patches(modules: dict[str, Module]) -> Iterator[str]:
    """Calls of gevent's ``patch_…``. Patching is up to the process that imports the package, not the package."""
    for module in modules.values():
        for node in module.nodes:
            named = node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""
            if named.startswith("patch_"):
                yield f"{module.name} calls {named}"


def prints_on_import(modules: dict[str, Module]) -> Iterator[str]:
    """Calls of ``print`` outside functions, except under ``__name__ == '__main__'``."""
    for module in modules.values():
        waiting: list[ast.AST] = [module.tree]
        while waiting:
            node = waiting.pop()
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
                continue
            if isinstance(node, ast.If) and ast.unparse(node.test) == "__name__ == '__main__'":
                continue
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print":
                yield f"{module.name} prints when it is imported"
            waiting += ast.iter_child_nodes(node)


def both_sides_of_the_wire(modules: dict[str, Module]) -> Iterator[str]:
    """Imports of the service's client code within the service. What both need is in a package above both."""
    for module in modules.values():
        for imported in module.imports() if module.name.startswith("web.") else ():
            name = target(imported, modules)
            if name is not None and name.partition(".")[0] in ("client", "runner", "integrations"):
                yield f"{module.name} imports {name}"


def modules_without_a_line(modules: dict[str, Module]) -> Iterator[str]:
    """Modules that their package's docstring does not mention."""
    for name in modules:
        package, _, last = name.rpartition(".")
        named = re.findall(r"\w+", ast.get_docstring(modules[package].tree) or "") if package in modules else []
        if name and last != "__main__" and last not in named:
            yield f"{name} is not in the docstring of its package"


Rule = Callable[[dict[str, Module]], Iterator[str]]

RULES: Final[tuple[Rule, ...]] = (
    modules_without_a_package,
    upward_imports,
    borrowed_libraries,
    environment_reads,
    monkey_patches,
    prints_on_import,
    both_sides_of_the_wire,
    modules_without_a_line,
)


@pytest.fixture(scope="module")
def package() -> dict[str, Module]:
    """The modules of this project's package."""
    return read_package(PACKAGE)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_the_package_follows_the_rule(package: dict[str, Module], rule: Rule) -> None:
    assert sorted(rule(package)) == []


#: The files of a small package that follows every rule.
VALID_FILES: Final = (
    "__init__.py",
    "errors.py",
    "joblog/__init__.py",
    "live/viewer.py",
    "runner/__init__.py",
    "web/__init__.py",
)


@pytest.mark.parametrize(
    ("rule", "file_name", "text", "finding"),
    [
        (modules_without_a_package, "novelty.py", "", "novelty is in no package"),
        (modules_without_a_package, "novelty/thing.py", "", "novelty.thing is in no package"),
        (upward_imports, "joblog/sse.py", "import chronoverse.live.viewer", "joblog.sse imports live.viewer, which"),
        (
            upward_imports,
            "joblog/sse.py",
            "from chronoverse.live import viewer",
            "joblog.sse imports live.viewer, which",
        ),
        (upward_imports, "joblog/sse.py", "def f():\n    from chronoverse.live.viewer import x", "joblog.sse imports"),
        (upward_imports, "errors.py", "from chronoverse.joblog import x", "errors imports joblog, which"),
        (upward_imports, "live/tail.py", "from .viewer import x", "live.tail imports .viewer.x by a relative path"),
        (borrowed_libraries, "live/tail.py", "import redis.client", "live.tail imports redis.client, which only store"),
        (borrowed_libraries, "webhook.py", "from flask import x", "webhook imports flask.x, which only web may"),
        (borrowed_libraries, "cli.py", "from gevent import monkey", "cli imports gevent.monkey, which only web may"),
        (environment_reads, "store.py", "import os\nos.environ['A']", "store uses os.environ"),
        (environment_reads, "store.py", "from os import getenv as g", "store uses os.getenv"),
        (monkey_patches, "web/x.py", "from gevent import monkey\nmonkey.patch_all()", "web.x calls patch_all"),
        (prints_on_import, "sse.py", "if True:\n    print()", "sse prints when it is imported"),
        (both_sides_of_the_wire, "web/x.py", "import chronoverse.runner", "web.x imports runner"),
        (modules_without_a_line, "joblog/sse.py", "", "joblog.sse is not in the docstring of its package"),
    ],
)
def test_a_violation_is_detected(tmp_path: Path, rule: Rule, file_name: str, text: str, finding: str) -> None:
    """Each rule reports an error planted by the test."""
    plant(tmp_path, file_name, text)

    assert [found for found in rule(read_package(tmp_path)) if found.startswith(finding)]


@pytest.mark.parametrize(
    ("rule", "file_name", "text"),
    [
        (upward_imports, "live/viewer.py", "import sys\nfrom chronoverse.errors import x\nimport chronoverse"),
        (upward_imports, "live/tail.py", "from chronoverse.live.viewer import x"),
        (upward_imports, "api.py", "from chronoverse.live.viewer import x"),
        (borrowed_libraries, "store.py", "import redis"),
        (borrowed_libraries, "web/jobs.py", "import flask"),
        (environment_reads, "settings.py", "import os\nos.environ['A']"),
        (environment_reads, "web/jobs.py", "request.environ['A']"),
        (prints_on_import, "cli.py", "def f():\n    print()\nif __name__ == '__main__':\n    print()"),
    ],
)
def test_allowed_code_passes(tmp_path: Path, rule: Rule, file_name: str, text: str) -> None:
    """The rules do not reject everything."""
    plant(tmp_path, file_name, text)

    assert list(rule(read_package(tmp_path))) == []


def plant(package: Path, file_name: str, text: str) -> None:
    """Creates a package that follows every rule, with one additional file."""
    for name in VALID_FILES:
        (package / name).parent.mkdir(exist_ok=True)
        (package / name).touch()
    (package / file_name).parent.mkdir(exist_ok=True)
    (package / file_name).write_text(text, encoding="utf-8")


def stale_overrides(text: str) -> Iterator[str]:
    """Methods of a test's class that its base, a class of the package, lacks. Nobody calls them."""
    tree = ast.parse(text)
    nodes = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    origins = {each.asname or each.name: (node.module or "", each.name) for node in nodes for each in node.names}
    for node in ast.walk(tree):
        for base in node.bases if isinstance(node, ast.ClassDef) else ():
            module, name = origins.get(ast.unparse(base), ("", ""))
            if isinstance(node, ast.ClassDef) and module.startswith("chronoverse"):
                found = getattr(importlib.import_module(module), name)
                methods = [each.name for each in node.body if isinstance(each, ast.FunctionDef)]
                yield from (f"{node.name}.{method}" for method in methods if not hasattr(found, method))


def test_a_double_overrides_only_methods_that_exist() -> None:
    """Otherwise, renaming a method in the package would disarm the tests that override it."""
    texts = [path.read_text("utf-8") for path in sorted(TESTS.rglob("*.py"))]
    # Parsing all of them would take seconds.
    derived = [text for text in texts if re.search(r"class \w+\((?!NamedTuple|Protocol|Exception)", text)]
    assert [name for text in derived for name in stale_overrides(text)] == []
    double = "from chronoverse.live.tail import Tail\nclass Small(Tail):\n    def _ring_bytes(self): ..."
    assert list(stale_overrides(double)) == ["Small._ring_bytes"]


def test_the_tests_for_gevent_exist() -> None:
    """Otherwise, CI would notice at its end."""
    named = re.findall(r'^    "([\w/.]+)(?:::(\w+))?",$', (TESTS / "gevented.py").read_text("utf-8"), re.M)
    assert len(named) > 20
    for path, test in named:
        assert (TESTS / path).is_dir() or f"def {test}" in (TESTS / path).read_text("utf-8")
