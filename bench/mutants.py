"""Checks the tests: plants random defects, one at a time, in a copy of the tree, and tells which ones the tests find.

``make mutants SEED=1`` plants 300 in a night. cosmic-ray plants those in Python; :data:`LUA` and removed statements are
added. For each the tests of its package run first, then the whole default run. Prints the diffs of survivors, without
those in :data:`EQUIVALENT`.
"""

import argparse
import ast
import difflib
import random
import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

import cosmic_ray.ast
import cosmic_ray.mutating
import cosmic_ray.plugins

ROOT: Final = Path(__file__).parents[1]
#: Seconds for one run of pytest. A defect that makes tests hang counts as found.
TEST_SECONDS: Final = 900
#: Where defects are planted, below ``chronoverse/``, and where the tests of each are.
TARGETS: Final = {
    "joblog/*.py": "joblog",
    "auth/rights.py": "auth",
    "auth/tokens.py": "auth",
    "store/replies.py": "store",
    "store/scripts/*.lua": "store",
    "archive/codec.py": "archive",
    "archive/manifest.py": "archive",
    "archive/importing.py": "archive",
    "archive/redaction.py": "archive web/routes/test_redaction.py",
    "live/*.py": "live",
    "history/*.py": "history archive",
    "history/scans/*.py": "history web/routes/test_search.py web/routes/test_summary.py",
    "web/guards/*.py": "web/guards web/routes/test_rates.py web/routes/test_bodies.py",
    "web/otlp/*.py": "web/otlp web/routes/test_otlp.py",
    "web/routes/wait.py": "web/routes/test_wait.py",
    "runner/publisher.py": "runner",
    "runner/spool/*.py": "runner",
}
#: Patterns in Lua, and what replaces the first group.
LUA: Final = (
    (r"(==)", "~="),
    (r"(~=)", "=="),
    (r"(<=?)", ">"),
    (r"(>=?)", "<"),
    (r" (and) ", "or"),
    (r" (or) ", "and"),
    (r"(\+ 1)\b", "+ 2"),
    (r"(- 1)\b", "- 2"),
    (r"\b(true)\b", "false"),
    (r"\b(false)\b", "true"),
    (r"(not )", ""),
    (r"^ *(redis\.call\([^()]*\))$", "local _"),
)
#: cosmic-ray's operators that mostly make an equivalent, or what Python refuses at once.
LEFT_OUT: Final = re.compile("BitOr|_Is(Not)?(_|$)|RemoveDecorator|Variable|ExceptionReplacer")
#: Defects that change nothing that anybody could see: the file, the line, and the line with the defect.
EQUIVALENT: Final = {
    # -1 ms becomes 0 at the end of the function.
    (
        "joblog/timelines.py",
        "if min(pauses) < 0 or max(pauses) >= 40_000:",
        "if min(pauses) < -1 or max(pauses) >= 40_000:",
    ),
    # plain_frames() returns no frames, and its caller makes the same ones in the general way.
    ("joblog/entries.py", "number += 1", "pass"),
    # start never exceeds the length.
    ("joblog/model.py", "while start < len(messages):", "while start != len(messages):"),
    # A job that is not known is read from the store.
    (
        "live/replay.py",
        "self._known_job = self._known_job or self.finished or (feed.job if feed else None)",
        "self._known_job = self._known_job or self.finished and (feed.job if feed else None)",
    ),
    # It is compared with a monotonic clock that is later.
    ("web/guards/connection.py", "self._made_room_at = 0.0", "self._made_room_at = -1.0"),
    # Sizes are only compared with each other.
    (
        "joblog/summary.py",
        "hunk.first, hunk.last, hunk.size = min(hunk.first, number), max(hunk.last, number), hunk.size + 1",
        "hunk.first, hunk.last, hunk.size = min(hunk.first, number), max(hunk.last, number), hunk.size + 2",
    ),
    # start() sets it.
    ("runner/publisher.py", "self._must_open = False", "self._must_open = True"),
    # A choice: the bounds of a message and of the whole summary remain.
    ("joblog/summary.py", "MESSAGE_SHARE: Final = 1 / 16", "MESSAGE_SHARE: Final = 2 / 16"),
}


class Defect(NamedTuple):
    path: str
    tests: str
    text: str


def python_defects(source: str) -> Iterator[tuple[tuple[int, int], str, int]]:
    """Where each defect is, its operator, and which of the operator's defects in the file it is."""
    nodes = [*cosmic_ray.ast.ast_nodes(cosmic_ray.ast.get_ast(source))]
    for name in sorted(cosmic_ray.plugins.operator_names()):
        if not LEFT_OUT.search(name):
            operator = cosmic_ray.plugins.get_operator(name)()
            places = [start for node in nodes for start, _ in operator.mutation_positions(node)]
            yield from ((place, name, number) for number, place in enumerate(places))
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.AugAssign | ast.Delete) or (
            isinstance(node, ast.Expr) and isinstance(node.value, ast.Call)
        ):
            yield (node.lineno, node.col_offset), "remove", node.end_lineno or node.lineno


def plant(source: str, place: tuple[int, int], name: str, number: int) -> str:
    """The file with the defect."""
    if name == "remove":
        lines = source.splitlines(keepends=True)
        lines[place[0] - 1 : number] = [lines[place[0] - 1][: place[1]] + "pass\n"]
        return "".join(lines)
    changed: str | None = cosmic_ray.mutating.mutate_code(source, cosmic_ray.plugins.get_operator(name)(), number)
    return changed or source


def lua_defects(source: str) -> Iterator[tuple[tuple[int, int], str]]:
    """Where each defect is, and the file with it."""
    at = 0
    for number, line in enumerate(source.splitlines(keepends=True)):
        for pattern, new in LUA:
            for found in re.finditer(pattern, line.partition("--")[0].rstrip()):
                start, end = (at + each for each in found.span(1))
                yield (number, found.start(1)), source[:start] + new + source[end:]
        at += len(line)


def choose(seed: int, size: int, words: list[str]) -> list[Defect]:
    """``size`` places of all, each with one of its defects."""
    choice = random.Random(seed)
    places: dict[tuple[str, str, tuple[int, int]], list[tuple[str, int]]] = {}
    for pattern, tests in TARGETS.items():
        for path in sorted((ROOT / "chronoverse").glob(pattern)):
            name, source = str(path.relative_to(ROOT / "chronoverse")), path.read_text("utf-8")
            if words and not any(word in name for word in words):
                continue
            if path.suffix == ".lua":
                for place, text in lua_defects(source):
                    places.setdefault((name, tests, place), []).append((text, -1))
            else:
                for place, operator, number in python_defects(source):
                    places.setdefault((name, tests, place), []).append((operator, number))
    defects = []
    for name, tests, place in choice.sample(sorted(places), min(size, len(places))):
        operator, number = choice.choice(places[name, tests, place])
        text = operator
        if number >= 0:
            text = plant((ROOT / "chronoverse" / name).read_text("utf-8"), place, operator, number)
            try:
                ast.parse(text)
            except SyntaxError:
                continue
        defects.append(Defect(name, tests, text))
    return defects


def tests_fail(tree: Path, python: str, *arguments: str) -> bool:
    """Whether a test fails in ``tree``."""
    command = [python, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *arguments]
    try:
        done = subprocess.run(command, cwd=tree, stdin=subprocess.DEVNULL, capture_output=True, timeout=TEST_SECONDS)
    except subprocess.TimeoutExpired:
        return True
    return done.returncode != 0


def copy_tree(directory: Path) -> None:
    names = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True).stdout
    for name in filter(None, names.decode().split("\0")):
        if (ROOT / name).is_file():
            (directory / name).parent.mkdir(parents=True, exist_ok=True)
            (directory / name).write_bytes((ROOT / name).read_bytes())


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--sample", type=int, default=300)
    parser.add_argument("--words", nargs="*", default=[], help="only files whose paths contain one of these")
    parser.add_argument("--package-tests", action="store_true", help="never run all tests")
    parser.add_argument("--list", action="store_true", help="run no tests; print the diffs of all")
    parser.add_argument("--python", default=str(ROOT / ".venv/bin/python"), help="runs the tests")
    parser.add_argument("--processes", default="2", help="processes for the tests of one package")
    asked = parser.parse_args()
    planted, found = Counter[str](), Counter[str]()
    with tempfile.TemporaryDirectory(prefix="cv-") as directory:
        tree = Path(directory)
        copy_tree(tree)
        for defect in choose(asked.seed, asked.sample, asked.words):
            path = tree / "chronoverse" / defect.path
            clean = path.read_text("utf-8")
            diff = [*difflib.unified_diff(clean.splitlines(), defect.text.splitlines(), lineterm="", n=1)][2:]
            old, new = (next((line[1:].strip() for line in diff if line[0] == sign), "") for sign in "-+")
            if (defect.path, old, new) in EQUIVALENT:
                continue
            package = str(Path(defect.path).parent)
            planted[package] += 1
            path.write_text(defect.text, "utf-8")
            tests = [f"tests/{name}" for name in defect.tests.split()]
            is_found = not asked.list and tests_fail(tree, asked.python, "-n", asked.processes, *tests)
            if not (is_found or asked.package_tests or asked.list):
                is_found = tests_fail(tree, asked.python)
            path.write_text(clean, "utf-8")
            found[package] += is_found
            answer = f"{'found' if is_found else 'NOT FOUND'}: {defect.path}"
            print(answer, *([] if is_found else diff), sep="\n", flush=True)
    for package in sorted(planted):
        print(f"{package}: {found[package]} of {planted[package]}")
    print(f"{found.total()} of {planted.total()} found")


if __name__ == "__main__":
    main()
