"""The service, as it is deployed: gunicorn with its configuration, and a store."""

import contextlib
import http.client
import secrets
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Final

from bench.load import Target
from bench.machine import children
from bench.peers.store import StorePeer, job_ref, start_store, store_version
from bench.processes import ROOT, START_SECONDS, free_port, listens, running, wait_until
from bench.reference import Grammar
from chronoverse.auth.minting import mint
from chronoverse.auth.rights import READ

LOG: Final = rb"event: log\ndata: {data}\nid: (?P=number)\n\n"
NOISE: Final = rb"event: (?:connected|job|end)\ndata: [^\n]*\n(?:retry: [0-9]+\n)?(?:id: [0-9]+\n)?\n"


class Ours(StorePeer):
    """The service with its shared tail."""

    name = "chronoverse"
    about = "the service: gunicorn with gevent workers, one reader per worker for all viewers"
    grammar = Grammar(LOG, NOISE)
    #: The checkout that it runs.
    root = ROOT

    def start(self, stack: contextlib.ExitStack) -> None:
        self.url, store = start_store(self.folder, stack)
        self.port, self.secret = free_port(), secrets.token_urlsafe(32)
        master = stack.enter_context(
            running(
                [sys.executable, "-m", "gunicorn", "-c", str(self.root / "gunicorn.conf.py")],
                lambda: listens(self.port),
                self.folder / "service.log",
                {
                    "CHRONOVERSE_REDIS_URL": self.url,
                    "CHRONOVERSE_JWT_SECRET": self.secret,
                    "CHRONOVERSE_BIND": f"127.0.0.1:{self.port}",
                    "CHRONOVERSE_DATA_DIR": str(self.folder / "data"),
                    "CHRONOVERSE_MAX_STREAMS": "12000",
                    "WEB_CONCURRENCY": "1",
                },
                self.root,
            )
        )
        # Until a worker answers, the scan server may still be a fork of the master, and be taken for the worker.
        wait_until(lambda: answers(self.port), "no worker answers")
        wait_until(lambda: len(forks_of(master)) == 1, "the worker does not start")
        self.pids.workers, self.pids.store = forks_of(master), [store]

    def target(self, job: int) -> Target:
        path = f"/workflows/{job_ref(job).workflow_id}/jobs/{job_ref(job).job_id}/events?wait=120"
        return Target("127.0.0.1", self.port, path, f"Authorization: Bearer {self.token('bench')}\r\n")

    def token(self, subject: str) -> str:
        """A token for reading everything."""
        return mint(self.secret.encode(), subject, [READ], ["*"], 3_600, time.time())

    def versions(self) -> dict[str, str]:
        packages = ("chronoverse", "gunicorn", "gevent", "flask", "redis", "hiredis")
        found = {}
        for name in packages:
            with contextlib.suppress(ImportError):
                found[name] = version(name)
        return found | {"store": store_version(self.url)}


def answers(port: int) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=START_SECONDS)
    with contextlib.suppress(OSError, http.client.HTTPException):
        connection.request("GET", "/healthz")
        return connection.getresponse().status == 200
    return False


def forks_of(master: int) -> list[int]:
    """The workers of our service: unlike the scan server, they run the program of their master."""

    def program(pid: int) -> bytes:
        return Path(f"/proc/{pid}/cmdline").read_bytes()

    return [pid for pid in children(master) if program(pid) == program(master)]
