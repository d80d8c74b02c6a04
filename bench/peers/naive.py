"""The service's frames from the service's server, without its shared tail."""

import contextlib
import os
import sys
from importlib.metadata import version

from bench.peers.ours import LOG, NOISE
from bench.peers.store import StorePeer, start_store, store_version
from bench.processes import ROOT, free_port, listens, running
from bench.reference import Grammar


class Naive(StorePeer):
    """One blocking XREAD per viewer."""

    name = "naive"
    about = "gunicorn with gevent as the service, but one blocking XREAD per viewer"
    grammar = Grammar(LOG, NOISE)

    def start(self, stack: contextlib.ExitStack) -> None:
        self.url, store = start_store(self.folder, stack)
        self.port = free_port()
        argv = [sys.executable, "-m", "gunicorn", "-c", os.devnull, "-k", "gevent", "--worker-connections", "20000"]
        argv += ["-w", "1", "-b", f"127.0.0.1:{self.port}", "--no-control-socket", "--timeout", "120"]
        master = stack.enter_context(
            running(
                [*argv, "bench.peers.naive_app:application"],
                lambda: listens(self.port),
                self.folder / "naive.log",
                {"NAIVE_REDIS_URL": self.url, "PYTHONPATH": str(ROOT)},
            )
        )
        self.wait_for_worker(master, store)

    def versions(self) -> dict[str, str]:
        found = {name: version(name) for name in ("gunicorn", "gevent", "redis", "hiredis")}
        return found | {"store": store_version(self.url)}
