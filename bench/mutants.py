"""Checks the tests: plants random defects, one at a time, and reports which ones the default test run finds.

    make mutants SEED=1 SAMPLE=30
    make mutants SEED=1 SAMPLE=30 MUTANTS="--words auth live"

cosmic-ray, in its own virtual environment, plants the defects in Python. :data:`LUA`, :data:`SCRIPT` and the removal of
statements add others. First, the whole default run records which functions each test calls (:mod:`bench.calls`). Then,
for each defect, the tests that call its function run until one fails: those of its package first, the fastest files
first. A defect survives if no test fails in up to ``--seconds`` of such tests.

Prints the survivors' diffs, and the number of defects found, by package. Omits survivors in :data:`EQUIVALENT`.
Plants no defects in log messages, in ``__repr__``, or in the numbers of constants and defaults, which are choices.
"""

import argparse
import ast
import difflib
import os
import queue
import random
import re
import signal
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final, NamedTuple

import cosmic_ray.ast
import cosmic_ray.mutating
import cosmic_ray.plugins

ROOT: Final = Path(__file__).parents[1]
#: Timeout of a defect's tests, in seconds. A defect that makes tests hang is found.
TEST_SECONDS: Final = 240
#: A defect's first tests, up to this many recorded seconds, run alone, so that they need not import the others.
FIRST_SECONDS: Final = 8.0
#: The default files for defects: those that make decisions.
DECIDES: Final = (
    *("joblog/", "auth/rights", "auth/tokens", "store/replies", "store/scripts", "history/"),
    *("archive/codec", "archive/manifest", "archive/importing", "archive/redaction"),
    *("live/feed", "live/tail", "live/viewer", "live/replay", "web/guards", "web/otlp", "web/routes/wait"),
    *("runner/spool", "runner/publisher"),
)
#: The folders of ``tests/`` that come first for a package's defects, if not the folder with its name.
NEAR: Final = {
    "store/scripts": ["store", "archive", "live"],
    "web/static/client": ["page", "clients"],
    "web/static": ["page"],
}
#: Patterns in Lua, and the replacements of their first groups.
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
#: Patterns in JavaScript.
SCRIPT: Final = (
    (r"(===)", "!=="),
    (r"(!==)", "==="),
    (r" (<=?) ", ">"),
    (r" (>=?) ", "<"),
    (r" (&&) ", "||"),
    (r" (\|\||\?\?) ", "&&"),
    (r"(\+ 1)\b", "+ 2"),
    (r"(- 1)\b", "- 2"),
    (r"\b(true)\b", "false"),
    (r"\b(false)\b", "true"),
    (r"(!)[\w(]", ""),
    (r"^ *([\w.]+\([^()]*\);)$", ";"),
)
#: cosmic-ray's operators whose defects mostly change nothing, or are syntax errors.
LEFT_OUT: Final = re.compile("BitOr|_Is(Not)?(_|$)|RemoveDecorator|Variable|ExceptionReplacer")
#: The text before a value that is only a check or a hint.
FLAGS: Final = re.compile("(strict|usedforsecurity|daemon|slots|kw_only)=$")
#: Defects without any visible effect: the file, and part of the line with the defect.
EQUIVALENT: Final = {
    # -1 ms becomes 0 at the end of the function.
    ("joblog/timelines.py", "if min(pauses) < -1 or max(pauses) >= 40_000:"),
    # No entry: a maximum with other numbers follows.
    ("store/replies.py", "last = min(entry_number(last_id), MAX_NUMBER) if last_id else -1"),
    # The byte before the last newline is a bracket.
    ("archive/codec.py", 'if text.rfind(b"\\n", 0, ~1) > 2 * FRAME_BYTES:'),
    ("archive/codec.py", 'if text.rfind(b"\\n", 0, - 2) > 2 * FRAME_BYTES:'),
    # Any text that is too long is rejected; the memory limit is one byte higher.
    ("archive/codec.py", "max_length=frame.text_size + 2)"),
    # Only an optimization: lines outside the range are never changed.
    ("archive/codec.py", "if numbers.start <= frame.last or frame.first < numbers.stop else []"),
    # Tuning: when a lease is renewed, a delay is printed and pauses are dropped; segments; unread input.
    ("runner/publisher.py", "self._renew_seconds = self.lease_seconds / 2"),
    ("runner/publisher.py", "unconfirmed = 1"),
    ("joblog/timelines.py", "if len(self._longest) > 3 * _MAX_LONGEST:"),
    ("live/replay_cache.py", "cut = size > MAX_SEGMENT_BYTES"),
    ("live/feed.py", "SLICE_STEP_BYTES: Final = 126 * 2<<10"),
    ("web/guards/connection.py", "sock.recv(64 * 2<<10)"),
    # Three bytes are examined, and the general path reads the same as the fast one.
    ("joblog/line_splitter.py", "else 5 if 0xF0 <= byte < 0xF5 else 1"),
    # Versions start at 0.
    ("live/feed.py", "self._job_version = -1"),
    # Such a short answer is not limited.
    ("web/guards/memory.py", "size = (response.calculate_content_length() or 0) if has_bytes else -1"),
    # A fast path or optimization. The general path gives the same result.
    ("web/otlp/decoding.py", "len(content) < 1 * SLICE_BYTES"),
    ("web/otlp/decoding.py", "len(content) < 2 & SLICE_BYTES"),
    ("history/scans/matches.py", "if self._following_count == self._leading_count == -1:"),
    ("history/scans/profile_scan.py", "lines = list(islice(chain.from_iterable(batch.lines for batch in batches), 3))"),
    ("joblog/shapes.py", "is_word = (not start or text[start - 0] in _BEFORE_ID)"),
    # Alike records are at least two, and have one severity.
    ("web/otlp/records.py", "numbers, severity = records.others.get(_NUMBER, ()), severities[ 1] if severities else 0"),
    # All chains begin with the same value.
    ("archive/importing.py", "_Chain(0, (0, 0, -1), None, None)"),
    ("archive/importing.py", "_Chain(0, (0, -1, 0), None, None)"),
    # The archive's lines have no hole.
    ("live/tail.py", "if feed.job is None or not in_archive(feed.job, before ^ 1) or feed.cursor != before:"),
    # All severities below 17 are equivalent.
    ("web/otlp/columns.py", "severities = self.severities or repeat( 1)"),
    # The version is a small number.
    ("joblog/timelines.py", "if max(*values[ 0:7], *largest) > _LARGEST:"),
    # Entries in sequence have no gap that could start there.
    ("live/replay_cache.py", "segment = make_segment(entries, cursor, 0, line_filter) if entries else None"),
    # Numbers are ascending.
    ("joblog/timelines.py", "or following.number <= there.number + 1"),
    # Any number is lower than the default.
    ("joblog/shapes.py", "if number < self.first.get(shape, number + 2):"),
    # No string is less than an empty one.
    ("joblog/terminal.py", 'colour_is_on = parameters.strip("0") > ""'),
    # start never exceeds the length.
    ("joblog/model.py", "while start != len(messages):"),
    # An unknown job is read from the store.
    ("live/replay.py", "self._known_job = self._known_job or self.finished and (feed.job if feed else None)"),
    # Compared with a later monotonic clock.
    ("web/guards/connection.py", "self._made_room_at = -1.0"),
    # Sizes are only compared with each other.
    ("joblog/summary.py", "max(hunk.last, number), hunk.size + 2"),
    # The path for longer numbers also reads single bytes.
    ("web/otlp/decoding.py", "if size > 126:"),
    # A lease token is only compared with that of the same job: any other unguessable one is as good.
    ("collect/container_log.py", 'self._begin({**self._saved, "job": job, **changes})'),
    # Tuning: the limits of a message and of the whole summary remain.
    ("joblog/summary.py", "return max(80, min(MAX_MESSAGE, round(max_bytes / 17)))"),
}


class Defect(NamedTuple):
    """A file below ``chronoverse/``. ``clean`` and ``text`` are its whole content, without and with the defect."""

    path: str
    line: int
    clean: str
    text: str


def python_defects(source: str) -> Iterator[tuple[tuple[int, int], str, int]]:
    """Yields each defect's place, its operator, and its index among the operator's defects in the file."""
    unseen, constants = set[int](), set[int]()
    for node in ast.walk(ast.parse(source)):
        lines = range(getattr(node, "lineno", 0), getattr(node, "end_lineno", 0) + 1)
        if (isinstance(node, ast.FunctionDef) and node.name == "__repr__") or (
            isinstance(node, ast.Expr) and re.match(r"_?log(ger)?\.", ast.unparse(node))
        ):
            unseen.update(lines)
        elif isinstance(node, ast.AnnAssign) and "Final" in ast.unparse(node.annotation):
            constants.update(lines)
        elif isinstance(node, ast.arguments):
            constants.update(each.lineno for each in [*node.defaults, *node.kw_defaults] if each)
    lines_of = ["", *source.splitlines()]
    nodes = [*cosmic_ray.ast.ast_nodes(cosmic_ray.ast.get_ast(source))]
    for name in sorted(cosmic_ray.plugins.operator_names()):
        if not LEFT_OUT.search(name):
            operator = cosmic_ray.plugins.get_operator(name)()
            places = [start for node in nodes for start, _ in operator.mutation_positions(node)]
            left_out = unseen | constants if re.match("core/(Number|ReplaceUnary)", name) else unseen
            for at, place in enumerate(places):
                if place[0] not in left_out and not FLAGS.search(lines_of[place[0]][: place[1]]):
                    yield place, name, at
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.AugAssign | ast.Delete) or (
            isinstance(node, ast.Expr) and isinstance(node.value, ast.Call) and node.lineno not in unseen
        ):
            yield (node.lineno, node.col_offset), "remove", node.end_lineno or node.lineno


def plant(source: str, place: tuple[int, int], name: str, number: int) -> str:
    """The file's content with the defect."""
    if name == "remove":
        lines = source.splitlines(keepends=True)
        lines[place[0] - 1 : number] = [lines[place[0] - 1][: place[1]] + "pass\n"]
        return "".join(lines)
    changed: str | None = cosmic_ray.mutating.mutate_code(source, cosmic_ray.plugins.get_operator(name)(), number)
    return changed or source


def text_defects(source: str, patterns: tuple[tuple[str, str], ...], comment: str) -> Iterator[tuple[int, int, str]]:
    """Yields the line and column of each defect of a script, and the file's content with it."""
    at = 0
    for number, line in enumerate(source.splitlines(keepends=True), 1):
        for pattern, new in patterns:
            for found in re.finditer(pattern, line.partition(comment)[0].rstrip()):
                start, end = (at + each for each in found.span(1))
                yield number, found.start(1), source[:start] + new + source[end:]
        at += len(line)


def choose(seed: int, size: int, words: Sequence[str]) -> list[Defect]:
    """``size`` random places, each with one of its possible defects."""
    choice = random.Random(seed)
    places: dict[tuple[str, tuple[int, int]], list[tuple[str, int]]] = {}
    for path in sorted((ROOT / "chronoverse").rglob("*")):
        name = str(path.relative_to(ROOT / "chronoverse"))
        if "/vendor/" in name or (words and not any(word in name for word in words)):
            continue
        if path.suffix == ".py":
            for place, operator, number in python_defects(path.read_text("utf-8")):
                places.setdefault((name, place), []).append((operator, number))
        elif path.suffix in (".lua", ".js"):
            patterns, comment = (LUA, "--") if path.suffix == ".lua" else (SCRIPT, "//")
            for line, column, text in text_defects(path.read_text("utf-8"), patterns, comment):
                places.setdefault((name, (line, column)), []).append((text, -1))
    defects = []
    for name, place in choice.sample(sorted(places), min(size, len(places))):
        operator, number = choice.choice(places[name, place])
        text, clean = operator, (ROOT / "chronoverse" / name).read_text("utf-8")
        if number >= 0:
            text = plant(clean, place, operator, number)
            try:
                ast.parse(text)
            except SyntaxError:
                continue
        defects.append(Defect(name, place[0], clean, text))
    return defects


class Calls:
    """The records of :mod:`bench.calls`."""

    def __init__(self, notes: str) -> None:
        self._callers: dict[tuple[str, int], set[str]] = {}
        self._files: dict[str, dict[str, float]] = {}
        failed = set[str]()
        for first, second, third in (line.split("\t") for line in notes.splitlines()):
            if first == "took":
                tests = self._files.setdefault(second.partition("::")[0], {})
                tests[second] = tests.get(second, 0.0) + float(third)
            elif first == "failed":
                failed.add(second)
            else:
                self._callers.setdefault((second, int(third)), set()).add(first)
        for tests in self._files.values():
            for name in failed & set(tests):
                del tests[name]

    @staticmethod
    def _runs(script: str) -> list[tuple[str, int, str]]:
        """Where a script's name stands in the store: path, line, and the whole file."""
        return [
            (f"store/{path.name}", number, text)
            for path in (ROOT / "chronoverse/store").glob("*.py")
            if path.name != "driver.py"
            for text in [path.read_text("utf-8")]
            for number, line in enumerate(text.splitlines(), 1)
            if f'"{Path(script).stem}"' in line and script.endswith(".lua")
        ]

    def tests(self, defect: Defect, most_seconds: float) -> list[list[str]]:
        """The tests to run, in one or two runs."""
        folder = str(Path(defect.path).parent)
        near = next((names for start, names in NEAR.items() if folder.startswith(start)), [folder.partition("/")[0]])
        calling = set(self._files)
        # Scripts run in the store: their callers are the functions that name them.
        places = [(defect.path, defect.line, defect.clean)] if defect.path.endswith(".py") else self._runs(defect.path)
        if places:
            calling = set()
            for path, at, text in places:
                starts = [
                    min([node.lineno, *(each.lineno for each in node.decorator_list)])
                    for node in ast.walk(ast.parse(text))
                    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
                    if node.lineno <= at <= (node.end_lineno or 0)
                ]
                calling |= self._callers.get((path, max(starts, default=at)), set())
            # A process with its own environment records nothing.
            calling = calling or {name for name in self._files if name.split("/")[1] in near}
        chosen = {
            file: {name: seconds for name, seconds in tests.items() if {file, name} & calling}
            for file, tests in self._files.items()
        }

        def order(name: str) -> tuple[int, float]:
            package = name.split("/")[1]
            return near.index(package) if package in near else len(near), sum(chosen[name].values())

        runs: list[list[str]] = [[], []]
        seconds = 0.0
        for name in sorted(filter(chosen.get, chosen), key=order):
            for test, took in sorted(chosen[name].items(), key=lambda item: item[1] > 5):
                seconds += took
                if seconds < most_seconds:
                    runs[seconds > FIRST_SECONDS].append(test)
        return [*filter(None, runs)]


def run_tests(tree: Path, python: str, *arguments: str, **environ: str) -> bool:
    """Whether any test fails in ``tree``."""
    command = [python, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "sitecustomize", *arguments]
    environ = os.environ | {"PYTHONPATH": str(tree)} | environ
    with subprocess.Popen(
        command, cwd=tree, env=environ, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:
        try:
            return process.wait(None if arguments == () else TEST_SECONDS) != 0
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGINT)
            return True


def copy_tree(directory: Path) -> None:
    """Copies the tree to ``directory``, except files that git ignores."""
    names = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True).stdout
    for name in filter(None, names.decode().split("\0")):
        if (ROOT / name).is_file():
            (directory / name).parent.mkdir(parents=True, exist_ok=True)
            (directory / name).write_bytes((ROOT / name).read_bytes())
    (directory / "sitecustomize.py").write_bytes((ROOT / "bench/calls.py").read_bytes())


def main() -> None:
    """Runs what the arguments ask for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--sample", type=int, default=120)
    parser.add_argument("--words", nargs="*", default=DECIDES, help="only files whose paths contain one of these")
    parser.add_argument("--list", action="store_true", help="run no tests; print the diffs of all")
    parser.add_argument("--python", default=str(ROOT / ".venv/bin/python"), help="runs the tests")
    parser.add_argument("--calls", type=Path, default=ROOT / ".mutants/calls", help="kept from run to run")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=120.0, help="noted seconds of the tests of one defect")
    asked = parser.parse_args()
    planted, found = Counter[str](), Counter[str]()
    with tempfile.TemporaryDirectory(prefix="cv-") as directory, ThreadPoolExecutor(asked.processes) as threads:
        trees = queue.SimpleQueue[Path]()
        for number in range(asked.processes):
            copy_tree(Path(directory, str(number)))
            trees.put(Path(directory, str(number)))
        if not (asked.list or asked.calls.exists()):
            tree = trees.get()
            run_tests(tree, asked.python, MUTANTS_CALLS=str(asked.calls.absolute()))
            trees.put(tree)
        calls = Calls("" if asked.list else asked.calls.read_text("utf-8"))

        def judge(defect: Defect) -> tuple[Defect, list[str], bool]:
            diff = [*difflib.unified_diff(defect.clean.splitlines(), defect.text.splitlines(), lineterm="", n=1)][2:]
            runs = [] if asked.list else calls.tests(defect, asked.seconds)
            if not runs:
                return defect, diff, False
            tree = trees.get()
            (tree / "chronoverse" / defect.path).write_text(defect.text, "utf-8")
            is_found = False
            for tests in runs:
                (tree / "tests.txt").write_text("\n".join(tests), "utf-8")
                files = dict.fromkeys(name.partition("::")[0] for name in tests)
                is_found = is_found or run_tests(
                    tree, asked.python, "-x", "-n0", *files, MUTANTS_TESTS=str(tree / "tests.txt")
                )
            (tree / "chronoverse" / defect.path).write_text(defect.clean, "utf-8")
            trees.put(tree)
            return defect, diff, is_found

        for defect, diff, is_found in threads.map(judge, choose(asked.seed, asked.sample, asked.words)):
            planted_line = next((line[1:].strip() for line in diff if line[0] == "+"), "")
            if any(defect.path == path and part in planted_line for path, part in EQUIVALENT):
                continue
            package = str(Path(defect.path).parent)
            planted[package] += 1
            found[package] += is_found
            answer = f"{'found' if is_found else 'NOT FOUND'}: {defect.path}"
            print(answer, *([] if is_found else diff), sep="\n", flush=True)
    for package in sorted(planted):
        print(f"{package}: {found[package]} of {planted[package]}")
    print(f"{found.total()} of {planted.total()} found")


if __name__ == "__main__":
    main()
