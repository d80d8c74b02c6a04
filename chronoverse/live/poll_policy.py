"""How often a worker checks and reads its watched jobs, and how much it holds of each, by their number. Pure."""

from typing import Final

#: Seconds between two checks of a quiet job. This bounds how late a lost runner or a deleted log is noticed. At most so
#: many quiet jobs are checked in a second, 0.1 ms each. If there are more, each is checked less often.
CHECK_SECONDS: Final = 1.0
CHECKS_PER_SECOND: Final = 1000
#: The fewest and the most seconds between two checks of a job whose lines keep coming. A check of such a job can find
#: only a new status or a redaction. At most so many busy jobs are checked in a second.
BUSY_CHECK_SECONDS: Final = (1.0, 10.0)
BUSY_CHECKS_PER_SECOND: Final = 400
#: Lines of many jobs are read together, which costs less for each. So the reader pauses between two reads, for this
#: many seconds per watched job, and at most for the second number of seconds. With few jobs it does not pause. With
#: 4,000 jobs at a line a second, 20 ms needed as much CPU as 10 ms and made lines twice as late; 4 ms needed 8 % more.
PAUSE_SECONDS_PER_JOB: Final = 5e-6
PAUSE_SECONDS: Final = 0.01
PAUSE_FROM_JOBS: Final = 64
#: Bytes of the rings of all watched jobs of a worker, and the fewest and the most bytes for one of them.
RINGS_BYTES: Final = 256 * 2**20
RING_BYTES: Final = (64 * 2**10, 8 * 2**20)


def check_seconds(jobs: int) -> float:
    """Seconds between two checks of a quiet job, when ``jobs`` jobs are watched."""
    return max(CHECK_SECONDS, jobs / CHECKS_PER_SECOND)


def busy_check_seconds(jobs: int) -> float:
    """Seconds between two checks of a busy job, when ``jobs`` jobs are watched."""
    least, most = BUSY_CHECK_SECONDS
    return max(least, min(most, jobs / BUSY_CHECKS_PER_SECOND))


def pause_seconds(jobs: int) -> float:
    """Seconds between two reads of ``jobs`` jobs."""
    return min(PAUSE_SECONDS, jobs * PAUSE_SECONDS_PER_JOB) if jobs >= PAUSE_FROM_JOBS else 0.0


def ring_bytes(jobs: int) -> int:
    """Bytes of the ring of each job, when ``jobs`` jobs are watched."""
    least, most = RING_BYTES
    return max(least, min(most, RINGS_BYTES // max(jobs, 1)))
