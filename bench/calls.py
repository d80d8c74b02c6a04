"""Notes which functions of ``chronoverse/`` each test calls, also in the processes that it starts.

``bench/mutants.py`` copies this file to ``sitecustomize.py``, and loads it as a plugin of pytest. It appends lines of
three fields, separated by tabs, to the file ``MUTANTS_CALLS``:

    the test (its file, for calls in other processes)   the module   the first line of the called function
    ``took``                                            the test     seconds
    ``failed``                                          the test     (empty)

``MUTANTS_TESTS`` is a file with the tests to run, in its order. Without it, all tests run.

PYTEST_DONT_REWRITE
"""

import os
import sys
import threading
from typing import Any

ROOT = os.path.dirname(os.path.abspath(__file__)) + "/"
OUTPUT = os.environ.get("MUTANTS_CALLS", "")
#: Code objects by id. They are kept, so that no other object gets the same id.
seen = dict[int, Any]()
test = os.environ.get("MUTANTS_TEST", "")


def note(*fields: object) -> None:
    """Appends a line at once, so that a killed process leaves its notes."""
    output = os.open(OUTPUT, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    os.write(output, ("\t".join(map(str, fields)) + "\n").encode())
    os.close(output)


def trace(frame: Any, event: str, argument: object) -> None:
    """Called for each call of a function of Python."""
    code = frame.f_code
    if id(code) not in seen:
        seen[id(code)] = code
        if code.co_filename.startswith(ROOT + "chronoverse/") and test:
            note(test, code.co_filename.removeprefix(ROOT + "chronoverse/"), code.co_firstlineno)


def pytest_runtest_setup(item: Any) -> None:
    """Notes the test that begins."""
    global test
    test, os.environ["MUTANTS_TEST"] = item.nodeid, item.nodeid.partition("::")[0]
    seen.clear()
    # A test that makes every call fail, or sets its own trace function, may have ended the tracing.
    if OUTPUT:
        sys.settrace(trace)


def pytest_runtest_teardown(item: Any, nextitem: Any) -> None:
    """After a file of tests, tears down what the files share, so that each file has its own servers."""
    if OUTPUT and (nextitem is None or nextitem.path != item.path):
        item.session._setupstate.teardown_exact(None)


def pytest_collection_modifyitems(items: list[Any]) -> None:
    """Leaves only the tests that were asked for, in their order."""
    if "MUTANTS_TESTS" in os.environ:
        with open(os.environ["MUTANTS_TESTS"], encoding="utf-8") as names:
            places = {name: place for place, name in enumerate(names.read().splitlines())}
        items[:] = sorted((item for item in items if item.nodeid in places), key=lambda item: places[item.nodeid])


def pytest_runtest_logreport(report: Any) -> None:
    """Notes how long a test takes, and whether it fails without a defect."""
    if OUTPUT and "PYTEST_XDIST_WORKER" in os.environ:
        note("took", report.nodeid, report.duration)
        if report.failed:
            note("failed", report.nodeid, "")


if OUTPUT:
    threading.settrace(trace)
    sys.settrace(trace)
