"""The floor: how fast this machine and the load generator are when the server does nothing but send."""

import contextlib
import platform
import socket
import sys
from collections.abc import Sequence

from bench.load import Target
from bench.peers.base import Peer
from bench.peers.ours import LOG, NOISE
from bench.processes import ROOT, free_port, listens, running
from bench.produce import line_json
from bench.reference import Grammar


class FloorSink:
    """Encodes what the floor server passes on."""

    def __init__(self, port: int) -> None:
        self._port = port

    def open(self, jobs: range) -> None:
        self._sock = socket.create_connection(("127.0.0.1", self._port), timeout=60)
        self._sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def publish(self, batch: Sequence[tuple[int, int, list[str]]]) -> None:
        frames = b"".join(
            b"event: log\ndata: %b\nid: %d\n\n" % (line_json(text, number), number)
            for _, first, texts in batch
            for number, text in enumerate(texts, first)
        )
        self._sock.sendall(b"%x\r\n%b\r\n" % (len(frames), frames))

    def finish(self, jobs: range, last: int) -> None:
        self._sock.close()


class Floor(Peer):
    """One process that only writes."""

    name = "floor"
    about = "a writer that only sends: no store, no tokens, no jobs; the limit of machine and generator"
    grammar = Grammar(LOG, NOISE)

    def start(self, stack: contextlib.ExitStack) -> None:
        self.port, self.input_port = free_port(), free_port()
        argv = [sys.executable, "-m", "bench.peers.floor_server", str(self.port), str(self.input_port)]
        log = self.folder / "floor.log"
        pid = stack.enter_context(running(argv, lambda: listens(self.port), log, {"PYTHONPATH": str(ROOT)}))
        self.pids.workers = [pid]

    def target(self, job: int) -> Target:
        return Target("127.0.0.1", self.port, "/")

    def sink(self) -> FloorSink:
        return FloorSink(self.input_port)

    def versions(self) -> dict[str, str]:
        return {"python": platform.python_version()}
