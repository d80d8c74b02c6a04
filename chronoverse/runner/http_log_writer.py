"""Writes logs through the service, for runners that cannot reach its store. Every request is idempotent."""

import contextlib
import copy
import time
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import orjson

from chronoverse.client.service_connection import RequestFailed, ServiceConnection, TooLong
from chronoverse.errors import (
    JobNotFound,
    NotDurable,
    QuotaReached,
    StaleToken,
    StoreUnavailable,
    TooFast,
    Unauthorized,
    Unreachable,
)
from chronoverse.joblog.comparing import Comparison, line_digest
from chronoverse.joblog.labels import Labels
from chronoverse.joblog.model import Attempt, JobRef, Line, LineRun, Status, count_lines, runs_of, split_runs

#: Seconds that the service may be silent before or within an answer. It waits less long for its store.
READ_SECONDS: Final = 10.0
#: Bodies from this size on are compressed, except for this machine. Shorter ones fit into one packet anyway.
GZIP_BYTES: Final = 1_400


class HttpLogWriter:
    """The service at ``url``. Threads may share it. ``token`` may be a function, which is called for each request.

    If a token that a function returned is refused, raises :class:`StaleToken`. If the function returns None after an
    earlier token, this is treated as an outage. ``ca_file`` lists additional certificate authorities. With ``durable``
    a line is safe only once the service confirms it.

    Raises what :class:`chronoverse.store.Store` raises, and :class:`TooFast`. Where no retry can succeed, raises
    :class:`Unauthorized`, :class:`Forbidden`, :class:`JobNotFound`, :class:`BadRequest`, or, for an untrusted
    certificate, :class:`Unreachable`.
    """

    #: Maximum lines of an append.
    batch_lines = 5_000
    #: How many appends may be sent before the first is answered: a link of 50 ms then takes 200,000 lines a second.
    appends_ahead = 4

    def __init__(
        self,
        url: str,
        token: str | Callable[[], str | None] | None = None,
        *,
        ca_file: Path | None = None,
        durable: bool = False,
        read_seconds: float = READ_SECONDS,
    ) -> None:
        self._token = token
        self._had_token = self._was_answered = False
        #: The job whose end the service has answered last, and the number after its terminal entry.
        self._last_end: tuple[JobRef | None, int] = None, 0
        self._durable = durable
        host = urlsplit(url).hostname or ""
        #: Whether the service is on this machine. Then compressing takes longer than sending.
        self._is_near = host in ("localhost", "::1") or host.startswith("127.")
        self._service = ServiceConnection(
            url, self._next_token, ca_file=ca_file, connect_seconds=2.0, read_seconds=read_seconds
        )

    def twin(self) -> "HttpLogWriter":
        """Another writer to the same service, which sends ahead on its own connection."""
        twin = copy.copy(self)
        twin._service = self._service.twin(twin._next_token)
        return twin

    def open(self, job: JobRef, token: str, first: int | None = None, labels: Labels = ()) -> Attempt:
        """Takes the job's lease for a new attempt. ``token`` is the runner's own, and must be unguessable."""
        body: dict[str, Any] = {"token": token}
        if first is not None:
            body["first"] = first
        if labels:
            body["labels"] = dict(labels)
        answer = self._post(job, "attempts", body)
        return Attempt(job, token, _number(answer, "attempt"), _number(answer, "next"))

    def append(self, attempt: Attempt, lines: Sequence[Line]) -> int:
        """Like :meth:`append_runs`."""
        return self.append_runs(attempt, lines[0].sequence_num, runs_of(lines))

    def append_runs(self, attempt: Attempt, first: int, runs: Sequence[LineRun]) -> int:
        """Appends ``runs``, in halves if they are too long for the service."""
        lines = count_lines(runs)
        if self._fits(lines, len(runs)):
            try:
                return _number(self._post(attempt.job, "logs", _append_body(attempt, first, runs)), "next")
            except TooLong:
                if lines == 1:
                    raise
        one, other = split_runs(runs, (lines + 1) // 2)
        with contextlib.suppress(QuotaReached):  # so is the other half, and that says it
            self.append_runs(attempt, first, one)
        return self.append_runs(attempt, first + count_lines(one), other)

    def append_ahead(self, attempt: Attempt, first: int, runs: Sequence[LineRun]) -> Callable[[], int]:
        """Sends an append without waiting for earlier answers.

        Call the result to get this append's return value or error.
        """
        plain = partial(self.append_runs, attempt, first, runs)
        if not self._fits(count_lines(runs), len(runs)):
            return plain
        path, headers, content = self._request(attempt.job, "logs", _append_body(attempt, first, runs))
        receive = self._service.post_ahead(path, headers, content)

        def answer() -> int:
            with self._translated(attempt.job):
                body = receive()
                return plain() if body is None else _number(orjson.loads(body), "next")

        return answer

    def _fits(self, lines: int, runs: int) -> bool:
        """Whether this many lines and runs fit into one request, which has at most 20,000 structural characters."""
        return lines <= self.batch_lines and 3 * lines + 19 * runs < 19_900

    def append_lost(self, attempt: Attempt, first: int, last: int, reason: str = "lost") -> int:
        """Records in the log that lines ``first`` to ``last`` are lost, or ``missing``. Returns the next number."""
        body = {**_beginning(attempt, first), "count": last - first + 1}
        if reason != "lost":
            body["reason"] = reason
        return _number(self._post(attempt.job, "logs/lost", body), "next")

    def compare(self, job: JobRef, lines: Sequence[Line]) -> Comparison:
        """Like :data:`chronoverse.runner.readback.Compare`. The service compares."""
        body = {"first": lines[0].sequence_num, "lines": [line_digest(line) for line in lines]}
        answer = self._post(job, "logs/compare", body)
        return Comparison(_number(answer, "next"), answer.get("differs") is True)

    def job_warnings(self, job: JobRef) -> list[str]:
        """No warnings: the service checks its own store."""
        return []

    def durability_probe(self) -> "HttpLogWriter | None":
        """The durability check of a ``durable`` writer; None if acknowledged lines are already safe."""
        return self if self._durable else None

    def confirm(self, attempt: Attempt, may_sync: bool = False) -> int | None:
        """Confirms as the store does, under the service's CHRONOVERSE_DURABILITY. Renews the lease."""
        job, next_number = self._last_end
        if job == attempt.job:  # an end that the service has answered is safe
            return next_number
        if not may_sync:
            # Many lines wait for one answer.
            time.sleep(1.0)
        answer = self._post(attempt.job, "logs", {**_beginning(attempt, attempt.next), "lines": [], "safe": True})
        if answer.get("safe") is False:
            raise NotDurable(
                "the service cannot tell what is safe in its store: it needs an append-only file or a"
                " replica. Set CHRONOVERSE_DURABILITY=acked here to hide this message"
            )
        return None if answer.get("next") is None else _number(answer, "next")

    def renew(self, attempt: Attempt) -> None:
        self._post(attempt.job, "logs", {**_beginning(attempt, attempt.next), "lines": []})

    def finish(
        self,
        attempt: Attempt,
        status: Status,
        exit_code: int | None,
        dropped: int,
        next_number: int,
        *,
        counts: bool = False,
    ) -> None:
        """Ends the job after its last line, ``next_number`` - 1; if PENDING, just the attempt."""
        body: dict[str, Any] = {"token": attempt.token, "attempt": attempt.attempt, "status": status.value}
        if counts:
            body["counts"] = True
        self._post(attempt.job, "end", body | {"exit_code": exit_code, "dropped": dropped, "next": next_number})
        if status is not Status.PENDING:
            self._last_end = attempt.job, next_number + 1

    def close(self) -> None:
        self._service.close()

    def _next_token(self) -> str | None:
        token = self._token() if callable(self._token) else self._token
        if token is None and self._had_token:
            # The service restarts. Without a token its old worker would answer 401, and stop the runner permanently.
            raise StoreUnavailable(f"no token for {self._service.url} now")
        self._had_token = token is not None
        return token

    def _request(self, job: JobRef, route: str, body: Mapping[str, Any]) -> tuple[str, dict[str, str], bytes]:
        headers = {"Accept": "application/json", "Content-Type": "application/json"}
        content = orjson.dumps(body)
        if len(content) >= GZIP_BYTES and not self._is_near:
            headers["Content-Encoding"] = "gzip"
            # zlib's fastest level. Log lines shrink to a fifth, at 100 MB/s.
            content = zlib.compress(content, 1, wbits=zlib.MAX_WBITS | 16)
        return f"/workflows/{job.workflow_id}/jobs/{job.job_id}/{route}", headers, content

    def _post(self, job: JobRef, route: str, body: Mapping[str, Any]) -> Any:
        path, headers, content = self._request(job, route, body)
        with self._translated(job):
            # Bytes of an answer that are read. The service's answers have a few hundred.
            answer = self._service.request("POST", path, {}, headers, content, 65_536)[0]
            self._was_answered = True
            return orjson.loads(answer) if answer else None

    @contextlib.contextmanager
    def _translated(self, job: JobRef) -> Iterator[None]:
        """Translates errors of a request into a runner's errors."""
        try:
            yield
        except Unreachable as error:
            if isinstance(error, RequestFailed) and error.answered == 429:
                raise TooFast(str(error), error.min_delay) from error
            if not isinstance(error, RequestFailed) and not self._was_answered:
                raise  # a certificate that was never trusted; one that was will be renewed
            raise StoreUnavailable(str(error)) from error
        except JobNotFound as error:
            # The service's own words do not say what is missing.
            where = f"the workflow {job.workflow_id} at {self._service.url}"
            raise JobNotFound(f"the token is not for {where}, or there is no such job") from error
        except Unauthorized as error:
            if self._had_token and callable(self._token):
                raise StaleToken(str(error)) from error
            raise
        except ValueError as error:
            # It may be a page of a proxy, while the service behind it is being deployed. That is worth a retry.
            raise StoreUnavailable(
                f"{self._service.url} does not answer with JSON: is it the right address?"
            ) from error


def _append_body(attempt: Attempt, first: int, runs: Sequence[LineRun]) -> dict[str, Any]:
    return {**_beginning(attempt, first), "runs": [_run_to_json(run) for run in runs]}


def _run_to_json(run: LineRun) -> dict[str, Any]:
    texts = b"\n".join(run.messages).decode().split("\n")
    spelled: dict[str, Any] = {"timestamp": run.timestamp, "stream": run.stream, "messages": texts}
    return {**spelled, "partial": [*range(len(texts))]} if run.partial else spelled


def _beginning(attempt: Attempt, first: int) -> dict[str, Any]:
    return {"token": attempt.token, "attempt": attempt.attempt, "first": first}


def _number(answer: Any, name: str) -> int:
    number = answer.get(name) if isinstance(answer, dict) else None
    if type(number) is not int:
        raise StoreUnavailable("the service sent an unreadable answer")
    return number
