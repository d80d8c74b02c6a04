"""Each workflow's listing: job ids by creation time. A foreign runner's job is added when it is first read."""

import contextlib
import time
from bisect import bisect_left
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import compress
from typing import Any, NamedTuple

from chronoverse.errors import StoreError
from chronoverse.joblog.model import IDENTIFIER, Job, JobRef, ListingPosition
from chronoverse.store.commands import Commands


class ListedJob(NamedTuple):
    """A listed job. ``job`` is None if it was deleted or cannot be read."""

    created_ms: float
    ref: JobRef
    job: Job | None


@dataclass(frozen=True, slots=True)
class JobListing:
    """Reads and repairs the listings. Raises what :class:`Store` raises. ``clock`` is Unix time in seconds."""

    _commands: Commands
    _clock: Callable[[], float] = time.time

    def page(self, workflow_id: str, before: ListingPosition | None, count: int) -> list[ListingPosition]:
        """The positions of up to ``count`` jobs below ``before``, newest first. See :func:`newest_first`."""
        command = partial(self._commands.run, workflow_id)
        return newest_first(command, self._commands.keys.of_workflow(workflow_id, "jobs"), before, count)

    def positions(
        self, workflow_id: str, before: ListingPosition | None = None, count: int = 1_000
    ) -> Iterator[ListingPosition]:
        """All positions below ``before``, newest first. Reads ``count`` at a time."""
        while page := self.page(workflow_id, before, count):
            yield from page
            before = page[-1]

    def newest(self, before: Mapping[str, ListingPosition | None]) -> dict[str, ListingPosition | None]:
        """Each workflow's newest position below the given one, in a few round trips. None if no job is left.

        Omits workflows that cannot be read, and workflows that need a search by :meth:`positions`.
        """
        name = self._commands.keys.of_workflow
        tops = {each: "+inf" if at is None else repr(at[0]) for each, at in before.items()}

        def read(refs: Sequence[JobRef]) -> list[Any]:
            newest = ("-inf", "WITHSCORES", "LIMIT", 0, 1)
            commands = [("ZREVRANGEBYSCORE", name(each, "jobs"), tops[each], *newest) for each, _ in refs]
            return self._commands.pipeline(refs[0].workflow_id, commands)

        found: dict[str, ListingPosition | None] = {}
        for (workflow_id, _), reply in self._commands.by_server([JobRef(each, "") for each in before], read).items():
            if isinstance(reply, list):
                # A pair in a list in RESP3, flat in RESP2.
                member, score = (reply[0] if isinstance(reply[0], list) else reply) if reply else (b"", "-inf")
                at, position = before[workflow_id], (float(score), member.decode("ascii", "replace"))
                if not reply or (IDENTIFIER.fullmatch(position[1]) and (at is None or position < at)):
                    found[workflow_id] = position if reply else None
        return found

    def ended_otherwise(self, workflow_id: str, job_ids: Sequence[str], status: str) -> set[str]:
        """The jobs that ended with a status other than ``status``. Omits foreign jobs. Faster than reading them."""
        keys = [self._commands.keys.of(JobRef(workflow_id, job_id), "job") for job_id in job_ids]
        return set(compress(job_ids, self._commands.script("ended_otherwise", workflow_id, keys, status)))

    def unlist(self, workflow_id: str, job_ids: Sequence[str]) -> None:
        """Removes jobs from the listing that have neither a log nor a hash."""
        names = self._commands.keys
        keys = [names.of(JobRef(workflow_id, job_id), kind) for job_id in job_ids for kind in ("log", "job")]
        self._commands.script("unlist", workflow_id, [names.of_workflow(workflow_id, "jobs"), *keys], *job_ids)

    def add_foreign(self, jobs: Sequence[Job]) -> Mapping[JobRef, float]:
        """Adds foreign ``jobs``, all on one server, to the listings and the changes of their workflows.

        A job's score is its creation time, or now if unknown; a listed job keeps its score. Returns the scores of jobs
        that this call added or found. Never raises, because a full server can still be read.
        """
        calls = [
            (
                job.ref.workflow_id,
                [self._commands.keys.of(job.ref, kind) for kind in ("log", "job", "jobs")],
                [round((job.created_seconds or self._clock()) * 1000), job.ref.job_id],
            )
            for job in jobs
        ]
        with contextlib.suppress(StoreError):
            scores = self._commands.scripts("list_foreign", calls)
            # A score is an error if the listing's key has another type, and None if the job is gone.
            known = zip(jobs, scores, strict=True)
            return {job.ref: float(score) for job, score in known if isinstance(score, bytes)}
        return {}


def newest_first(
    command: Callable[..., Any],
    key: str,
    before: ListingPosition | None,
    count: int,
    wanted: Container[str] | None = None,
) -> list[ListingPosition]:
    """Up to ``count`` (score, id) pairs of the sorted set ``key`` below ``before``, highest first. Removes invalid ids.

    With ``wanted``, skips all other members, at 1 µs each.
    """
    highest = "+inf" if before is None else repr(before[0])

    def members(skip: int, count: int) -> list[tuple[float, bytes]]:
        reply = command("ZREVRANGEBYSCORE", key, highest, "-inf", "WITHSCORES", "LIMIT", skip, count)
        # A list of pairs in RESP3, flat in RESP2.
        pairs = reply if reply and isinstance(reply[0], list) else zip(reply[::2], reply[1::2], strict=True)
        return [(float(score), member) for member, score in pairs]

    def is_after(page: list[tuple[float, bytes]]) -> bool:
        if before is None or not page:
            return True
        score, member = page[-1]
        return (score, member.decode("utf-8", "replace")) < before

    found: list[ListingPosition] = []
    skip, size = 0, count if wanted is None else 200
    while len(found) < count:
        page = members(skip, size)
        named = page if wanted is None else [each for each in page if each[1].decode("latin-1") in wanted]
        invalid = {member for _, member in named if not IDENTIFIER.fullmatch(member.decode("ascii", "replace"))}
        if invalid:
            command("ZREM", key, *invalid)
        listed = [(score, member.decode()) for score, member in named if member not in invalid]
        found += [item for item in listed if before is None or item < before]
        skip += size - len(invalid)
        if len(page) < size:
            break
        if not found or wanted is not None:
            # Millions of members can be invalid or unwanted. Reading 5,000 of them takes the server about 2 ms.
            size = min(2 * size, 5_000)
            if not is_after(page):
                # Millions of members can have this score. A binary search finds the first one after ``before`` in 31
                # commands.
                skip = bisect_left(range(2**31), True, lo=skip, key=lambda at: is_after(members(at, 1)))
    return found[:count]
