"""nchan: publish and subscribe inside nginx, written in C, messages in its shared memory."""

import contextlib
import re
import shutil
import socket
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from bench.load import Target
from bench.peers.base import Peer
from bench.processes import free_port, listens, running
from bench.produce import line_json
from bench.reference import Grammar

MODULES: Final = (
    Path("/usr/lib/nginx/modules/ngx_nchan_module.so"),
    Path("/usr/share/nginx/modules/ngx_nchan_module.so"),
)
#: Requests that are sent before their answers are read.
DEPTH: Final = 1000
#: Messages of one channel in one second, at most: nchan numbers those with 16 bits. Of 50,000 stored in 0.4 s a
#: subscriber got one, and then nothing more.
PER_SECOND: Final = 30_000
#: Seconds in which nchan must accept what was sent.
ACCEPT_SECONDS: Final = 60.0

_CONF: Final = """
load_module {module};
daemon off;
worker_processes 1;
worker_rlimit_nofile 20000;
pid {folder}/nginx.pid;
error_log {folder}/error.log;
events {{ worker_connections 19000; }}
http {{
  access_log off;
  client_body_temp_path {folder}/t1; proxy_temp_path {folder}/t2; fastcgi_temp_path {folder}/t3;
  uwsgi_temp_path {folder}/t4; scgi_temp_path {folder}/t5;
  keepalive_requests 1000000000;
  nchan_shared_memory_size {memory}M;
  server {{
    listen 127.0.0.1:{port} backlog=4096;
    location = /pub {{
      nchan_publisher; nchan_channel_id $arg_id;
      nchan_message_buffer_length 1000000; nchan_message_timeout 1h;
    }}
    location = /sub {{ nchan_subscriber eventsource; nchan_channel_id $arg_id; nchan_subscriber_first_message oldest; }}
  }}
}}
"""


class NchanSink:
    """Publishes over one connection, without waiting for each answer."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._second = self._in_second = 0

    def open(self, jobs: range) -> None:
        self._sock = socket.create_connection(("127.0.0.1", self._port), timeout=ACCEPT_SECONDS)
        self._sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def publish(self, batch: Sequence[tuple[int, int, list[str]]]) -> None:
        bodies = [
            (job, line_json(text, number)) for job, first, texts in batch for number, text in enumerate(texts, first)
        ]
        for start in range(0, len(bodies), DEPTH):
            part = bodies[start : start + DEPTH]
            self._hold_back(len(part))
            self._sock.sendall(
                b"".join(
                    b"POST /pub?id=j%d HTTP/1.1\r\nHost: b\r\nContent-Length: %d\r\n\r\n%b" % (job, len(body), body)
                    for job, body in part
                )
            )
            self._await(len(part))

    def _hold_back(self, count: int) -> None:
        """Waits until so many more may be sent in this second."""
        if int(time.time()) == self._second and self._in_second + count > PER_SECOND:
            time.sleep(1 - time.time() % 1)
        if int(time.time()) != self._second:
            self._second, self._in_second = int(time.time()), 0
        self._in_second += count

    def _await(self, count: int) -> None:
        """Waits until so many were accepted."""
        answers = b""
        while answers.count(b"HTTP/1.1 20") < count or answers.count(b"last message id: ") < count:
            more = self._sock.recv(1 << 20)
            if not more or b"HTTP/1.1 4" in more or b"HTTP/1.1 5" in more:
                raise ConnectionError((answers + more)[-500:].decode(errors="replace"))
            answers += more

    def finish(self, jobs: range, last: int) -> None:
        self._sock.close()


class Nchan(Peer):
    """Debian's package."""

    name = "nchan"
    about = "nginx with the nchan module, its own memory store, EventSource subscribers"
    grammar = Grammar(rb"id: [0-9]+:[0-9]+\ndata: {data}\n\n")

    @classmethod
    def missing(cls) -> str:
        if not shutil.which("nginx"):
            return "no nginx on PATH"
        return "" if any(module.exists() for module in MODULES) else "nginx has no nchan module"

    def start(self, stack: contextlib.ExitStack) -> None:
        self.port = free_port()
        module = next(module for module in MODULES if module.exists())
        conf = self.folder / "nginx.conf"
        conf.write_text(_CONF.format(module=module, folder=self.folder, memory=1024, port=self.port))
        argv = [shutil.which("nginx") or "nginx", "-e", str(self.folder / "error.log"), "-c", str(conf)]
        master = stack.enter_context(running(argv, lambda: listens(self.port), self.folder / "out.log"))
        self.wait_for_worker(master)

    def target(self, job: int) -> Target:
        return Target("127.0.0.1", self.port, f"/sub?id=j{job}")

    def resume(self, after: int) -> list[str]:
        # nchan's ids are times, so only a subscriber that has received the lines knows their ids.
        target, ids = self.target(0), re.compile(rb"^id: ([0-9:]+)\n", re.MULTILINE)
        received = b""
        with socket.create_connection((target.host, target.port), timeout=ACCEPT_SECONDS) as sock:
            sock.sendall(target.request(""))
            while len(found := ids.findall(received)) < after:
                received += sock.recv(1 << 20)
        return [f"Last-Event-ID: {found[after - 1].decode()}\r\n"]

    def sink(self) -> NchanSink:
        return NchanSink(self.port)

    def versions(self) -> dict[str, str]:
        output = subprocess.run(["nginx", "-v"], capture_output=True, text=True, check=False).stderr.strip()
        found = {"nginx": output.rpartition("/")[2]}
        asked = ["dpkg-query", "-W", "-f", "${Version}", "libnginx-mod-nchan"]
        with contextlib.suppress(OSError):
            found["nchan"] = subprocess.run(asked, capture_output=True, text=True, check=False).stdout.strip()
        return found
