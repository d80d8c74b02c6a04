"""An object store in an S3 bucket, of Amazon or a compatible server. boto3 finds the credentials."""

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import KW_ONLY, dataclass, field
from functools import cached_property
from importlib import import_module
from importlib.util import find_spec
from typing import Any, TypeVar

from chronoverse.archive.object_store import StoredObject
from chronoverse.auth.tls import certificate_problem
from chronoverse.backoff import RetryPolicy
from chronoverse.errors import ArchiveDamaged, ArchiveUnavailable, SettingsError

_Answer = TypeVar("_Answer")


@dataclass(eq=False)
class S3ObjectStore:
    """Stores objects in ``bucket``, under keys that begin with ``prefix``. See :class:`ObjectStore`.

    ``read_seconds`` is the timeout for the next bytes of an answer: S3 takes 0.1 s, or 1 s on a bad day. Retries wait
    ``retry_seconds``, then twice as long. Raises :class:`SettingsError` if boto3 is not installed.
    """

    bucket: str
    prefix: str = ""
    _: KW_ONLY
    read_seconds: float = 5.0
    #: Seconds after which no retry begins, and an unfinished answer is dropped.
    answer_seconds: float = 10.0
    retry_seconds: float = 0.3
    _creating: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        if find_spec("boto3") is None:
            raise SettingsError("CHRONOVERSE_ARCHIVE_URL: S3 needs boto3: install the extra s3 (docs/installing.md)")
        self._retries = RetryPolicy(self.retry_seconds, longest=2 * self.retry_seconds)
        self.prefix = f"{self.prefix.strip('/')}/" if self.prefix.strip("/") else ""

    def put(self, name: str, data: bytes) -> None:
        self._call(name, lambda s3, location: s3.put_object(**location, Body=data, ContentType="application/zstd"))

    def get(self, name: str, start: int = 0, stop: int | None = None) -> bytes:
        if start == stop:
            return b""
        options = {"Range": f"bytes={start}-{'' if stop is None else stop - 1}"} if start or stop else {}
        return self._call(name, lambda s3, location: self._read_body(s3.get_object(**location, **options)["Body"]))

    def delete(self, name: str) -> None:
        self._call(name, lambda s3, location: s3.delete_object(**location))

    def list(self, prefix: str) -> Iterator[StoredObject]:
        query = {"Bucket": self.bucket, "Prefix": self.prefix + prefix}
        while True:
            page = self._call("", lambda s3, _: s3.list_objects_v2(**query))
            for each in page.get("Contents", ()):
                name = each["Key"].removeprefix(self.prefix)
                yield StoredObject(name, each["Size"], each["LastModified"].timestamp())
            if not page.get("IsTruncated"):
                return
            query["ContinuationToken"] = page["NextContinuationToken"]

    def _call(self, name: str, request: Callable[[Any, dict[str, str]], _Answer]) -> _Answer:
        """Retries transient errors of ``request``, which gets the client, the bucket, and the key of ``name``."""
        give_up_at = time.monotonic() + self.answer_seconds
        location = {"Bucket": self.bucket, "Key": self.prefix + name}
        with self._creating:
            # Locked, because since Python 3.12 a search's threads would create twelve clients at once: 0.9 s of CPU.
            client = self._client
        for attempt in (1, 2, 3):
            try:
                return request(client, location)
            except Exception as error:
                translated, is_transient = _translate(error, name)
                if attempt == 3 or not is_transient or time.monotonic() > give_up_at:
                    raise translated from error
            time.sleep(self._retries.delay(attempt))
        raise AssertionError("the last attempt returns or raises")

    @cached_property
    def _client(self) -> Any:
        """The boto3 client. Created on first use, because creating it takes 0.2 s and must happen after a fork."""
        config = import_module("botocore.config").Config(
            connect_timeout=3.0,
            read_timeout=self.read_seconds,
            retries={"total_max_attempts": 1},
            # Concurrent requests beyond this number open their own connections.
            max_pool_connections=16,
            # Many S3-compatible servers do not support boto3's newer checksums.
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
        )
        # boto3's default session is not thread-safe.
        return import_module("boto3.session").Session().client("s3", config=config)

    def _read_body(self, body: Any) -> bytes:
        give_up_at = time.monotonic() + self.answer_seconds
        parts = []
        try:
            for part in body.iter_chunks(2**16):
                parts.append(part)
                if time.monotonic() > give_up_at:
                    raise TimeoutError(f"an object was incomplete after {self.answer_seconds:g} s")
        finally:
            body.close()
        return b"".join(parts)


def _translate(error: Exception, name: str) -> tuple[Exception, bool]:
    """Converts an error of boto3; others are returned unchanged. The second value: whether a retry can succeed."""
    exceptions = import_module("botocore.exceptions")
    if isinstance(error, exceptions.ClientError):
        answer: Any = getattr(error, "response", {})
        status, code = (
            answer.get("ResponseMetadata", {}).get("HTTPStatusCode", 0),
            answer.get("Error", {}).get("Code", ""),
        )
        if code in ("NoSuchKey", "InvalidRange") or (status, code) == (404, "404"):
            return ArchiveDamaged(f"the archive lacks {name}, or a part of it"), False
        codes = ("SlowDown", "RequestTimeout", "TooManyRequests", "Throttling", "OperationAborted")
        is_transient = status >= 500 or code in codes
    elif isinstance(error, (exceptions.BotoCoreError, OSError)):
        network_errors = exceptions.HTTPClientError, exceptions.IncompleteReadError, OSError
        is_transient = isinstance(error, network_errors)
    else:
        return error, False
    problem = certificate_problem(error, "AWS_CA_BUNDLE")
    if problem is not None:
        return ArchiveUnavailable(f"the certificate of the archive is not trusted: {problem}"), is_transient
    return ArchiveUnavailable(f"the archive cannot be used: {error}"), is_transient
