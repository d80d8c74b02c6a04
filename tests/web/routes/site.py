"""A service with an archive in files, and its jobs in any tier."""

import contextlib
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx

from chronoverse.archive.object_store import FileObjectStore
from chronoverse.auth.rights import ADMIN, READ, WRITE
from chronoverse.joblog.model import JobRef
from chronoverse.store import Store
from tests.support.archives import archive_up_to
from tests.support.service import Service
from tests.web.routes.foreign import Foreign
from tests.web.routes.wire import Stream, blocks, everything


class Site:
    """A service with an archive in files, and new jobs for tests."""

    def __init__(self, service: Service, directory: Path, store: Store, workflow_id: str) -> None:
        self.service = service
        self.directory = directory
        self.store = store
        self.objects = FileObjectStore(directory)
        self.headers = {"Authorization": f"Bearer {service.token(scopes=(READ, WRITE, ADMIN))}"}
        self.workflow_id = workflow_id
        self.client = httpx.Client(base_url=service.url, headers=self.headers, timeout=20, verify=service.verify)
        self._numbers = itertools.count(1)

    def job(self) -> Foreign:
        return Foreign(str(self.service.redis_url), self.workflow_id, f"job_{next(self._numbers)}")

    def archive_up_to(self, job: Foreign, to: int, *, trim: bool) -> None:
        """Archives the job's lines up to ``to`` and, with ``trim``, removes them from the store."""
        archive_up_to(self.store, self.objects, JobRef(job.workflow_id, job.job_id), to, trim=trim)

    def stream(self, job: Foreign, query: str = "", **headers: str) -> Stream:
        """An event stream, to be closed by the caller."""
        return Stream(self.service, f"{job.path}/events{query}", {**self.headers, **headers})

    def events(self, job: Foreign, query: str = "") -> list[dict[str, Any]]:
        """The stream of an ended job, without blocks that depend on the sizes of reads."""
        with self.stream(job, query) as stream:
            assert stream.wait_end().status == 200, stream.body
            return [block for block in blocks(stream.body) if block.get("event") not in ("connected", "job", None)]

    def pages(self, path: str) -> list[Any]:
        """The lines of all pages from ``path`` on."""
        return everything(self.client, path)


@contextlib.contextmanager
def open_site(service: Service, directory: Path, workflow_id: str, **store: Any) -> Iterator[Site]:
    """The site of ``service``, whose archive is in ``directory``. ``store``: settings of its store."""
    with contextlib.closing(Store(str(service.redis_url), **store)) as opened:
        site = Site(service, directory, opened, workflow_id)
        yield site
        site.client.close()
