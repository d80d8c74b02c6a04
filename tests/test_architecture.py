"""The layer table, kept: which module may import what, and who may touch what."""

import ast
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final, NamedTuple

import pytest

PACKAGE: Final = Path(__file__).resolve().parents[1] / "chronoverse"

#: Imports point strictly down this table. Each string is one rank: modules of the same rank do not know each other.
LAYERS: Final = {
    "ground": ("errors metrics pacing sse turns",),
    "values": (
        "archive joblog matcher redisurl",
        "archive.records parse period terminal watchlist",
        "entries ledger settings",
    ),
    "places lines rest": (
        "archive.index archive.kept archive.objects archive.packing",
        "archive.files archive.reading archive.rewriting archive.s3 archive.sieve",
        "archive.places archive.search",
        "keeper store.driver store.replies",
        "embedded store.ahead store.places store.settings",
        "store.permanence",
        "store.appends store.archived store.cluster store.foreign store.inventory",
        "store.reader store.redacted store.sentinel",
        "store.confirm store.lanes store.tracking",
        "store.live",
        "store",
    ),
    "reading and writing": (
        "backoff carriage channel companion cutter echo follower foreground listeners source",
        "garbage httpledger jwks storewatch masking pseudoterminal relay tally workload",
        "auth client history hole observing records scribe sealing",
        "capture pieces redaction retention spoolfile tail",
        "archiver replay segment",
        "stock",
        "spool",
        "readback safety sender",
        "command printer publisher viewer",
        "runner",
        "api deliver",
    ),
    "HTTP": (
        "web.ended web.fairness web.identity web.presence web.restraint web.shares",
        "web.tracing",
        "web.addresses web.admission web.connection web.crowd web.cursors",
        "web.bodies web.budget web.pump web.rates web.schemas",
        "web.journal web.problems web.searches",
        "web.answers web.openapi web.outlet web.publications web.refusals",
        "web.services",
        "web.opening web.ops web.pages web.ui web.worker",
        "web.admin web.events web.jobs web.logs web.publish web.raw web.search",
        "web.fastpath",
    ),
    "roots": ("banner options web", "upkeep", "cli", "__main__"),
}

#: A library's top-level name, and the modules that alone may import it (with all that is below them).
OWNERS: Final = {
    "redis": "store",
    "flask": "web",
    "flask_smorest": "web",
    "webargs": "web",
    "werkzeug": "web",
    "gevent": "web",
    "opentelemetry": "web.tracing",
    "re2": "matcher",
}

#: Who may read the environment, and why.
ENVIRONMENT: Final = {
    "settings": "every knob is there",
    "cli": "hands its own environment on to gunicorn, which it becomes",
}


class Module(NamedTuple):
    """One file of the package; ``name`` is relative to it, and empty for the package's own ``__init__``."""

    name: str
    tree: ast.Module

    def imports(self) -> Iterator[str]:
        """Every dotted name imported anywhere in the file; ``from a import b`` gives ``a.b``."""
        for node in ast.walk(self.tree):
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
        modules[name] = Module(name, ast.parse(path.read_text(encoding="utf-8")))
    return modules


def ranks() -> dict[str, int]:
    """Each module's height; the package itself, which imports nothing, is the bottom."""
    rows = [row for layer in LAYERS.values() for row in layer]
    return {"": 0} | {name: rank for rank, row in enumerate(rows, start=1) for name in row.split()}


def target(imported: str, modules: dict[str, Module]) -> str | None:
    """Which of our modules an imported name is, or is in; None when it is not ours."""
    if imported != PACKAGE.name and not imported.startswith(f"{PACKAGE.name}."):
        return None
    name = imported.removeprefix(PACKAGE.name).removeprefix(".")
    while name not in modules:
        name = name.rpartition(".")[0]
    return name


def unplaced(modules: dict[str, Module]) -> Iterator[str]:
    """Files without a place in the table, and places without a file."""
    yield from (f"{name} has no place in the table" for name in modules.keys() - ranks().keys())
    yield from (f"{name} is in the table, but there is no such file" for name in ranks().keys() - modules.keys())


def upward_imports(modules: dict[str, Module]) -> Iterator[str]:
    """Imports that do not point strictly down, and relative ones, which nobody can grep for."""
    height = ranks()
    for module in modules.values():
        for imported in module.imports():
            below = target(imported, modules)
            if imported.startswith("."):
                yield f"{module.name} imports {imported} by a relative path"
            elif below is not None and height.get(below, 0) >= height.get(module.name, len(height)):
                yield f"{module.name} imports {below}, which is not below it"


def borrowed_libraries(modules: dict[str, Module]) -> Iterator[str]:
    """Libraries imported by a module that does not own them."""
    for module in modules.values():
        for imported in module.imports():
            owner = OWNERS.get(imported.partition(".")[0])
            if owner and module.name != owner and not module.name.startswith(f"{owner}."):
                yield f"{module.name} imports {imported}, which only {owner} may"


def environment_reads(modules: dict[str, Module]) -> Iterator[str]:
    """``os.environ`` and its kin outside the modules that may."""
    names = {"environ", "environb", "getenv", "getenvb", "putenv", "unsetenv"}
    for module in modules.values():
        attributes = {
            node.attr
            for node in ast.walk(module.tree)
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "os"
        }
        imported = {name.removeprefix("os.") for name in module.imports() if name.startswith("os.")}
        if module.name not in ENVIRONMENT:
            yield from (f"{module.name} uses os.{name}" for name in names & (attributes | imported))


def monkey_patches(modules: dict[str, Module]) -> Iterator[str]:
    """Calls of gevent's ``patch_…``: the process that imports the package decides, never the package."""
    for module in modules.values():
        for node in ast.walk(module.tree):
            named = node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""
            if named.startswith("patch_"):
                yield f"{module.name} calls {named}"


def prints_on_import(modules: dict[str, Module]) -> Iterator[str]:
    """``print`` outside any function, and not for ``python -m``."""
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


Rule = Callable[[dict[str, Module]], Iterator[str]]

RULES: Final[tuple[Rule, ...]] = (
    unplaced,
    upward_imports,
    borrowed_libraries,
    environment_reads,
    monkey_patches,
    prints_on_import,
)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_the_package_keeps_the_rule(rule: Rule) -> None:
    """The package as it is breaks no rule."""
    assert sorted(rule(read_package(PACKAGE))) == []


@pytest.mark.parametrize(
    ("rule", "file_name", "text", "finding"),
    [
        (unplaced, "novelty.py", "", "novelty has no place in the table"),
        (unplaced, "web/novelty.py", "", "web.novelty has no place in the table"),
        (unplaced, "novelty.py", "", "store is in the table, but there is no such file"),
        (upward_imports, "sse.py", "import chronoverse.viewer", "sse imports viewer, which is not below it"),
        (upward_imports, "sse.py", "from chronoverse import viewer", "sse imports viewer, which is not below it"),
        (upward_imports, "sse.py", "def f():\n    from chronoverse.viewer import x", "sse imports viewer, which is"),
        (upward_imports, "sse.py", "from chronoverse.errors import x", "sse imports errors, which is not below it"),
        (upward_imports, "__init__.py", "from chronoverse.errors import x", " imports errors, which is not below it"),
        (upward_imports, "sse.py", "from .errors import x", "sse imports .errors.x by a relative path"),
        (borrowed_libraries, "tail.py", "import redis.client", "tail imports redis.client, which only store may"),
        (borrowed_libraries, "webhook.py", "from flask import x", "webhook imports flask.x, which only web may"),
        (borrowed_libraries, "cli.py", "from gevent import monkey", "cli imports gevent.monkey, which only web may"),
        (environment_reads, "store.py", "import os\nos.environ['A']", "store uses os.environ"),
        (environment_reads, "store.py", "from os import getenv as g", "store uses os.getenv"),
        (monkey_patches, "web/x.py", "from gevent import monkey\nmonkey.patch_all()", "web.x calls patch_all"),
        (prints_on_import, "sse.py", "if True:\n    print()", "sse prints when it is imported"),
    ],
)
def test_a_broken_rule_is_noticed(tmp_path: Path, rule: Rule, file_name: str, text: str, finding: str) -> None:
    """The same rule finds the offence in a tree where one was planted."""
    for name in ("__init__.py", "errors.py", "viewer.py", "web/__init__.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / file_name).write_text(text, encoding="utf-8")

    assert [found for found in rule(read_package(tmp_path)) if found.startswith(finding)]


@pytest.mark.parametrize(
    ("rule", "file_name", "text"),
    [
        (upward_imports, "viewer.py", "import sys\nfrom chronoverse.errors import x\nimport chronoverse"),
        (borrowed_libraries, "store.py", "import redis"),
        (borrowed_libraries, "web/jobs.py", "import flask"),
        (environment_reads, "settings.py", "import os\nos.environ['A']"),
        (environment_reads, "web/jobs.py", "request.environ['A']"),
        (prints_on_import, "cli.py", "def f():\n    print()\nif __name__ == '__main__':\n    print()"),
    ],
)
def test_what_is_allowed_passes(tmp_path: Path, rule: Rule, file_name: str, text: str) -> None:
    """No rule is kept by refusing everything."""
    for name in ("__init__.py", "errors.py", "web/__init__.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / file_name).write_text(text, encoding="utf-8")

    assert list(rule(read_package(tmp_path))) == []
