"""All errors that Chronoverse raises on purpose. Each class defines its HTTP status, reason, title and exit code."""

import os
from collections.abc import Mapping, Sequence
from typing import ClassVar


class ChronoverseError(Exception):
    """The base class of all errors. ``str()`` returns a message for users."""

    status: ClassVar[int] = 500
    reason: ClassVar[str | None] = None
    #: What clients see instead of a 5xx error's message, which is for operators. None if clients may see the message.
    detail: ClassVar[str | None] = "Internal error."
    exit_code: ClassVar[int] = os.EX_SOFTWARE
    #: A client sets this to the title of the problem document. The class's value is for responses without one.
    title: str = "Error"


class SettingsError(ChronoverseError):
    """Raised for invalid settings. The message lists all of them."""

    exit_code = os.EX_CONFIG


class InvalidMask(ChronoverseError):
    """Raised when a secret to mask is too short, too long or missing. The message never contains the secret."""

    exit_code = os.EX_USAGE


class SearchTooExpensive(ChronoverseError):
    """Raised when a line is too long for the regular expression of a search."""

    status = 400


class NothingToCompare(ChronoverseError):
    """Raised when there is no run to compare a log with. The message gives the reason."""

    status = 409
    reason = "nothing-to-compare"
    exit_code = os.EX_NOINPUT


class Unauthorized(ChronoverseError):
    """Raised when a token is missing, malformed, expired, or not signed by one of our keys.

    The message is for the client. ``explanation`` is only for the service's log, because it could help to forge a
    token. Neither contains any part of the token except an invalid ``workflows`` entry.
    """

    status = 401
    title = "Unauthorized"
    exit_code = os.EX_NOPERM

    def __init__(self, message: str, explanation: str = ""):
        super().__init__(message)
        self.explanation = explanation or message


class Forbidden(ChronoverseError):
    """Raised when a valid token lacks the scope for a request, or has the scope only for other workflows."""

    status = 403
    title = "Forbidden"
    exit_code = os.EX_NOPERM


class JobNotFound(ChronoverseError):
    """Raised when a job does not exist, or the token does not grant its workflow. The message does not say which."""

    status = 404
    title = "Not Found"
    exit_code = os.EX_NOINPUT


class AtCapacity(ChronoverseError):
    """Raised when a worker has no capacity for a request. The message says what is full. A retry later may succeed."""

    status = 503
    detail: ClassVar[str | None] = None
    exit_code = os.EX_TEMPFAIL


class ScansUnavailable(ChronoverseError):
    """Raised when the scan server does not answer, because it has crashed or hangs. A retry may succeed."""

    status = 503
    detail = "Searches are unavailable; try again."


class ShareExceeded(ChronoverseError):
    """Raised when a token or an address has used up its share. A retry later may succeed."""

    status = 429


class EmbeddedError(ChronoverseError):
    """Raised when the embedded server cannot be found, started or reached."""

    exit_code = os.EX_UNAVAILABLE


class SpoolError(ChronoverseError):
    """Raised when a file is damaged, or is not a spool that this version can read."""

    exit_code = os.EX_DATAERR


class SpoolInUse(SpoolError):
    """Raised while the runner, or another delivery, still has the spool file open."""


class SigningKeysUnavailable(ChronoverseError):
    """Raised when the issuer's keys cannot be fetched. A retry may succeed."""

    status = 503
    detail = "The issuer's keys cannot be fetched; try again."


class RightsUnavailable(ChronoverseError):
    """Raised while the rights of groups are unknown because their file is invalid. A retry may succeed."""

    status = 503
    detail = "The token's rights cannot be determined; try again."


class Unreachable(ChronoverseError):
    """Raised when the service does not answer, stays unavailable, or is not trusted."""

    status = 503
    title = "Service Unavailable"
    exit_code = os.EX_UNAVAILABLE


class BadRequest(ChronoverseError):
    """Raised when a request, such as its page cursor, is malformed. A retry cannot succeed."""

    status = 400
    title = "Bad Request"
    exit_code = os.EX_DATAERR


class StoreError(ChronoverseError):
    """The base class of all errors of the store and the archive."""

    status = 502
    detail = "Unexpected answer from the store."
    exit_code = os.EX_UNAVAILABLE


class StoreUnavailable(StoreError):
    """Raised when the store cannot be reached, is loading its data, or does not answer in time. A retry may succeed."""

    status = 503
    detail = "The store is unreachable; try again."


class StaleToken(StoreUnavailable, Unauthorized):
    """Raised when a token that is reread for each request is missing or refused. A retry may succeed."""

    exit_code = os.EX_NOPERM


class TooFast(StoreUnavailable):
    """Raised when a client exceeds a rate. A retry after ``seconds`` may succeed."""

    status = 429

    def __init__(self, message: str, seconds: float):
        super().__init__(message)
        self.seconds = seconds


class NotPermanent(StoreUnavailable):
    """Raised when the store may still lose a deletion. A retry may succeed."""

    detail = (
        "The job is hidden, but its deletion is not permanent yet: the store's disk is slow, or a replica"
        " (or `redis-cli --rdb`) has disconnected; try again."
    )


class KeysMoving(StoreUnavailable):
    """Raised while a Cluster moves a job's keys to another server. A retry may succeed."""


class StoreRefused(StoreError):
    """Raised when the store answers but refuses writes: out of memory, disk full, read-only. A retry may succeed."""

    status = 503
    detail = "The store rejects writes; try again."
    exit_code = os.EX_TEMPFAIL


class NotDurable(StoreError):
    """Raised when the store has no append-only file, and so cannot report which writes are on disk."""


class ArchiveUnavailable(StoreUnavailable):
    """Raised when the archive's object store cannot be reached or does not answer in time. A retry may succeed."""

    detail = "This part of the log is in the archive, which is unreachable; try again."


class ArchiveBusy(StoreUnavailable):
    """Raised while another process archives or deletes the job. A retry may succeed."""

    detail = "The job is being archived or deleted; try again."


class ArchiveDamaged(StoreError):
    """Raised when an archived object is missing, or its content has changed."""

    detail = "This part of the log cannot be read from the archive."
    exit_code = os.EX_SOFTWARE


class ArchiveNotConfigured(ChronoverseError):
    """Raised when an operation needs an archive but the service has none."""

    status = 409
    reason = "NO_ARCHIVE"
    exit_code = os.EX_UNAVAILABLE


class LineStillOpen(ChronoverseError):
    """Raised for an attempt to redact a running job's newest line. A retry can succeed once another line follows."""

    status = 409
    reason = "STILL_LIVE"
    exit_code = os.EX_TEMPFAIL


class NotALog(StoreError):
    """Raised when a job's key is not a stream. A retry cannot succeed."""

    status = 409
    reason = "NOT_A_LOG"
    exit_code = os.EX_DATAERR


class AppendRefused(ChronoverseError):
    """The base class of errors by which the store refuses a runner."""

    status = 409


class Held(AppendRefused):
    """Raised when another live runner holds the job's lease."""

    reason = "HELD"
    exit_code = os.EX_TEMPFAIL


class Closed(AppendRefused):
    """Raised when the job has already ended."""

    reason = "CLOSED"
    exit_code = os.EX_CANTCREAT


class Deleted(AppendRefused):
    """Raised when the job was deleted. Until its tombstone expires, nothing is written under its id."""

    reason = "DELETED"
    exit_code = os.EX_CANTCREAT


class ForeignLines(Closed):
    """Raised when the log has another writer's lines at the numbers of this runner's lines."""


class SpoolNotInLog(Closed):
    """Raised when a job has ended but its log lacks lines of a spool file."""

    exit_code = os.EX_PROTOCOL


class Fenced(AppendRefused):
    """Raised when this runner has lost its lease: another runner took it, it expired, or the job was declared LOST."""

    reason = "FENCED"


class CorruptLog(AppendRefused):
    """Raised when the log's entry ids are not 1-0, 2-0, 3-0, …. Nothing can be appended to it."""

    reason = "TAINTED"
    exit_code = os.EX_DATAERR


class LabelSet(AppendRefused):
    """Raised when labels (``keys``) already have other values, or the job has no room for them. Nothing was changed."""

    reason = "label-set"

    def __init__(self, message: str, keys: Sequence[str] = ()):
        super().__init__(message)
        self.keys = tuple(keys)


class EarlierService(ChronoverseError):
    """Raised once if the service does not accept runs of lines. The append is then retried in the older format."""


class TooManyFiles(AppendRefused):
    """Raised when a job's numbered log records come from more files than the store remembers per job."""


class RecordsMissing(ChronoverseError):
    """Raised when earlier log records are missing. A retry may succeed once they arrive."""

    status = 503
    detail: ClassVar[str | None] = None


class SequenceGap(AppendRefused):
    """Raised when an append starts after ``expected``, the log's next number. The runner resends from that number."""

    reason = "GAP"

    def __init__(self, expected: int):
        super().__init__(f"the log's next line is {expected}")
        self.expected = expected


class QuotaReached(SequenceGap):
    """Raised when an append succeeded, but a quota dropped some of its lines.

    Each number below ``expected`` has a line in the log, or is in a gap.
    """

    reason = "quota"

    def __init__(self, expected: int):
        super().__init__(expected)
        self.args = ("byte quota exceeded: further lines are dropped, and the log names their numbers",)


def errors_by_reason(kind: type[ChronoverseError] = ChronoverseError) -> Mapping[str, type[ChronoverseError]]:
    found = {reason: error for each in kind.__subclasses__() for reason, error in errors_by_reason(each).items()}
    return found if kind.reason is None else {**found, kind.reason: kind}
