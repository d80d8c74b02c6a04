"""Runs the module of ``clients/js`` like its users: packed by npm, in Node.js, and in a page of another origin."""

import http.server
import json
import select
import shutil
import subprocess
import tarfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol

from tests.support.service import ROOT
from tests.support.tools import tool

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

HERE: Final = Path(__file__).parent
PACKAGE: Final = ROOT / "clients" / "js"
#: Time limit of a scenario and of npm on a busy machine, in seconds.
PATIENCE_SECONDS: Final = 60.0

_PAGE: Final = """<!doctype html><title>Another origin</title><link rel="icon" href="data:,">
<script type="module">
import * as chronoverse from "./node_modules/chronoverse/index.js";
import * as scenarios from "./scenarios.mjs";
window.readings = [];
window.start = (name, given) => window.readings.push(scenarios[name](chronoverse, given)) - 1;
</script>
"""


class Reading(Protocol):
    """A running scenario. See scenarios.mjs."""

    def result(self) -> dict[str, Any]:
        """Waits for the scenario's result."""


class Engine(Protocol):
    """Where the module runs."""

    def start(self, scenario: str, **given: Any) -> Reading:
        """Starts a scenario with these options."""


def install(directory: Path) -> list[str]:
    """Packs the module, and unpacks it where programs in ``directory`` find it. Returns the names of its files."""
    command = [tool("npm"), "pack", "--json", "--pack-destination", str(directory)]
    done = subprocess.run(command, cwd=PACKAGE, capture_output=True, check=True, timeout=PATIENCE_SECONDS)
    (packed,) = json.loads(done.stdout)
    target = directory / "node_modules" / "chronoverse"
    with tarfile.open(directory / packed["filename"]) as archive:
        archive.extractall(directory, filter="data")
    target.parent.mkdir()
    (directory / "package").rename(target)
    for name in ("run.mjs", "scenarios.mjs", "types.ts"):
        shutil.copy(HERE / name, directory)
    (directory / "index.html").write_text(_PAGE)
    return sorted(file["path"] for file in packed["files"])


class Node:
    """Runs scenarios in one process of Node.js. Each result is read by the thread that asks for it."""

    def __init__(self, directory: Path) -> None:
        command = [tool("node"), "--expose-gc", "run.mjs"]
        self._process = subprocess.Popen(
            command, cwd=directory, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0
        )
        self._started = 0
        self._seen: dict[int, dict[str, Any]] = {}

    def start(self, scenario: str, **given: Any) -> "NodeReading":
        """Starts a scenario."""
        assert self._process.stdin is not None
        self._started += 1
        self._process.stdin.write(json.dumps([self._started, scenario, given]).encode() + b"\n")
        return NodeReading(self, self._started)

    def result(self, number: int) -> dict[str, Any]:
        """The result of the scenario with this number."""
        assert self._process.stdout is not None
        while number not in self._seen:
            assert select.select([self._process.stdout], [], [], PATIENCE_SECONDS)[0], "the scenario is not over"
            found, seen = json.loads(self._process.stdout.readline())
            self._seen[found] = seen
        return self._seen.pop(number)

    def close(self) -> None:
        """Lets the process end. It must do so immediately: nothing left by the module may keep it alive."""
        try:
            self._process.communicate(timeout=PATIENCE_SECONDS)
            assert self._process.returncode == 0
        finally:
            self._process.kill()
            self._process.wait()


class NodeReading:
    """A scenario in Node.js."""

    def __init__(self, node: Node, number: int) -> None:
        self._node = node
        self._number = number

    def result(self) -> dict[str, Any]:
        """The result. The process continues."""
        return self._node.result(self._number)


class PageReading:
    """A scenario in a page."""

    def __init__(self, page: "Page", number: int) -> None:
        self._page = page
        self._number = number

    def result(self) -> dict[str, Any]:
        """The result."""
        seen: dict[str, Any] = self._page.evaluate("number => window.readings[number]", self._number)
        return seen


class Chromium:
    """Runs scenarios in one page of ``origin``."""

    def __init__(self, browser: "Browser", origin: str) -> None:
        self._page = browser.new_page()
        self._page.goto(f"{origin}/index.html")
        self._page.wait_for_function("() => window.start")

    def start(self, scenario: str, **given: Any) -> PageReading:
        """Starts a scenario."""
        started = self._page.evaluate("([scenario, given]) => window.start(scenario, given)", [scenario, given])
        return PageReading(self._page, started)

    def close(self) -> None:
        """Closes the page."""
        self._page.close()


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        pass


@contextmanager
def serving_files(directory: Path) -> Iterator[str]:
    """Serves a directory on its own port. Yields the origin."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(_Quiet, directory=str(directory))) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()
