"""gunicorn's gevent worker, which lets a stream have its socket."""

import time
from typing import Any, Final

import gevent
from gunicorn.workers.base_async import ALREADY_HANDLED
from gunicorn.workers.ggevent import GeventWorker

#: Seconds between looks whether the last stream has ended.
LOOK_SECONDS: Final = 0.1


class Worker(GeventWorker):
    """A response of ``ALREADY_HANDLED`` ends gunicorn's part: no further request is read from that connection."""

    def is_already_handled(self, respiter: Any) -> bool:
        """Raises StopIteration, which is how gunicorn's handlers are told to let go."""
        if super().is_already_handled(respiter):
            raise StopIteration
        return False

    def run(self) -> None:
        """Serves until told to go, and until the streams have ended, within the graceful timeout."""
        outlets = self.wsgi.extensions["chronoverse"].outlets
        outlets.answer = ALREADY_HANDLED
        super().run()
        deadline = time.monotonic() + self.cfg.graceful_timeout
        while outlets.open and time.monotonic() < deadline:
            self.notify()
            gevent.sleep(LOOK_SECONDS)
