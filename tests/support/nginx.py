"""A real nginx with the shipped configuration, on a free port and with a new certificate."""

import re
import signal
import socket
import ssl
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, Self

import httpx

from tests.support.certificates import Authority
from tests.support.ports import free_port
from tests.support.processes import stop_process
from tests.support.service import ROOT, Service
from tests.support.tools import tool
from tests.support.waiting import wait_until

#: Time limit of starting or stopping nginx on a busy machine, in seconds.
PATIENCE_SECONDS: Final = 10.0
HOST: Final = "127.0.0.1"
#: A second address on any Linux machine. The shipped file listens on IPv6, which a machine can lack.
SECOND_HOST: Final = "127.0.0.2"
#: Requests from this address can name another client in a header ``X-Client``.
PROXY_HOST: Final = "127.0.0.8"
#: The kinds of temporary files of nginx.
TEMPORARY_FILES: Final = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")


class Nginx:
    """nginx with ``deploy/nginx.conf`` in front of ``nodes`` (host and port). Only addresses and paths are changed.

    Its certificate is for ``host``, and ``verify`` trusts no other. ``read_seconds`` replaces the shipped
    ``proxy_read_timeout``. ``command_prefix`` precedes its command.
    """

    def __init__(
        self,
        directory: Path,
        nodes: Sequence[tuple[str, int]],
        *,
        host: str = HOST,
        read_seconds: int | None = None,
        command_prefix: Sequence[str] = (),
    ) -> None:
        self.host, self.port = host, free_port()
        self.url = f"https://{self.host}:{self.port}"
        self._directory = directory
        self._binary = [*command_prefix, tool("nginx")]
        self._process: subprocess.Popen[bytes] | None = None
        self._read_seconds = read_seconds
        authority = Authority(directory)
        authority.issue("server", host)
        #: The certificate for clients to trust.
        self.certificate = authority.path
        self.verify = ssl.create_default_context(cafile=str(self.certificate))
        self._configure(nodes)

    def _configure(self, nodes: Sequence[tuple[str, int]]) -> None:
        """Writes both configuration files. Fails if the shipped file lacks a text to be replaced."""
        text = (ROOT / "deploy" / "nginx.conf").read_text()
        temporary = "".join(f"    {each}_temp_path {self._directory}/{each};\n" for each in TEMPORARY_FILES)
        replaced = {
            # Another user cannot write below pytest's directory, which pytest makes private again on each run.
            "user www-data;": "user root;",
            "listen 443 ": f"listen {self.host}:{self.port} ",
            "listen [::]:443 ": f"listen {SECOND_HOST}:{self.port} ",
            "/etc/nginx/tls/server.crt": f"{self._directory}/server.pem",
            "/etc/nginx/tls/": f"{self._directory}/",
            "/var/log/nginx/": f"{self._directory}/",
            "/run/nginx.pid": f"{self._directory}/nginx.pid",
            "http {\n": f"http {{\n{temporary}    set_real_ip_from {PROXY_HOST};\n    real_ip_header X-Client;\n",
        }
        if self._read_seconds is not None:
            replaced["proxy_read_timeout 60s"] = f"proxy_read_timeout {self._read_seconds}s"
        for shipped, ours in replaced.items():
            assert shipped in text
            text = text.replace(shipped, ours)
        (self._directory / "nginx.conf").write_text(text)
        shipped_nodes = (ROOT / "deploy" / "nginx-nodes.conf").read_text()
        # All nodes have the options of the shipped file's first node.
        of_first = re.findall(r"^server 127\.0\.0\.1:8000( .*;)$", shipped_nodes, re.MULTILINE)
        lines = [f"server {host}:{port}{parameters}\n" for parameters in of_first for host, port in nodes]
        (self._directory / "nginx-nodes.conf").write_text("".join(lines))

    def _command(self, *more: str) -> list[str]:
        paths = ["-p", str(self._directory), "-c", str(self._directory / "nginx.conf")]
        return [*self._binary, *paths, "-e", str(self._directory / "startup.log"), *more]

    def check(self) -> str:
        """Checks the configuration with ``nginx -t``. Returns its messages; fails if it is invalid."""
        done = subprocess.run(self._command("-t"), capture_output=True, text=True, check=False, timeout=30)
        assert done.returncode == 0, done.stderr
        return done.stderr + (self._directory / "startup.log").read_text()

    def start(self) -> Self:
        """Starts nginx, and waits until it accepts connections."""
        self._process = subprocess.Popen(self._command("-g", "daemon off;"), stdin=subprocess.DEVNULL)
        wait_until(self.answers, PATIENCE_SECONDS, "nginx answers")
        return self

    def answers(self) -> bool:
        """Whether nginx accepts connections."""
        assert self._process is not None
        assert self._process.poll() is None, (self._directory / "startup.log").read_text()
        try:
            self.connect(1).close()
        except OSError:
            return False
        return True

    def client(self, **options: Any) -> httpx.Client:
        """An HTTP client that trusts nginx's certificate."""
        return httpx.Client(base_url=self.url, verify=self.verify, timeout=PATIENCE_SECONDS, **options)

    @property
    def pid(self) -> int:
        """The master's process id."""
        assert self._process is not None
        return self._process.pid

    def connect(self, timeout: float, source: str = "") -> ssl.SSLSocket:
        """A TLS connection for HTTP/1.1. ``source`` is the client's address, if it matters."""
        sock = socket.create_connection((self.host, self.port), timeout, (source, 0))
        return self.verify.wrap_socket(sock, server_hostname=self.host)

    def workers(self) -> set[int]:
        """The process ids of its workers, including those that are shutting down."""
        # Cheaper than psutil, which would read the parent of every process, as tests poll this.
        return set(map(int, Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split()))

    def signal(self, number: signal.Signals) -> None:
        """Sends a signal to the master."""
        assert self._process is not None
        self._process.send_signal(number)

    def logs(self) -> str:
        """All of its log output, decoded with one character per byte."""
        return "".join(path.read_bytes().decode("latin-1") for path in sorted(self._directory.glob("*.log")))

    def access_log(self) -> list[bytes]:
        """The access log's lines, each a JSON object. A request is logged once it is finished."""
        return (self._directory / "access.log").read_bytes().splitlines()

    def stop(self) -> None:
        """Stops nginx with SIGTERM, or with SIGKILL if that takes too long."""
        if self._process is not None:
            stop_process(self._process, PATIENCE_SECONDS)

    def __enter__(self) -> Self:
        try:
            return self.start()
        except BaseException:
            self.stop()
            raise

    def __exit__(self, *exception: object) -> None:
        self.stop()


def nginx_for(directory: Path, *nodes: Service) -> Nginx:
    """An nginx in front of ``nodes``, with its files in ``directory``/nginx. Its ``with`` block starts and stops it."""
    own = directory / "nginx"
    own.mkdir()
    return Nginx(own, [(node.host, node.port) for node in nodes])
