"""The archive in a bucket of Amazon S3, or of whatever speaks its protocol.

Credentials, region and endpoint are found as boto3 finds them: in its environment variables (``AWS_ACCESS_KEY_ID``,
``AWS_ENDPOINT_URL_S3``, …), its files, or the machine's role.
"""

import threading
import time
from collections.abc import Callable, Iterator
from importlib import import_module
from importlib.util import find_spec
from typing import Any, Final, TypeVar

from chronoverse.archive.object_store import StoredObject
from chronoverse.errors import ArchiveDamaged, ArchiveUnavailable, SettingsError

#: Seconds for a connection, and for the next bytes of an answer. S3 takes a tenth of one, on a bad day one.
CONNECT_SECONDS: Final = 3.0
READ_SECONDS: Final = 5.0
#: Tries of one request, as S3 asks for when it is busy, and seconds between them.
ATTEMPTS: Final = 3
RETRY_SECONDS: Final = 0.3
#: Seconds after which none is begun any more, and an answer that still comes in drops is given up.
ANSWER_SECONDS: Final = 10.0
#: Requests at a time of one process, each with a connection. As many viewers read from the archive at once.
CONNECTIONS: Final = 16
#: Bytes of an answer between two looks at the clock.
_READ_BYTES: Final = 64 * 2**10
#: Answers, of those below 500, that say that the same may go well a little later.
_TRANSIENT_CODES: Final = ("SlowDown", "RequestTimeout", "TooManyRequests", "Throttling", "OperationAborted")

_Answer = TypeVar("_Answer")


class S3ObjectStore:
    """Objects in ``bucket``, under names that begin with ``prefix``. See :class:`ObjectStore`.

    Raises: :class:`SettingsError` when boto3 is not installed.
    """

    def __init__(
        self,
        bucket: str,
        prefix: str = "",
        *,
        read_seconds: float = READ_SECONDS,
        answer_seconds: float = ANSWER_SECONDS,
        retry_seconds: float = RETRY_SECONDS,
    ) -> None:
        if find_spec("boto3") is None:
            raise SettingsError("CHRONOVERSE_ARCHIVE_URL: S3 needs boto3: pip install 'chronoverse[s3]'")
        self._read_seconds: Final = read_seconds
        self._answer_seconds: Final = answer_seconds
        self._retry_seconds: Final = retry_seconds
        self._bucket: Final = bucket
        self._prefix: Final = f"{prefix.strip('/')}/" if prefix.strip("/") else ""
        self._cached_client: Any = None
        self._client_lock = threading.Lock()
        self._slots = threading.BoundedSemaphore(CONNECTIONS)

    def put(self, name: str, data: bytes) -> None:
        self._call(name, lambda s3, at: s3.put_object(**at, Body=data, ContentType="application/zstd"))

    def get(self, name: str, start: int = 0, stop: int | None = None) -> bytes:
        if start == stop:
            return b""
        wanted = {"Range": f"bytes={start}-{'' if stop is None else stop - 1}"} if start or stop else {}
        return self._call(name, lambda s3, at: self._read_body(s3.get_object(**at, **wanted)["Body"]))

    def delete(self, name: str) -> None:
        self._call(name, lambda s3, at: s3.delete_object(**at))

    def list(self, prefix: str) -> Iterator[StoredObject]:
        listed = {"Bucket": self._bucket, "Prefix": self._prefix + prefix}
        while True:
            page = self._call("", lambda s3, _: s3.list_objects_v2(**listed))
            for each in page.get("Contents", ()):
                name = each["Key"].removeprefix(self._prefix)
                yield StoredObject(name, each["Size"], each["LastModified"].timestamp())
            if not page.get("IsTruncated"):
                return
            listed["ContinuationToken"] = page["NextContinuationToken"]

    def _call(self, name: str, request: Callable[[Any, dict[str, str]], _Answer]) -> _Answer:
        """What a request answers, tried again while that may help. It gets the client, and where the object is."""
        give_up_at = time.monotonic() + self._answer_seconds
        location = {"Bucket": self._bucket, "Key": self._prefix + name}
        if not self._slots.acquire(timeout=self._answer_seconds):
            raise ArchiveUnavailable(f"{CONNECTIONS} others wait for the archive's answers already")
        try:
            client = self._client()
            for attempt in range(1, ATTEMPTS + 1):
                try:
                    return request(client, location)
                except Exception as error:
                    said = _translate(error, name)
                    if attempt == ATTEMPTS or not _is_transient(error) or time.monotonic() > give_up_at:
                        raise said from error
                time.sleep(self._retry_seconds * attempt)
            raise AssertionError("the last attempt returns or raises")
        finally:
            self._slots.release()

    def _client(self) -> Any:
        """Made when it is first needed, in the process that needs it: making one takes a fifth of a second."""
        with self._client_lock:
            if self._cached_client is None:
                config = import_module("botocore.config").Config(
                    connect_timeout=CONNECT_SECONDS,
                    read_timeout=self._read_seconds,
                    retries={"total_max_attempts": 1},
                    max_pool_connections=CONNECTIONS,
                    # Many who speak S3's protocol do not know its newer checksums.
                    request_checksum_calculation="when_required",
                    response_checksum_validation="when_required",
                )
                # A session of its own: boto3's default one is not for several threads.
                self._cached_client = import_module("boto3.session").Session().client("s3", config=config)
            return self._cached_client

    def _read_body(self, body: Any) -> bytes:
        """All bytes of an answer's body."""
        give_up_at = time.monotonic() + self._answer_seconds
        pieces = []
        try:
            for piece in body.iter_chunks(_READ_BYTES):
                pieces.append(piece)
                if time.monotonic() > give_up_at:
                    raise TimeoutError(f"an object was not all there after {self._answer_seconds:g} s")
        finally:
            body.close()
        return b"".join(pieces)


def _error_response(error: Exception) -> tuple[int, str] | None:
    """The status and the code that S3 answered with, where it answered."""
    answer: Any = getattr(error, "response", None)
    if not isinstance(answer, dict):
        return None
    return answer.get("ResponseMetadata", {}).get("HTTPStatusCode", 0), answer.get("Error", {}).get("Code", "")


def _is_transient(error: Exception) -> bool:
    """Whether the same may go well a little later: anything on the way, and an answer that says so."""
    refusal = _error_response(error)
    if refusal is not None:
        return refusal[0] >= 500 or refusal[1] in _TRANSIENT_CODES
    exceptions = import_module("botocore.exceptions")
    return isinstance(error, (exceptions.HTTPClientError, exceptions.IncompleteReadError, OSError))


def _translate(error: Exception, name: str) -> Exception:
    """What the rest of the program understands, or the error itself when it is nothing of S3's."""
    refusal = _error_response(error)
    if refusal is not None and (refusal[1] in ("NoSuchKey", "InvalidRange") or refusal == (404, "404")):
        return ArchiveDamaged(f"the archive holds no {name}, or not all of it")
    exceptions = import_module("botocore.exceptions")
    if refusal is not None or isinstance(error, (exceptions.BotoCoreError, OSError)):
        return ArchiveUnavailable(f"the archive cannot be used: {error}")
    return error
