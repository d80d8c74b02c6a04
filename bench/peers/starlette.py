"""sse-starlette under uvicorn, at its best: uvloop, httptools, hiredis, orjson."""

import contextlib

from bench.peers import environment
from bench.peers.store import StorePeer, start_store, store_version
from bench.processes import ROOT, free_port, listens, running
from bench.reference import Grammar


class SseStarlette(StorePeer):
    """One blocking XREAD per viewer."""

    name = "sse-starlette"
    about = "sse-starlette under uvicorn with uvloop and httptools, one XREAD per viewer"
    grammar = Grammar(
        rb"id: (?P=number)\r\nevent: log\r\ndata: {data}\r\n\r\n".replace(b"id: (?P=number)", rb"id: (?P<id>[0-9]+)"),
        rb"event: end\r\ndata: [^\r]*\r\n\r\n",
        b"\r\n",
    )

    @classmethod
    def missing(cls) -> str:
        return environment.missing("sse-starlette")

    def start(self, stack: contextlib.ExitStack) -> None:
        self.url, store = start_store(self.folder, stack)
        self.port = free_port()
        argv = [str(environment.python()), "-m", "uvicorn", "bench.peers.starlette_app:app", "--no-access-log"]
        argv += ["--port", str(self.port), "--loop", "uvloop", "--http", "httptools", "--backlog", "4096"]
        pid = stack.enter_context(
            running(
                argv,
                lambda: listens(self.port),
                self.folder / "uvicorn.log",
                {"STARLETTE_REDIS_URL": self.url, "PYTHONPATH": str(ROOT)},
            )
        )
        self.pids.workers, self.pids.store = [pid], [store]

    def versions(self) -> dict[str, str]:
        found = environment.versions(["sse-starlette", "starlette", "uvicorn", "uvloop", "httptools", "redis"])
        return found | {"store": store_version(self.url)}
