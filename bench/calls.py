"""Notes which functions of ``chronoverse/`` the tests of each file call, also in the processes that they start.

``bench/mutants.py`` copies it to ``sitecustomize.py`` and names it to pytest as a plugin. It appends to the file that
``MUTANTS_CALLS`` names, in lines of three fields: a test file, a module and the first line of a function; or ``took``,
a test file and seconds; or ``failed``, a test file and a test.

PYTEST_DONT_REWRITE
"""

import os
import sys
import threading
from typing import Any

ROOT = os.path.dirname(os.path.abspath(__file__)) + "/"
OUTPUT = os.environ.get("MUTANTS_CALLS", "")
#: By their ids; kept, so no other gets the same id.
seen = dict[int, Any]()
test = os.environ.get("MUTANTS_TEST", "")


def note(*fields: object) -> None:
    """Appends a line. So the notes of a process that is killed are kept."""
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
    """Notes the file of the test that begins."""
    global test
    name = item.nodeid.partition("::")[0]
    if name != test:
        test = os.environ["MUTANTS_TEST"] = name
        seen.clear()
    # A test that lets every call fail, or traces for itself, may have ended it.
    if OUTPUT:
        sys.settrace(trace)


def pytest_runtest_teardown(item: Any, nextitem: Any) -> None:
    """Ends what the files share, so each has servers of its own."""
    if nextitem is None or nextitem.path != item.path:
        item.session._setupstate.teardown_exact(None)


def pytest_runtest_logreport(report: Any) -> None:
    """Notes how long a test takes, and whether it fails without a defect."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        name = report.nodeid.partition("::")[0]
        note("took", name, report.duration)
        if report.failed:
            note("failed", name, report.nodeid)


if OUTPUT:
    threading.settrace(trace)
    sys.settrace(trace)
