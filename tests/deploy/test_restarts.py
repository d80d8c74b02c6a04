"""A plain restart of the store loses nothing, with each shipped configuration of users and persistence.

``test_redis_users.py`` tests ``redis-users.acl`` unchanged, as used with Kubernetes.
"""

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Final

import httpx
import pytest
import redis

from chronoverse.archive.object_store import FileObjectStore
from chronoverse.auth.tokens import ADMIN, READ
from chronoverse.embedded.server import SERVER_OPTIONS
from chronoverse.joblog.model import JobRef, Status
from chronoverse.store import Store
from tests.conftest import KINDS, binary
from tests.deploy.answers import all_answers, all_objects, write
from tests.deploy.conftest import COMPOSE_ENVIRONMENT, configure_compose_redis
from tests.support.archivers import archive
from tests.support.bench import make_lines
from tests.support.servers import RedisServer
from tests.support.service import serving

pytestmark = pytest.mark.long

WORKFLOW: Final = "wf_1"
LIVE, ENDED, ARCHIVED, REDACTED, DELETED, FOREIGN = (
    JobRef(WORKFLOW, name) for name in ("live", "ended", "archived", "redacted", "deleted", "foreign")
)


class ComposeServer(RedisServer):
    """The Redis of ``compose.yaml``."""

    def __init__(self, directory: Path, binary: str | None = None) -> None:
        super().__init__(directory, binary)
        directory.mkdir(parents=True)
        self._configuration = configure_compose_redis(directory)

    def _command(self) -> list[str]:
        program, *options = super()._command()
        return [program, str(self._configuration), *options]

    @property
    def url(self) -> str:
        return self.url_of("admin")

    def url_of(self, user: str) -> str:
        """A user's URL. Runners have no user here, since they publish over HTTP: ``admin`` replaces them."""
        user = user if user in ("service", "archiver") else "admin"
        return f"unix://{user}:{COMPOSE_ENVIRONMENT[f'REDIS_{user.upper()}_PASSWORD']}@{self.socket}"


def embedded(directory: Path, program: str) -> RedisServer:
    return RedisServer(directory, program, *SERVER_OPTIONS[SERVER_OPTIONS.index("--appendonly") :])


#: The shipped configurations: the Compose file, and the default.
SHIPPED: Final[dict[str, Callable[[Path, str], RedisServer]]] = {
    "compose": ComposeServer,
    "embedded": embedded,
}


def url_of(server: RedisServer, user: str) -> str:
    return server.url_of(user) if isinstance(server, ComposeServer) else server.url


@pytest.mark.parametrize(("shipped", "kind"), [*zip(SHIPPED, KINDS[1:], strict=True)])
def test_a_restart_loses_nothing(shipped: str, kind: str, tmp_path: Path) -> None:
    """Jobs, their pages and ends, and all objects are unchanged, also after more rounds of the archiver."""
    objects = FileObjectStore(tmp_path / "archive")
    with (
        SHIPPED[shipped](tmp_path / "store", binary(kind)) as server,
        contextlib.closing(Store(url_of(server, "runner"), lease_seconds=60)) as runner,
        contextlib.closing(Store(url_of(server, "archiver"))) as archiver,
        serving(tmp_path, url_of(server, "service"), archive_url=(tmp_path / "archive").as_uri()) as service,
        httpx.Client(
            base_url=f"{service.url}/workflows/{WORKFLOW}",
            headers={"Authorization": f"Bearer {service.token(scopes=(READ, ADMIN))}"},
        ) as client,
    ):
        assert httpx.get(f"{service.url}/readyz", verify=service.verify).status_code == 200
        # It has a key, so it generates neither a key nor a token.
        assert "CHRONOVERSE_TOKEN" not in service.logs()
        live = runner.open(LIVE, "token")
        runner.append(live, make_lines(1, 3))
        for job in (ARCHIVED, REDACTED, DELETED):
            write(runner, job)
        foreign = f"chronoverse:{{{WORKFLOW}}}:{FOREIGN.job_id}:log"
        with redis.Redis.from_url(url_of(server, "foreign-runner"), protocol=2, driver_info=None) as plain:
            plain.execute_command("XADD", foreign, "1-0", "message", "from elsewhere", "stream", "stdout")
            plain.execute_command("XADD", foreign, "2-0", "event", "end", "status", "COMPLETED", "exit_code", "0")
        assert archive(archiver, objects) == 0
        assert client.post("/jobs/redacted/logs/redact", json={"from": 2, "to": 2}).json()["redacted"] == 1
        assert client.delete("/jobs/deleted").status_code == 204
        assert archive(archiver, objects) == 0
        write(runner, ENDED)
        over = [ENDED, ARCHIVED, REDACTED, DELETED, FOREIGN]
        before, archived = all_answers(client, over, [LIVE]), all_objects(objects)
        assert [status for status, _ in before.values()].count(404) == 3
        assert len(archived) > 3

        server.stop()
        server.start()

        assert all_answers(client, over, [LIVE]) == before
        assert runner.append(live, make_lines(4, 1)) == 5
        runner.finish(live, Status.COMPLETED, 0, 0, 5)
        for _ in range(2):
            assert archive(archiver, objects) == 0
        after = all_objects(objects)
        assert archived.items() <= after.items()
        assert {name.split("/")[1] for name in after.keys() - archived.keys()} == {LIVE.job_id, ENDED.job_id}
        assert b"NOPERM" not in (tmp_path / "store" / "server.log").read_bytes()
