"""Every error that Chronoverse raises on purpose. All of them are subclasses of :class:`ChronoverseError`.

Errors of libraries are translated into these where the library is called. These are translated into HTTP answers in
``web/http/problems.py``, and into exit codes in ``cli/main.py``.
"""


class ChronoverseError(Exception):
    """The root of all errors. ``str()`` of an error is a message for a person.

    ``title`` is that of the problem document with which the service has refused a request, else empty.
    """

    title: str = ""


class SettingsError(ChronoverseError):
    """Raised when settings are not valid. The message names every one of them."""


class InvalidMask(ChronoverseError):
    """Raised when a secret that is to be masked is too short, too long or missing. The message never has the secret."""


class InvalidCursor(ChronoverseError):
    """Raised when a page cursor is malformed, or was made for another job, order or filter."""


class SearchTooExpensive(ChronoverseError):
    """Raised when a line is too long for the regular expression that is searched for."""


class NothingToCompare(ChronoverseError):
    """Raised when there is no run with which a log can be compared. The message says why."""


class Unauthorized(ChronoverseError):
    """Raised when a token is missing, malformed, expired, or not signed by a key of ours.

    The message is for whoever sent the token. ``reason`` is for the service's log only. It says what the message leaves
    out because it could help to forge a token. Neither has anything of the token.
    """

    def __init__(self, message: str, reason: str = ""):
        super().__init__(message)
        self.reason = reason or message


class Forbidden(ChronoverseError):
    """Raised when a valid token lacks the scope that a request needs."""


class JobNotFound(ChronoverseError):
    """Raised when a job does not exist, or when the token is not for its workflow. The message does not say which."""


class AtCapacity(ChronoverseError):
    """Raised when a worker has no room for a request. The message says what is full. A retry later may succeed."""


class ScansUnavailable(ChronoverseError):
    """Raised when the scan server does not answer: it has just died, or hangs. A retry may succeed."""


class Draining(AtCapacity):
    """Raised when a worker that is shutting down is asked for a new stream. Another worker may accept it."""


class ShareExceeded(ChronoverseError):
    """Raised when one token or one address already uses all that it may use at a time. A retry later may succeed."""


class EmbeddedError(ChronoverseError):
    """Raised when the embedded server cannot be found, started or reached."""


class SpoolError(ChronoverseError):
    """Raised when a file is no spool that this version can read, or is damaged."""


class SpoolInUse(SpoolError):
    """Raised when a process still has the spool file open, which is its runner or another delivery."""


class SigningKeysUnavailable(ChronoverseError):
    """Raised when the keys that tokens are checked with cannot be fetched. A retry may succeed."""


class Unreachable(ChronoverseError):
    """Raised when the service does not answer, keeps answering that it is unavailable, or is not trusted."""


class BadRequest(ChronoverseError):
    """Raised when the service finds a request malformed. A retry cannot succeed."""


class StoreError(ChronoverseError):
    """The root of all errors of the store and the archive."""


class StoreUnavailable(StoreError):
    """Raised when the store cannot be reached, is loading its data, or does not answer in time. A retry may succeed."""


class StaleToken(StoreUnavailable, Unauthorized):
    """Raised when a token is not accepted, or not there, but a new one may be there soon: it is read for each request.

    A retry may succeed.
    """


class TooFast(StoreUnavailable):
    """Raised when a client publishes or asks faster than it may. A retry after ``seconds`` may succeed."""

    def __init__(self, message: str, seconds: float):
        super().__init__(message)
        self.seconds = seconds


class KeysMoving(StoreUnavailable):
    """Raised while a Cluster moves a job's keys to another server. A retry may succeed."""


class StoreRefused(StoreError):
    """Raised when the store answers but does not write: out of memory, disk full, read-only. A retry may succeed."""


class NotDurable(StoreError):
    """Raised when the store keeps no append-only file, and so cannot say what is safely on its disk."""


class ArchiveUnavailable(StoreUnavailable):
    """Raised when the archive's object store cannot be reached or does not answer in time. A retry may succeed."""


class ArchiveBusy(StoreUnavailable):
    """Raised when another process archives or deletes the job at this moment. A retry may succeed."""


class ArchiveDamaged(StoreError):
    """Raised when an archived object is missing, or differs from what was written."""


class ArchiveNotConfigured(ChronoverseError):
    """Raised when something needs an archive, and this service has none."""


class LineStillOpen(ChronoverseError):
    """Raised when the newest line of a running job is to be redacted. That is possible once another line follows."""


class NotALog(StoreError):
    """Raised when a job's key holds something that is not a stream. A retry cannot succeed."""


class AppendRefused(ChronoverseError):
    """The root of the errors with which the store refuses a runner."""


class Held(AppendRefused):
    """Raised when another live runner holds the job's lease."""


class Closed(AppendRefused):
    """Raised when the job has already ended."""


class Deleted(AppendRefused):
    """Raised when the job was deleted. Until its tombstone expires, nothing is written under its id."""


class ForeignLines(Closed):
    """Raised when the log has another writer's lines where this runner's lines belong."""


class SpoolNotInLog(Closed):
    """Raised when a job has ended, and its log lacks lines that a spool file holds for it."""


class Fenced(AppendRefused):
    """Raised when this runner's lease is gone: another runner has it, it expired, or the job was declared LOST."""


class CorruptLog(AppendRefused):
    """Raised when the log's entry ids are not 1-0, 2-0, 3-0, and so on. Nothing can be appended to such a log."""


class SequenceGap(AppendRefused):
    """Raised when an append starts after the log's next number.

    ``expected`` is that next number. The runner sends its lines again from there.
    """

    def __init__(self, expected: int):
        super().__init__(f"the log's next line is {expected}")
        self.expected = expected
