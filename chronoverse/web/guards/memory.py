"""Limits a worker's memory for request bodies and unread answers, and each subject's share of it."""

import contextlib
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Final

from flask import Flask, Response, g, request

from chronoverse.errors import AtCapacity, ShareExceeded
from chronoverse.history.pages import PAGE_BYTES
from chronoverse.web.http.problems import problem_for

#: Bytes at the start of each body that use the memory for short bodies. Further bytes use the memory for long bodies. A
#: gzipped body counts twice, as sent and as inflated, so one of 64 KiB (a renewal, a few lines) is still short.
SHORT_BODY_BYTES: Final = 131_072


@dataclass
class Shares:
    """Divides ``total`` units of a resource among subjects. Errors call it ``what``.

    A subject can hold at most as much as remains free, so that a newcomer's small request fits. This is the dynamic
    threshold of Choudhury and Hahne (1998).
    """

    total: int
    what: str
    _held: Counter[str] = field(default_factory=Counter)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def fits(self, subject: str, amount: int) -> bool:
        """Whether ``subject`` can take ``amount`` more now. 0 always fits."""
        return not amount or self._held.get(subject, 0) + amount <= self.total - self._held.total() - amount

    def take(self, subject: str, amount: int) -> None:
        """Takes ``amount`` if it fits. Otherwise raises ShareExceeded, or AtCapacity if ``subject`` holds nothing."""
        with self._lock:
            if not self.fits(subject, amount):
                if not self._held.get(subject):
                    raise AtCapacity(f"this worker has no room for {self.what}")
                raise ShareExceeded(f"this token has used its share of {self.what}")
            self._held[subject] += amount

    def give_back(self, subject: str, amount: int) -> None:
        with self._lock:
            self._held[subject] -= amount
            if not self._held[subject]:
                del self._held[subject]


class BodyMemory:
    """The memory for all request bodies in progress, of at most ``limit`` bytes each."""

    def __init__(self, limit: int) -> None:
        self._short = Shares(16_777_216, "short request bodies")
        # Room for eight bodies of maximum length. A gzipped body can count as two.
        self._long = Shares(8 * limit, "long request bodies")

    @contextlib.contextmanager
    def hold(self, subject: str) -> Iterator[Callable[[int], None]]:
        """Yields a function that reserves memory for more bytes, and raises what :meth:`Shares.take` raises."""
        short = long = 0

        def take(size: int) -> None:
            nonlocal short, long
            first = min(size, SHORT_BODY_BYTES - short)
            self._short.take(subject, first)
            short += first
            self._long.take(subject, size - first)
            long += size - first

        try:
            yield take
        finally:
            self._short.give_back(subject, short)
            self._long.give_back(subject, long)


class UnreadAnswers(Shares):
    def __init__(self) -> None:
        # Room for eight pages.
        super().__init__(8 * PAGE_BYTES, "unread responses")

    def has_room(self, subject: str) -> bool:
        """True if a page of maximum size fits the share of ``subject``, or if ``subject`` has no unread answers."""
        return subject not in self._held or self.fits(subject, PAGE_BYTES)


def bound_unread_answers(app: Flask, shares: UnreadAnswers) -> None:
    """Counts each authenticated answer until it is sent or dropped. Refuses those beyond the subject's share."""

    @app.after_request
    def count_answer(response: Response) -> Response:
        # Downloads and event streams are not sequences, because they are sent while they are made.
        has_bytes = response.is_sequence and request.method != "HEAD"
        size = (response.calculate_content_length() or 0) if has_bytes else 0
        # A small answer fits into the kernel's buffer for the connection.
        if size <= 64 * 2**10 or "principal" not in g:
            return response
        subject = g.principal.subject
        try:
            shares.take(subject, size)
        except (AtCapacity, ShareExceeded) as error:
            response.close()
            return problem_for(error)
        response.call_on_close(lambda: shares.give_back(subject, size))
        return response
