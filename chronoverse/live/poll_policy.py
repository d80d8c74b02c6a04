"""What the number of watched jobs asks of a worker's one reader: how often, how long, how much. Pure."""

from typing import Final

#: Seconds between looks at a quiet job. Bounds how late a lost runner or a vanished log is noticed. Of all quiet jobs
#: so many are looked at in a second, 0.1 ms each: of more than that, each is looked at less often.
CHECK_SECONDS: Final = 1.0
CHECKS_PER_SECOND: Final = 1000
#: Seconds, at least and at most, between looks at a job whose lines keep coming: only its status and a redaction can
#: be news there. With few jobs it is the least; of all such jobs so many are looked at in a second.
BUSY_CHECK_SECONDS: Final = (1.0, 10.0)
BUSY_CHECKS_PER_SECOND: Final = 400
#: With many jobs each read costs both sides, most of it for jobs of which there is nothing new. So lines are gathered
#: for this many seconds per watched job, up to the second number; with few jobs there is no pause at all. With 4,000
#: jobs at a line a second, 30 ms instead of 20 brought lines 15 ms later (99th percentile) for a tenth less CPU.
PAUSE_SECONDS_PER_JOB: Final = 5e-6
PAUSE_SECONDS: Final = 0.02
PAUSE_FROM_JOBS: Final = 64
#: The same where the server says which jobs have changed, so that a read costs what there is to read. With 4,000 jobs
#: at a line a second 20 ms took no less CPU than 10, as far as noise let us tell, and brought lines twice as late; 4 ms
#: took 8 % more.
TRACKED_PAUSE_SECONDS: Final = 0.01
#: Bytes of frames held for all watched jobs of a worker, and the least and the most for one of them.
RINGS_BYTES: Final = 256 * 2**20
RING_BYTES: Final = (64 * 2**10, 8 * 2**20)


def check_seconds(jobs: int) -> float:
    """Between two looks at a quiet one of ``jobs``."""
    return max(CHECK_SECONDS, jobs / CHECKS_PER_SECOND)


def busy_check_seconds(jobs: int) -> float:
    """Between two looks at one of ``jobs`` whose lines keep coming."""
    least, most = BUSY_CHECK_SECONDS
    return max(least, min(most, jobs / BUSY_CHECKS_PER_SECOND))


def pause_seconds(jobs: int, *, tracked: bool = False) -> float:
    """Between two reads of ``jobs``; ``tracked`` where the server says which of them have changed."""
    most = TRACKED_PAUSE_SECONDS if tracked else PAUSE_SECONDS
    return min(most, jobs * PAUSE_SECONDS_PER_JOB) if jobs >= PAUSE_FROM_JOBS else 0.0


def ring_bytes(jobs: int) -> int:
    """What is held of each of ``jobs``."""
    least, most = RING_BYTES
    return max(least, min(most, RINGS_BYTES // max(jobs, 1)))
