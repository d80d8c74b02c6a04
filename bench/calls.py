"""Records which functions of ``chronoverse/`` each test calls, including calls in the processes that it starts.

``bench/mutants.py`` copies this file to ``sitecustomize.py``, and loads it as a pytest plugin. It appends tab-separated
lines of three fields to the file ``MUTANTS_CALLS``:

    the test (its file, for calls in other processes)   the module   the first line of the called function
    ``took``                                            the test     seconds
    ``failed``                                          the test     (empty)

``MUTANTS_TESTS`` is a file with the tests to run, in order. By default, all tests run.

PYTEST_DONT_REWRITE
"""

import os
import sys
import threading
from typing import Any

ROOT = os.path.dirname(os.path.abspath(__file__)) + "/"
OUTPUT = os.environ.get("MUTANTS_CALLS", "")
#: Code objects by id, kept so that no id is reused.
seen = dict[int, Any]()
test = os.environ.get("MUTANTS_TEST", "")


def note(*fields: object) -> None:
    """Appends a line immediately, so that a killed process leaves its records."""
    output = os.open(OUTPUT, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    os.write(output, ("\t".join(map(str, fields)) + "\n").encode())
    os.close(output)


def trace(frame: Any, event: str, argument: object) -> None:
    """Called by Python for each function call."""
    code = frame.f_code
    if id(code) not in seen:
        seen[id(code)] = code
        if code.co_filename.startswith(ROOT + "chronoverse/") and test:
            note(test, code.co_filename.removeprefix(ROOT + "chronoverse/"), code.co_firstlineno)


def pytest_runtest_setup(item: Any) -> None:
    """Records the test that begins."""
    global test
    test, os.environ["MUTANTS_TEST"] = item.nodeid, item.nodeid.partition("::")[0]
    seen.clear()
    # A test that makes every call fail, or sets its own trace function, may have stopped the tracing.
    if OUTPUT:
        sys.settrace(trace)


def pytest_runtest_teardown(item: Any, nextitem: Any) -> None:
    """After each file of tests, tears down its shared fixtures, so that each file has its own servers."""
    if OUTPUT and (nextitem is None or nextitem.path != item.path):
        item.session._setupstate.teardown_exact(None)


def pytest_collection_modifyitems(items: list[Any]) -> None:
    """Keeps only the requested tests, in their order."""
    if "MUTANTS_TESTS" in os.environ:
        with open(os.environ["MUTANTS_TESTS"], encoding="utf-8") as names:
            places = {name: place for place, name in enumerate(names.read().splitlines())}
        items[:] = sorted((item for item in items if item.nodeid in places), key=lambda item: places[item.nodeid])


def pytest_runtest_logreport(report: Any) -> None:
    """Records a test's duration, and whether it fails without a defect."""
    if OUTPUT and "PYTEST_XDIST_WORKER" in os.environ:
        note("took", report.nodeid, report.duration)
        if report.failed:
            note("failed", report.nodeid, "")


if OUTPUT:
    threading.settrace(trace)
    sys.settrace(trace)
