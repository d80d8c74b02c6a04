"""Sends each request once, and converts failures to errors that say whether a retry can succeed.

Does not use urllib3, whose import would add 60 ms to every command.
"""

import contextlib
import copy
import io
import math
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from http.client import (
    BadStatusLine,
    HTTPConnection,
    HTTPException,
    HTTPMessage,
    HTTPResponse,
    HTTPSConnection,
    IncompleteRead,
)
from pathlib import Path
from ssl import SSLContext, SSLError, create_default_context
from typing import Any, Final
from urllib.parse import urlencode, urlsplit

import orjson

from chronoverse import __version__, errors
from chronoverse.auth.tls import certificate_problem, tls_context
from chronoverse.errors import ChronoverseError, Unreachable

CONNECTION_ERRORS: Final = (HTTPException, OSError)
#: Limits for the body of an answer. A page has at most 4 MiB of lines, for which the service allows seven minutes.
_BODY_BYTES: Final = 64 * 2**20
_BODY_SECONDS: Final = 600.0


class RequestFailed(Unreachable):
    """Raised if a retry after ``min_delay`` seconds can succeed. ``answered``: the status, 0 without an answer."""

    def __init__(self, message: str, min_delay: float = 0, answered: int = 0) -> None:
        super().__init__(message)
        self.min_delay = min_delay
        self.answered = answered


class TooLong(errors.BadRequest):
    """Raised if a body is longer than the service allows."""

    status = 413


#: The errors for permanent statuses. 415 is treated as a malformed request.
_FINAL: Final[dict[int, type[ChronoverseError]]] = {415: errors.BadRequest} | {
    kind.status: kind
    for kind in (errors.BadRequest, errors.Unauthorized, errors.Forbidden, errors.JobNotFound, TooLong)
}


class ServiceConnection:
    """Connections to the service at ``url``, for all threads. ``token`` can be a function, called for each request.

    If the server has closed an idle connection, resends the request, so all requests must be idempotent. Never resends
    a DELETE, because the repetition would not find the deleted resource.
    """

    def __init__(
        self,
        url: str,
        token: str | Callable[[], str | None] | None,
        *,
        ca_file: Path | None,
        connect_seconds: float,
        read_seconds: float,
    ) -> None:
        self._idle: list[HTTPConnection] = []
        self._pipeline: Pipeline | None = None
        #: The thread that uses the pipeline.
        self._owner = 0
        self._lock = threading.Lock()
        self.url: Final = url.rstrip("/")
        self._token = token
        self._tls = tls_context(ca_file)
        self._connect_seconds, self._read_seconds = connect_seconds, read_seconds
        self._was_answered = False

    def __del__(self) -> None:
        # Python warns about open sockets, and a request that ends after close() has left its socket open.
        self.close()

    def twin(self, token: str | Callable[[], str | None] | None) -> "ServiceConnection":
        """Connections to the same service with another token. Shares the trusted certificates, which take 1 MB."""
        if self._tls is None and self.url.startswith("https:"):
            self._tls = create_default_context()
        twin = copy.copy(self)
        twin._idle, twin._pipeline, twin._token, twin._lock = [], None, token, threading.Lock()
        return twin

    def close(self) -> None:
        self._end_pipeline()
        with contextlib.suppress(IndexError):
            while True:
                self._idle.pop().close()

    def request(
        self,
        method: str,
        path: str,
        query: Mapping[str, Any],
        headers: Mapping[str, str],
        body: bytes | None = None,
        max_bytes: int = _BODY_BYTES,
    ) -> tuple[bytes, HTTPMessage]:
        """Sends a request once. Returns up to ``max_bytes`` of the body, and the headers. Raises what :meth:`stream`
        raises.
        """
        with self.stream(method, path, query, headers, body) as response:
            seconds = _BODY_SECONDS if max_bytes == _BODY_BYTES else self._read_seconds
            response.input.until = time.monotonic() + seconds
            answer = response.read(max_bytes)
            if response.length:
                raise IncompleteRead(answer, response.length)
            return answer, response.headers

    @contextlib.contextmanager
    def stream(
        self, method: str, path: str, query: Mapping[str, Any], headers: Mapping[str, str], body: bytes | None = None
    ) -> Iterator["TimedResponse"]:
        """Sends a request once. Yields a 2xx response whose body is unread. Omits None and False in ``query``.

        Raises :class:`RequestFailed` if a retry can succeed, for example if the connection is lost in the ``with``
        block; a plain :class:`Unreachable` if the server is not trusted; otherwise the error of the refusal.
        """
        token = self._token() if callable(self._token) else self._token
        headers = _with_token(headers, token)
        given = {name: value for name, value in query.items() if value is not None and value is not False}
        arguments = urlencode({name: "true" if value is True else value for name, value in given.items()}, doseq=True)
        url = f"{self.url}{path}?{arguments}" if arguments else f"{self.url}{path}"
        try:
            connection, response = self._send(method, url, headers, body)
        except CONNECTION_ERRORS as error:
            raise failure(error, self.url, self.url, was_answered=self._was_answered) from error
        self._was_answered = True
        try:
            if not 200 <= response.status < 300:
                answer = response.read(65_536)
                if response.status == 401 and token is None:
                    hint = "set CHRONOVERSE_TOKEN, or run `chronoverse login`"
                    raise errors.Unauthorized(f"{self.url} requires a token: {hint}")
                raise _refusal(response, answer, self.url)
            response.input.until = math.inf
            yield response
        except CONNECTION_ERRORS as error:
            raise RequestFailed(f"the connection to {self.url} was lost") from error
        finally:
            # A connection with unread bytes cannot be reused.
            if response.isclosed() and connection.sock is not None:
                self._idle.append(connection)
            else:
                response.close()
                connection.close()

    def post_ahead(self, path: str, headers: Mapping[str, str], body: bytes) -> Callable[[], bytes | None]:
        """Sends a POST without waiting for earlier answers. Call the returned functions in the order of sending.

        Each function waits for its answer, and returns the body or raises the error of a refusal. It returns None if
        the request must be sent again, because the connection was lost or another thread uses it.
        """
        token, thread = self._token() if callable(self._token) else self._token, threading.get_ident()
        try:
            with self._lock:
                if self._pipeline and self._pipeline.unanswered and self._owner != thread:
                    return lambda: None
                pipeline = self._pipeline = self._pipeline or Pipeline(self.url, self._tls, self._connect_seconds)
                self._owner, number = thread, pipeline.begin()
            pipeline.sock.settimeout(self._read_seconds)
            pipeline.send(path, _with_token(headers, token), body)
        except CONNECTION_ERRORS:
            self._end_pipeline(thread)
            return lambda: None

        def receive() -> bytes | None:
            try:
                response, answer = pipeline.receive(number)
            except CONNECTION_ERRORS:
                self._end_pipeline(thread)
                return None
            if response.status != 200 or response.will_close:
                self._end_pipeline(thread)
            if response.status != 200:
                raise _refusal(response, answer, self.url)
            return answer

        return receive

    def _end_pipeline(self, thread: int | None = None) -> None:
        """Closes the pipeline, if ``thread`` uses it or is None."""
        with self._lock:
            if self._pipeline is not None and thread in (None, self._owner):
                self._pipeline.close()
                self._pipeline = None

    def _send(
        self, method: str, url: str, headers: Mapping[str, str], body: bytes | None
    ) -> tuple[HTTPConnection, "TimedResponse"]:
        while True:
            try:
                connection, is_new = self._idle.pop(), False
            except IndexError:
                connection, is_new = make_connection(url, self._tls, self._connect_seconds), True
            try:
                if is_new:
                    connection.connect()
                connection.sock.settimeout(self._read_seconds)
                connection.request(method, target_of(url), body, headers)
                response = connection.getresponse()
                assert isinstance(response, TimedResponse)
                return connection, response
            except CONNECTION_ERRORS as error:
                connection.close()
                # TLS reports the end of a connection as an SSLError.
                was_idle = not is_new and isinstance(error, HTTPException | ConnectionError | SSLError)
                if method == "DELETE" or not was_idle:
                    raise


class Pipeline:
    """Pipelined requests on one connection (RFC 9112 section 9.3.2), which http.client does not support."""

    def __init__(self, url: str, tls: SSLContext | None, connect_seconds: float) -> None:
        self._host, self._base = urlsplit(url).netloc.rpartition("@")[2], urlsplit(url).path
        self._connection = make_connection(url, tls, connect_seconds)
        self._connection.connect()
        self.sock: socket.socket = self._connection.sock
        self._answers = _Answers(self.sock)
        self._sent = self._received = 0

    @property
    def unanswered(self) -> int:
        return self._sent - self._received

    def begin(self) -> int:
        """Reserves the number of the next request to :meth:`send`. Returns it, for :meth:`receive`."""
        self._sent += 1
        return self._sent

    def send(self, path: str, headers: Mapping[str, str], body: bytes) -> None:
        """Sends a POST."""
        head = {"Host": self._host, **headers, "Content-Length": len(body)}
        lines = [f"POST {self._base}{path} HTTP/1.1", *(f"{name}: {value}" for name, value in head.items())]
        self.sock.sendall("\r\n".join([*lines, "", ""]).encode("latin-1") + body)

    def receive(self, number: int) -> tuple[HTTPResponse, bytes]:
        """The next response, which must answer request ``number``. Raises :data:`CONNECTION_ERRORS`."""
        if number != self._received + 1 or self._answers.file.closed:
            raise HTTPException("the connection was closed, or earlier responses were not read")
        # Closed even if no response has begun. Since Python 3.13, it complains if collected after its file was closed.
        with contextlib.closing(HTTPResponse(self._answers, method="POST")) as response:  # type: ignore[arg-type]
            response.begin()
            # Answers of the service are shorter than this.
            answer = response.read(65_536)
            if not response.isclosed():
                raise HTTPException("the answer is too long")
        self._received = number
        return response, answer

    def close(self) -> None:
        self._answers.file.close()
        self._connection.close()


class _Answers:
    """A socket for :class:`HTTPResponse`. Its file stays open, because the next answer is read from the same file."""

    def __init__(self, sock: socket.socket) -> None:
        self.file = sock.makefile("rb")

    def makefile(self, mode: str) -> "_Answers":
        return self

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)

    def close(self) -> None:
        """Does nothing, because it is called after each answer."""


class _Input(io.RawIOBase):
    """What a server sends on ``sock``. Raises TimeoutError after ``until``, however slowly the bytes arrive."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock, self._seconds = sock, sock.gettimeout() or _BODY_SECONDS
        self._file = sock.makefile("rb", 0)  # keeps the socket open until it is closed
        self.until = time.monotonic() + self._seconds

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        left = self.until - time.monotonic()
        if left <= 0:
            raise TimeoutError("timed out")
        if (wait := min(left, self._seconds)) != self._sock.gettimeout():
            self._sock.settimeout(wait)
        return self._sock.recv_into(buffer)

    def makefile(self, mode: str) -> io.BufferedReader:
        return io.BufferedReader(self)

    def close(self) -> None:
        self._file.close()
        super().close()


class TimedResponse(HTTPResponse):
    """A response that must arrive within the socket's timeout, unless ``input.until`` is set."""

    def __init__(self, sock: socket.socket, *args: Any, **options: Any) -> None:
        self.input = _Input(sock)
        super().__init__(self.input, *args, **options)  # type: ignore[arg-type]


def _with_token(headers: Mapping[str, str], token: str | None) -> dict[str, str]:
    found = {"User-Agent": f"chronoverse/{__version__}", **headers}
    return found if token is None else {**found, "Authorization": f"Bearer {token}"}


def make_connection(url: str, tls: SSLContext | None, seconds: float) -> HTTPConnection:
    """A connection to the server of ``url``, with a timeout in seconds. Opened on first use."""
    parts = urlsplit(url)
    host = parts.hostname or ""
    # Always passes a port, because http.client would search an IPv6 address for one.
    if parts.scheme == "https":
        connection: HTTPConnection = HTTPSConnection(
            host, parts.port or HTTPSConnection.default_port, timeout=seconds, context=tls
        )
    else:
        connection = HTTPConnection(host, parts.port or HTTPConnection.default_port, timeout=seconds)
    connection.response_class = TimedResponse
    return connection


def target_of(url: str) -> str:
    parts = urlsplit(url)
    return f"{parts.path or '/'}?{parts.query}" if parts.query else parts.path or "/"


def failure(error: Exception, url: str, who: str, *, was_answered: bool = True) -> Unreachable:
    """Converts one of :data:`CONNECTION_ERRORS`. Only :class:`RequestFailed` is worth a retry.

    ``was_answered``: this port has answered before, so ``url`` has the right scheme.
    """
    if problem := certificate_problem(error):
        return Unreachable(f"the certificate of {url} is not trusted: {problem}")
    reason = (isinstance(error, OSError) and (error.strerror or str(error))) or type(error).__name__
    if isinstance(error, SSLError) and error.reason == "WRONG_VERSION_NUMBER":
        reason = "no TLS at this port: use http://, or another port"
    elif isinstance(error, ConnectionResetError | BadStatusLine) and url.startswith("http:") and not was_answered:
        reason += "; if this port uses TLS, use https://"
    return RequestFailed(f"{who} is not responding: {reason}")


def _refusal(response: HTTPResponse, answer: bytes, url: str) -> ChronoverseError:
    """The error for a refusal: from its problem document (RFC 9457), or else from its status and the service's URL."""
    status = response.status
    try:
        problem = orjson.loads(answer)
        detail = str(problem.get("detail") or problem["title"]).rstrip(".")  # messages continue after this text
        title, reason, expected = str(problem.get("title", "")), problem.get("reason"), problem.get("expected")
    except (ValueError, LookupError, AttributeError, TypeError):
        detail = f"the service returned {status} {response.reason or ''}".rstrip()
        title, reason, expected = "", None, None
    if detail == "a bearer token is required":  # A token was sent: without one, the caller has raised an error.
        detail += ", and one was sent: a proxy seems to remove the Authorization header; configure it to pass it on"
    error: ChronoverseError
    if status in (408, 425, 429) or status >= 500:  # as in web/static/client/request.js
        error = RequestFailed(detail, retry_after(response.headers), status)
    else:
        kind = errors.errors_by_reason().get(str(reason)) if status == 409 else _FINAL.get(status)
        if kind and issubclass(kind, errors.SequenceGap):
            error = kind(expected) if type(expected) is int else ChronoverseError(detail)
        else:
            error = (kind or ChronoverseError)(detail)
            if isinstance(error, errors.LabelSet):
                error.keys = tuple(map(str, problem.get("labels") or ()))
    if title:
        error.title = title
    elif is_from_proxy(error):
        error.__cause__ = ValueError("no problem document")
        # nginx, Apache and Go answer like this if plain HTTP is sent to a TLS port.
        is_plain = url.startswith("http:") and b"HTTPS" in answer
        hint = "use https://" if is_plain else f"is {url} the right address?"
        error.args = (f"{detail}; {hint}",)
    return error


def is_from_proxy(error: ChronoverseError) -> bool:
    """Whether ``error`` is a refusal without a problem document, which only proxies send."""
    kinds = (errors.BadRequest, errors.Unauthorized, errors.Forbidden, errors.JobNotFound)
    is_refusal = type(error) is ChronoverseError or isinstance(error, kinds)
    return is_refusal and not isinstance(error, TooLong) and "title" not in vars(error)


def path_hint(url: str) -> str:
    """A hint for a 404's message: the path in ``url`` may be wrong, which a service answers like a missing job."""
    return f"; is {url} the right address?" if urlsplit(url).path.strip("/") else ""


def retry_after(headers: HTTPMessage) -> float:
    """``Retry-After`` in seconds, at most 120. 0 if absent or a date."""
    seconds = headers.get("Retry-After", "")
    return min(int(seconds), 120) if seconds.isascii() and seconds.isdecimal() and len(seconds) < 10 else 0
