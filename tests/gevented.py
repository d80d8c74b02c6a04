"""Runs tests in a process that gevent has patched before anything else is imported. Takes pytest's arguments.

What runs in another process is left out: the service always runs under gevent, and commands and the scan server never
do. So their code is left out, too: capturing and delivering output, the archiver, scans, and the HTTP client.
What ``chronoverse.api`` offers stays, because a program that uses gevent may import it. Code without I/O is left out,
since it is the same there, and so are Celery's workers, the embedded server's supervisor, and the tests' own tools.
"""

from gevent import monkey

monkey.patch_all()

import sys
from typing import Final

import pytest

LEFT_OUT: Final = (
    "archive/test_archiver.py",
    "archive/test_archiver_machine.py",
    "archive/test_search.py",
    "archive/test_derived.py",
    "archive/test_store_history.py",
    "browser",
    "cli",
    "client",
    "clients",
    "deploy",
    "embedded",
    "faults",
    "history/scans/test_app.py",
    "history/scans/test_comparison.py",
    "history/scans/test_past_runs.py",
    "history/scans/test_profile_scan.py",
    "history/scans/test_summary_scan.py",
    "history/scans/test_workflow_scan.py",
    "integrations",
    "joblog",
    "runner/test_capture.py",
    "runner/test_line_assembler.py",
    "runner/test_lost_lines.py",
    "runner/test_masked_run.py",
    "runner/test_masking.py",
    "runner/test_progress_filter.py",
    "runner/test_pseudoterminal.py",
    "runner/test_refused_runs.py",
    "runner/test_resend.py",
    "runner/test_resend_ended.py",
    "runner/test_runner.py",
    "runner/test_spool_hostile.py",
    "settings",
    "system",
    "test_architecture.py",
    "test_bench.py",
    "test_causes.py",
    "test_faultproxy.py",
    "test_pauses.py",
    "test_reruns.py",
    "web/otlp",
    "web/routes",
)

if __name__ == "__main__":
    left_out = [f"--ignore=tests/{name}" for name in LEFT_OUT]
    # pytest-xdist would start processes that are not patched.
    sys.exit(pytest.main(["-n", "0", *left_out, *sys.argv[1:]]))
