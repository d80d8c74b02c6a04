"""Every error that Chronoverse raises on purpose: one tree, translated only at the edges."""


class ChronoverseError(Exception):
    """Root of the tree. ``str()`` of any of these is fit to show to a person."""


class SettingsError(ChronoverseError):
    """Raised when settings are bad; the message names every bad one."""


class InvalidMask(ChronoverseError):
    """Raised when a secret that was to be masked is too short, too long or not there. Never tells it."""


class InvalidCursor(ChronoverseError):
    """Raised when a page cursor is malformed or was made for another job, order or filter."""


class SearchTooExpensive(ChronoverseError):
    """Raised when a line is too long for the regular expression that it is to be searched for."""


class Unauthorized(ChronoverseError):
    """Raised when a token is missing, malformed, expired or not signed by our key."""


class Forbidden(ChronoverseError):
    """Raised when a valid token lacks the scope that a request needs."""


class JobNotFound(ChronoverseError):
    """Raised when a job does not exist, or may not be seen with this token: nobody can tell which."""


class AtCapacity(ChronoverseError):
    """Raised when a worker has no room for a request; the message says what is full. Worth a retry later."""


class Draining(AtCapacity):
    """Raised when a worker that was told to go is asked for a new stream. Another one may take it."""


class ShareExceeded(ChronoverseError):
    """Raised when one token or one address already has all that it may have at a time. Worth a retry later."""


class EmbeddedError(ChronoverseError):
    """Raised when the embedded server cannot be found, started or reached."""


class SpoolError(ChronoverseError):
    """Raised when a spool file cannot be used: it is no such file, or its runner is still writing it."""


class SigningKeysUnavailable(ChronoverseError):
    """Raised when the keys that tokens are checked with cannot be fetched. Worth a retry."""


class Unreachable(ChronoverseError):
    """Raised when the service does not answer, or keeps answering that it cannot serve. Worth a retry later."""


class BadRequest(ChronoverseError):
    """Raised when the service finds a request malformed. A retry changes nothing."""


class StoreError(ChronoverseError):
    """Anything that went wrong between us and the store."""


class StoreUnavailable(StoreError):
    """Raised when the store cannot be reached, is loading, or does not answer in time. Worth a retry."""


class TooFast(StoreUnavailable):
    """Raised when somebody publishes or asks faster than they may. Worth a retry in ``seconds``."""

    def __init__(self, message: str, seconds: float):
        super().__init__(message)
        self.seconds = seconds


class KeysMoving(StoreUnavailable):
    """Raised when a Cluster is moving a job's keys to another server just now. Worth a retry."""


class StoreRefused(StoreError):
    """Raised when the store answers but will not write: out of memory, disk full, read-only. Worth a retry."""


class NotDurable(StoreError):
    """Raised when the store cannot say what it has safely on its disk: it keeps no append-only file."""


class ArchiveUnavailable(StoreUnavailable):
    """Raised when the archive's object store cannot be reached or does not answer in time. Worth a retry."""


class ArchiveBusy(StoreUnavailable):
    """Raised when somebody else archives or deletes the job just now. Worth a retry."""


class ArchiveDamaged(StoreError):
    """Raised when an archived object is gone, or is not what was put there."""


class ArchiveNotConfigured(ChronoverseError):
    """Raised when something needs an archive, and this service has none."""


class LineStillOpen(ChronoverseError):
    """Raised when a running job's newest line is to be redacted. It can be once another follows."""


class NotALog(StoreError):
    """Raised when a job's key holds something that is not a stream. A retry changes nothing."""


class AppendRefused(ChronoverseError):
    """Root of the answers by which the store turns a runner away."""


class Held(AppendRefused):
    """Raised when another live runner holds the job's lease."""


class Closed(AppendRefused):
    """Raised when the job has already ended."""


class Deleted(AppendRefused):
    """Raised when the job was deleted: for a while nothing is written under its id."""


class ForeignLines(Closed):
    """Raised by a runner that finds somebody else's lines where its own would have to be."""


class SpoolNotInLog(Closed):
    """Raised when a job has ended, and its log does not have what a spool file holds for it."""


class Fenced(AppendRefused):
    """Raised when this runner's lease is gone: taken over, expired, or the job was declared lost."""


class CorruptLog(AppendRefused):
    """Raised when the log holds entry ids that are not 1-0, 2-0, 3-0, …: nothing can be appended safely."""


class SequenceGap(AppendRefused):
    """Raised when an append starts beyond the log's next number.

    ``expected`` is that next number: send again from there.
    """

    def __init__(self, expected: int):
        super().__init__(f"the log's next line is {expected}")
        self.expected = expected
