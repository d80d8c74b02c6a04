"""A real nginx with the configuration that we ship, on a free port, with a certificate of the moment."""

import datetime
import ipaddress
import secrets
import signal
import socket
import ssl
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, Self

import httpx
import psutil
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from tests.support.service import ROOT, Service
from tests.support.tools import tool
from tests.support.waiting import wait_until

#: Seconds for nginx to start or stop on a busy machine.
PATIENCE_SECONDS: Final = 10.0
HOST: Final = "127.0.0.1"
#: Where the shipped files expect things, and nginx's own temporary files.
TEMPORARY: Final = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")


class Nginx:
    """``deploy/nginx.conf`` before ``nodes`` (host and port), but for ports and paths as it is shipped.

    Its certificate is for ``host``; ``verify`` trusts nothing else. ``also`` is a second address to listen on, if not
    the usual one; ``shutdown_seconds`` is how long old workers keep their streams after a reload, ``read_seconds`` how
    long a node may be silent, if not as shipped. ``inside`` is a command that it is run by.
    """

    def __init__(
        self,
        directory: Path,
        nodes: Sequence[tuple[str, int]],
        *,
        host: str = HOST,
        also: str = "127.0.0.2",
        shutdown_seconds: int | None = None,
        read_seconds: int | None = None,
        inside: Sequence[str] = (),
    ) -> None:
        self.host, self.port = host, free_port()
        self.url = f"https://{self.host}:{self.port}"
        self._directory = directory
        self._binary = [*inside, tool("nginx")]
        self._process: subprocess.Popen[bytes] | None = None
        self._also, self._shutdown_seconds, self._read_seconds = also, shutdown_seconds, read_seconds
        certificate = make_certificate(directory, host)
        self.verify = ssl.create_default_context(cafile=str(certificate))
        self._configure(nodes)

    def _configure(self, nodes: Sequence[tuple[str, int]]) -> None:
        """Writes both files; every place that differs must be there to be replaced."""
        text = (ROOT / "deploy" / "nginx.conf").read_text()
        temporary = "".join(f"    {each}_temp_path {self._directory}/{each};\n" for each in TEMPORARY)
        replaced = {
            "listen 443 ": f"listen {self.host}:{self.port} ",
            # The second address that every Linux has, IPv6 or not.
            "listen [::]:443 ": f"listen {self._also}:{self.port} ",
            "/etc/nginx/tls/": f"{self._directory}/",
            "/var/log/nginx/": f"{self._directory}/",
            "/run/nginx.pid": f"{self._directory}/nginx.pid",
            "http {\n": f"http {{\n{temporary}",
        }
        if self._shutdown_seconds is not None:
            replaced["worker_shutdown_timeout 30s"] = f"worker_shutdown_timeout {self._shutdown_seconds}s"
        if self._read_seconds is not None:
            replaced["proxy_read_timeout 60s"] = f"proxy_read_timeout {self._read_seconds}s"
        for shipped, ours in replaced.items():
            assert shipped in text
            text = text.replace(shipped, ours)
        (self._directory / "nginx.conf").write_text(text)
        shipped_nodes = (ROOT / "deploy" / "nginx-nodes.conf").read_text()
        parameters = shipped_nodes.splitlines()[-1].removesuffix(";").split()[2:]
        lines = [f"server {host}:{port} {' '.join(parameters)};\n" for host, port in nodes]
        (self._directory / "nginx-nodes.conf").write_text("".join(lines))

    def _command(self, *more: str) -> list[str]:
        place = ["-p", str(self._directory), "-c", str(self._directory / "nginx.conf")]
        return [*self._binary, *place, "-e", str(self._directory / "startup.log"), *more]

    def check(self) -> str:
        """What ``nginx -t`` says of the configuration; fails where that is not "successful"."""
        done = subprocess.run(self._command("-t"), capture_output=True, text=True, check=False, timeout=30)
        assert done.returncode == 0, done.stderr
        return done.stderr + (self._directory / "startup.log").read_text()

    def start(self) -> Self:
        """Starts it and waits until it answers, if only that there is no node."""
        # It writes as its own user below a directory that is only ours.
        for each in (self._directory, *self._directory.parents):
            if each.name.startswith(("pytest-", "popen-", "cv-", "cv.")) or each == self._directory:
                each.chmod(0o711)
        self._process = subprocess.Popen(self._command("-g", "daemon off;"), stdin=subprocess.DEVNULL)
        wait_until(self.answers, PATIENCE_SECONDS, "nginx answers")
        return self

    def answers(self) -> bool:
        """Whether it does."""
        assert self._process is not None
        assert self._process.poll() is None, (self._directory / "startup.log").read_text()
        try:
            self.connect(1).close()
        except OSError:
            return False
        return True

    def client(self, **options: Any) -> httpx.Client:
        """An HTTP client that trusts it."""
        return httpx.Client(base_url=self.url, verify=self.verify, timeout=PATIENCE_SECONDS, **options)

    @property
    def pid(self) -> int:
        """The master's process id."""
        assert self._process is not None
        return self._process.pid

    def connect(self, timeout: float, source: str = "") -> ssl.SSLSocket:
        """A connection, encrypted, speaking HTTP/1.1, from the address ``source`` if it matters."""
        sock = socket.create_connection((self.host, self.port), timeout, (source, 0))
        return self.verify.wrap_socket(sock, server_hostname=self.host)

    def workers(self) -> set[int]:
        """The process ids of those that it has now, those going down included."""
        assert self._process is not None
        return {child.pid for child in psutil.Process(self._process.pid).children()}

    def signal(self, number: signal.Signals) -> None:
        """Sends a signal to the master."""
        assert self._process is not None
        self._process.send_signal(number)

    @property
    def certificate(self) -> Path:
        """What a client has to trust."""
        return self._directory / "server.crt"

    def logs(self) -> str:
        """Everything that it has written to any log, every byte a character."""
        return "".join(path.read_bytes().decode("latin-1") for path in sorted(self._directory.glob("*.log")))

    def stop(self) -> None:
        """SIGTERM, and SIGKILL for one that does not go."""
        if self._process is not None:
            self._process.send_signal(signal.SIGTERM)
            try:
                self._process.wait(PATIENCE_SECONDS)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait(PATIENCE_SECONDS)

    def __enter__(self) -> Self:
        try:
            return self.start()
        except BaseException:
            self.stop()
            raise

    def __exit__(self, *exception: object) -> None:
        self.stop()


def nginx_for(directory: Path, *nodes: Service) -> Nginx:
    """An nginx in front of ``nodes``, with its files in ``directory``/nginx. It runs inside a ``with`` block."""
    own = directory / "nginx"
    own.mkdir()
    return Nginx(own, [(node.host, node.port) for node in nodes])


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port: int = probe.getsockname()[1]
        return port


def make_certificate(directory: Path, host: str = HOST) -> Path:
    """``server.crt`` for the address ``host``, signed with its own ``server.key``; returns the former."""
    key = ec.generate_private_key(ec.SECP256R1())
    # Of two with one name a client that trusts both might take the wrong key.
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"{host} {secrets.token_hex(8)}")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address(host))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    path = directory / "server.crt"
    path.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    (directory / "server.key").write_bytes(private)
    return path
