"""Sends requests to the service, each once, and turns what goes wrong into errors that say whether a retry can help."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlencode

import orjson
import urllib3
from urllib3.exceptions import HTTPError, InvalidHeader, ProtocolError

from chronoverse import errors
from chronoverse.auth.tls import certificate_problem, tls_context
from chronoverse.errors import ChronoverseError, Unreachable


class RequestFailed(Unreachable):
    """Raised when a request has failed and a retry may succeed, ``min_delay`` seconds later at the earliest.

    ``answered`` is the status of the answer, 0 if there was none.
    """

    def __init__(self, message: str, min_delay: float = 0, answered: int = 0) -> None:
        super().__init__(message)
        self.min_delay = min_delay
        self.answered = answered


class TooLong(errors.BadRequest):
    """Raised when a body is longer than the service allows."""

    status = 413


#: The errors for statuses that no retry changes. A 415 is a malformed request, too.
_FINAL: Final[dict[int, type[ChronoverseError]]] = {415: errors.BadRequest} | {
    kind.status: kind
    for kind in (errors.BadRequest, errors.Unauthorized, errors.Forbidden, errors.JobNotFound, TooLong)
}


class ServiceConnection:
    """Connections to the service at ``url``. Threads may share it.

    ``token`` may be a function, which is called for each request. ``ca_file`` has authorities that are trusted beside
    those of the system. With ``repeatable`` every request may be repeated: when a connection was closed while it was
    idle, the request is sent again on a new one, and nothing is reported.
    """

    def __init__(
        self,
        url: str,
        token: str | Callable[[], str | None] | None,
        *,
        ca_file: Path | None,
        connect_seconds: float,
        read_seconds: float,
        repeatable: bool = False,
    ) -> None:
        self.url: Final = url.rstrip("/")
        self._token = token
        self._repeatable = repeatable
        timeout = urllib3.Timeout(connect=connect_seconds, read=read_seconds)
        self._http = urllib3.PoolManager(retries=False, timeout=timeout, ssl_context=tls_context(ca_file))

    def close(self) -> None:
        """Closes idle connections. Others are opened when they are needed."""
        self._http.clear()

    def request(
        self, method: str, path: str, query: Mapping[str, Any], headers: Mapping[str, str], body: bytes | None = None
    ) -> urllib3.BaseHTTPResponse:
        """Sends a request once. Returns an answer of 200 or 204 whose body is still to be read.

        Parameters of ``query`` that are None are left out, and those that are lists are repeated. Raises:
        :class:`RequestFailed`; another :class:`Unreachable` when the certificate is not trusted; or the error of a
        refusal that no retry can change.
        """
        token = self._token() if callable(self._token) else self._token
        if token is not None:
            headers = {**headers, "Authorization": f"Bearer {token}"}
        arguments = urlencode({name: value for name, value in query.items() if value is not None}, doseq=True)
        url = f"{self.url}{path}?{arguments}" if arguments else f"{self.url}{path}"
        try:
            response = self._send(method, url, headers, body)
            if response.status in (200, 204):
                return response
            # Bytes of a refusal's body that are read.
            answer = response.read(65_536)
            response.release_conn()
        except (HTTPError, OSError) as error:
            if problem := certificate_problem(error):
                raise Unreachable(f"the certificate of {self.url} is not trusted: {problem}") from error
            cause = error.__cause__ or error
            reason = (isinstance(cause, OSError) and cause.strerror) or type(cause).__name__
            raise RequestFailed(f"{self.url} does not answer: {reason}") from error
        if response.status == 401 and token is None:
            raise errors.Unauthorized(
                f"{self.url} wants a token, and there is none: set CHRONOVERSE_TOKEN, or run `chronoverse login`"
            )
        raise _refusal(response, answer)

    def read(self, response: urllib3.BaseHTTPResponse, size: int | None = None) -> bytes:
        """The body of an answer, or its first ``size`` bytes. Raises: :class:`RequestFailed`."""
        try:
            body = response.read(size)
        except (HTTPError, OSError) as error:
            raise RequestFailed(f"the connection to {self.url} was lost") from error
        response.release_conn()
        return body

    def _send(self, method: str, url: str, headers: Mapping[str, str], body: bytes | None) -> urllib3.BaseHTTPResponse:
        options: dict[str, Any] = {"body": body, "headers": headers, "preload_content": False, "redirect": False}
        try:
            return self._http.request(method, url, **options)
        except ProtocolError:
            if not self._repeatable:
                raise
            self._http.clear()
            return self._http.request(method, url, **options)


def _refusal(response: urllib3.BaseHTTPResponse, answer: bytes) -> ChronoverseError:
    """The error for an answer with a problem document (RFC 9457), or for its status if the body is something else."""
    status = response.status
    try:
        problem = orjson.loads(answer)
        detail = str(problem.get("detail") or problem["title"]).rstrip(".")  # it becomes a part of a sentence
        title, reason, expected = str(problem.get("title", "")), problem.get("reason"), problem.get("expected")
    except (ValueError, LookupError, AttributeError, TypeError):
        detail = f"the service answers {status} {response.reason or ''}".rstrip()
        title, reason, expected = "", None, None
    error: ChronoverseError
    if status in (408, 429) or status >= 500:
        error = RequestFailed(detail, retry_after(response), status)
    else:
        kind = errors.errors_by_reason().get(str(reason)) if status == 409 else _FINAL.get(status)
        if kind and issubclass(kind, errors.SequenceGap):
            error = kind(expected) if type(expected) is int else ChronoverseError(detail)
        else:
            error = (kind or ChronoverseError)(detail)
            if isinstance(error, errors.LabelSet):
                error.keys = tuple(map(str, problem.get("labels") or ()))
    error.title = title or error.title
    return error


def retry_after(response: urllib3.BaseHTTPResponse) -> float:
    """The response's ``Retry-After`` in seconds, 120 at most; 0 when it has none or it is invalid."""
    try:
        return min(urllib3.Retry().get_retry_after(response) or 0, 120)
    except InvalidHeader:
        return 0
