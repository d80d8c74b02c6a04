"""Runs tests in a process that gevent has patched before any other import. Accepts pytest's options.

gevent replaces sockets, locks, threads and sleeping. So these are the tests of code that waits for one of them inside a
worker, or inside a program that uses ``chronoverse.api``. Modules are listed individually, and of some modules only the
test with threads. Others would find nothing:

* The service always runs under gevent. Commands, runners, archivers and the scan server are processes without it.
* Code that computes, or keeps its state in one thread, uses nothing that was replaced.
* Each operation of the store is one request of the same driver. How requests wait, fail and find their server is tested
  here; their effect on the data is not.
"""

from gevent import monkey

monkey.patch_all()

import sys
from typing import Final

import pytest

#: Folders, modules and tests below ``tests/``.
CHOSEN: Final = (
    "archive/test_caches.py",
    "archive/test_reader.py::test_several_readers_read_a_frame_once",
    "auth/test_jwks.py",
    "history/scans/test_client.py",
    "test_fair_lock.py",
    "live/test_feed.py::test_a_line_that_several_threads_publish_is_in_the_ring_once",
    "live/test_replay_cache.py",
    "live/test_tail.py",
    "runner/test_api.py",
    "runner/test_durability.py",
    "runner/test_http_log_writer.py",
    "runner/test_publisher.py",
    "store/test_cluster.py",
    "store/test_durability.py",
    "store/test_live_reader.py",
    "store/test_redis_tls.py",
    "store/test_sentinel.py",
    "store/test_store_faults.py",
    "web/guards/test_connection.py",
    "web/streaming",
    "web/test_worker.py",
)

if __name__ == "__main__":
    # pytest-xdist would start processes that are not patched.
    sys.exit(pytest.main(["-n", "0", *sys.argv[1:], *(f"tests/{name}" for name in CHOSEN)]))
