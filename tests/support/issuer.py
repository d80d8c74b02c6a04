"""Servers that publish keys for verifying tokens."""

import contextlib
import json
import ssl
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Self

import jwt
from cryptography.hazmat.primitives.asymmetric import rsa


class Issuer(ThreadingHTTPServer):
    """An HTTP server with a key set (JWKS) that a test can change. Runs inside a ``with`` block."""

    daemon_threads = False
    block_on_close = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Answer)
        #: The keys. If None, the answer is 503.
        self.keys: list[dict[str, Any]] | None = []
        #: Sent instead of the keys, if set.
        self.body: bytes | None = None
        #: Redirect target, if set.
        self.moved_to = ""
        #: Delay of each answer in seconds.
        self.seconds = 0.0
        #: Number of requests received, of requests in progress, and its maximum so far.
        self.requests = self.at_once = self.most_at_once = 0
        self._count = threading.Lock()

    def __enter__(self) -> Self:
        self._thread = threading.Thread(target=self.serve_forever, args=(0.01,))
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.shutdown()
        self._thread.join()
        self.server_close()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/jwks.json"

    @contextlib.contextmanager
    def counted(self) -> Iterator[None]:
        """Counts a request, which is in progress inside the ``with`` block."""
        with self._count:
            self.requests += 1
            self.at_once += 1
            self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            yield
        finally:
            with self._count:
                self.at_once -= 1


class _Answer(BaseHTTPRequestHandler):
    server: Issuer

    def do_GET(self) -> None:
        with self.server.counted():
            time.sleep(self.server.seconds)
            self._send_keys()

    def _send_keys(self) -> None:
        if self.server.keys is None:
            self.send_error(503)
            return
        body = self.server.body
        if body is None:
            body = json.dumps({"keys": self.server.keys}).encode()
        self.send_response(302 if self.server.moved_to else 200)
        self.send_header("Location", self.server.moved_to)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


class OidcIssuer(Issuer):
    """An OpenID Connect issuer over TLS, with metadata and one RSA key. Issues tokens with any claims.

    ``certificate`` is for localhost, and its key has the same path with ``.key``. ``path`` follows the host in the
    issuer's name.
    """

    def __init__(self, certificate: Path, path: str = "", kid: str = "k1") -> None:
        super().__init__()
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate, certificate.with_suffix(".key"))
        self.socket = context.wrap_socket(self.socket, server_side=True)
        self.RequestHandlerClass = _MetadataAnswer
        self.name = f"https://localhost:{self.server_port}{path}"
        self.kid = kid
        self.key = rsa.generate_private_key(65_537, 2_048)
        self.keys = [{**jwt.algorithms.RSAAlgorithm.to_jwk(self.key.public_key(), as_dict=True), "kid": kid}]
        #: Its metadata. ``jwks_uri`` points to this server.
        self.metadata: dict[str, Any] = {"issuer": self.name, "jwks_uri": f"{self.name}/openid/v1/jwks"}

    def token(self, claims: dict[str, Any], algorithm: str = "RS256", **header: str) -> str:
        """A token with these claims. Defaults: the issuer's ``iss``, and valid for one minute. None removes a claim."""
        now = int(time.time())
        given = {"iss": self.name, "iat": now, "nbf": now, "exp": now + 60, "sub": "somebody", **claims}
        text = json.dumps({name: value for name, value in given.items() if value is not None}).encode()
        return jwt.PyJWS().encode(text, self.key, algorithm, {"kid": self.kid, **header})


class _MetadataAnswer(_Answer):
    server: OidcIssuer

    def _send_keys(self) -> None:
        if not self.path.endswith("/.well-known/openid-configuration"):
            return super()._send_keys()
        body = json.dumps(self.server.metadata).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
        return None
