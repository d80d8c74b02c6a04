"""deploy/redis-users.acl as operators use it: loaded from the file by each kind of server, with every program."""

import contextlib
import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import httpx
import pytest
import redis
from cryptography.hazmat.primitives.asymmetric import ec
from jwt.algorithms import ECAlgorithm

from chronoverse.auth.jwks import PublishedKeys
from chronoverse.auth.rights import ADMIN, READ, WRITE
from chronoverse.joblog.model import JobRef, Status
from chronoverse.store import Store
from tests.conftest import EVERY_KIND, binary
from tests.deploy.conftest import DEPLOY
from tests.support.bench import make_lines, write_ended
from tests.support.commands import call_main
from tests.support.guarded_server import USERS, GuardedServer
from tests.support.issuer import Issuer
from tests.support.service import SECRET, Service, serving
from tests.support.waiting import wait_until

#: Time limit of a program on a busy machine, in seconds.
PATIENCE_SECONDS: Final = 60.0
EC: Final = ec.generate_private_key(ec.SECP256R1())


@pytest.fixture(params=EVERY_KIND)
def server(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[GuardedServer]:
    """A server that loads the file at startup."""
    with GuardedServer(tmp_path / "store", binary(request.param), "--appendonly", "yes") as server:
        yield server


def chronoverse(url: str, directory: Path, *arguments: str, **settings: str) -> str:
    """Runs ``chronoverse …`` as a Redis user. Returns its stderr. Fails if it fails."""
    environ = {
        **{name: value for name, value in os.environ.items() if not name.startswith(("CHRONOVERSE_", "PROMETHEUS_"))},
        "CHRONOVERSE_REDIS_URL": url,
        "CHRONOVERSE_JWT_SECRET": SECRET.decode(),
        "CHRONOVERSE_DATA_DIR": str(directory / "data"),
        "CHRONOVERSE_ARCHIVE_URL": (directory / "archive").as_uri(),
        **settings,
    }
    done = call_main(*arguments, environ=environ)
    assert done.returncode == 0, done.stderr
    return done.stderr


def messages(service: Service, job: str) -> list[str]:
    """The messages of the job's event stream, which must end."""
    headers = {"Authorization": f"Bearer {service.token()}"}
    with httpx.stream("GET", f"{service.url}/workflows/wf_1/jobs/{job}/events", headers=headers, timeout=10) as answer:
        text = "".join(answer.iter_text())
    assert "event: end\n" in text, text
    data = [line.removeprefix("data: ") for line in text.splitlines() if '"message"' in line]
    return [json.loads(each)["message"] for each in data]


def all_answers(client: httpx.Client) -> list[tuple[int, str]]:
    """The listing, each job in it, and its lines."""
    listing = client.get("/jobs")
    paths = [f"/jobs/{job['id']}{more}" for job in listing.json()["jobs"] for more in ("", "/logs")]
    return [(each.status_code, each.text) for each in (listing, *map(client.get, paths))]


@pytest.mark.long
def test_everything_works_and_nothing_is_denied(server: GuardedServer, tmp_path: Path) -> None:
    """Runners of each kind, a retry, viewers, an archiver, a redaction, a retention and a deletion.

    Everything is unchanged after a restart of the server, and works again.
    """
    runner, archiver = server.url_of("runner"), server.url_of("archiver")
    run = ("run", "--workflow", "wf_1", "--job")
    with (
        serving(tmp_path, server.url_of("service"), archive_url=(tmp_path / "archive").as_uri()) as service,
        redis.Redis.from_url(server.url_of("foreign-runner"), protocol=2, driver_info=None) as foreign,
        contextlib.closing(Store(runner, lease_seconds=60)) as store,
        httpx.Client(
            base_url=f"{service.url}/workflows/wf_1",
            headers={"Authorization": f"Bearer {service.token(scopes=(READ, WRITE, ADMIN))}"},
        ) as client,
    ):
        chronoverse(runner, tmp_path, *run, "direct", "--", "echo", "from a runner")
        # The job has ended, so the second run leaves a file.
        chronoverse(runner, tmp_path, *run, "direct", "--", "echo", "from a retry")
        (file,) = (tmp_path / "data" / "spool").glob("*.sqlite")
        chronoverse(runner, tmp_path, "deliver", "--retry", str(file))
        over_http = ("--server", service.url, "--", "echo", "over HTTP")
        chronoverse("", tmp_path, *run, "http", *over_http, CHRONOVERSE_TOKEN=service.token())
        key = "chronoverse:{wf_1}:foreign"
        foreign.execute_command("SET", f"{key}:lease", "me", "PX", 30_000)
        foreign.execute_command("HSET", f"{key}:job", "status", "RUNNING", "attempt", "1")
        foreign.execute_command("XADD", f"{key}:log", "1-0", "message", "from elsewhere", "stream", "stdout")
        foreign.execute_command("XADD", f"{key}:log", "2-0", "event", "end", "status", "COMPLETED", "exit_code", "0")
        foreign.execute_command("EXPIRE", f"{key}:log", 604_800)
        assert messages(service, "direct") == ["from a runner"]
        assert messages(service, "direct.2") == ["from a retry"]
        assert messages(service, "http") == ["over HTTP"]
        assert messages(service, "foreign") == ["from elsewhere"]
        assert client.put("/jobs/registered").status_code == 201
        archived = chronoverse(archiver, tmp_path, "archive", "--once")
        assert archived.count(" archived ") == 4, archived
        redacted = client.post("/jobs/direct/logs/redact", json={"from": 1, "to": 1})
        assert redacted.json()["redacted"] == 1, redacted.text
        assert messages(service, "direct") == ["[redacted]"]
        assert {job["id"] for job in client.get("/jobs").json()["jobs"]} == {
            *("direct", "direct.2", "http", "foreign", "registered")
        }
        assert client.delete("/jobs/direct").status_code == 204
        assert client.get("/jobs/direct").status_code == 404
        chronoverse(archiver, tmp_path, "retention", "wf_1", "90d")
        attempt = store.open(JobRef("wf_1", "live"), "token")
        store.append(attempt, make_lines(1, 3))
        write_ended(store, JobRef("wf_1", "ended"))
        before = all_answers(client)
        assert server.ask("ACL", "LOG") == []

        server.stop()
        server.start()

        # The service reconnects.
        wait_until(lambda: client.get("/jobs").status_code == 200, PATIENCE_SECONDS, "the jobs")
        assert all_answers(client) == before
        assert store.append(attempt, make_lines(4, 1)) == 5
        store.finish(attempt, Status.COMPLETED, 0, 0, 5)
        assert chronoverse(archiver, tmp_path, "archive", "--once").count(" archived ") == 2
        assert messages(service, "live") == [f"line {number}" for number in range(1, 5)]
    assert server.ask("ACL", "LOG") == []
    assert b"NOPERM" not in (tmp_path / "store" / "server.log").read_bytes()


KINDS: Final = ("log", "job", "lease", "deleted", "garbage", "archive")
LOG, JOB, LEASE, DELETED, GARBAGE, ARCHIVE = (f"chronoverse:{{wf_1}}:job_1:{kind}" for kind in KINDS)
#: An issuer's public keys. Whoever can write them can issue tokens.
KEYS: Final = "chronoverse-issuer:0123456789abcdef"
ISSUER_KEYS: Final = [f"SET {KEYS} x", f"GET {KEYS}", f"DEL {KEYS}", f"EXPIRE {KEYS} 1"]
#: What each user does not need.
DENIED: Final = {
    "service": ["KEYS *", "SCAN 0", "FLUSHALL", "CONFIG GET *", "ACL LIST", f"RENAME {LOG} x", "GET other:key"],
    "archiver": [
        *ISSUER_KEYS,
        "KEYS *",
        "FLUSHALL",
        "CONFIG SET maxmemory 1",
        "ACL LIST",
        f"RENAME {LOG} x",
        "GET other:key",
    ],
    "runner": [
        f"DEL {LOG}",
        f"DEL {JOB}",
        f"UNLINK {LOG}",
        f"XTRIM {LOG} MAXLEN 0",
        "SCAN 0",
        f"XREAD STREAMS {LOG} 0",
        # A tombstone, objects to delete, a chunk's record, the common quotas, and the mark that detects a rollback.
        f"SET {DELETED} x",
        f"HSET {GARBAGE} wf_2/job_1/1.zst 0",
        f"ZADD {ARCHIVE} 1 x",
        "HSET chronoverse:limits job_bytes 0",
        "ZADD chronoverse:mark 1 archivers",
        "XADD chronoverse-audit * sub x",
        *ISSUER_KEYS,
    ],
    "foreign-runner": [
        *ISSUER_KEYS,
        f"XRANGE {LOG} - +",
        f"XREAD STREAMS {LOG} 0",
        f"XTRIM {LOG} MAXLEN 0",
        f"XDEL {LOG} 1-0",
        f"HGETALL {JOB}",
        f"GET {LEASE}",
        f"SET {LEASE} me GET",
        f"SET {LOG} x",
        f"DEL {LEASE}",
        f"EXPIRE {JOB} 1",
        "EVAL return 0",
        "XADD other:{wf_1}:job_1:log 1-0 message x",
    ],
}


def test_users_have_only_the_rights_they_need(server: GuardedServer) -> None:
    """Without a user name, nothing is allowed."""
    for user, commands in DENIED.items():
        for command in commands:
            answer = server.ask("ACL", "DRYRUN", user, *command.split())
            assert b"no permissions" in answer, (user, command, answer)
    for url in (server.url, server.url_of("service").replace("PASSWORD-OF", "another")):
        with redis.Redis.from_url(url) as client, pytest.raises(redis.exceptions.AuthenticationError):
            client.ping()
    # The user "default" has all rights, for the replay of the append-only file.
    with redis.Redis.from_url(server.url, protocol=2, driver_info=None) as client:
        for words in ("PING", "AUTH x", "AUTH default default", "HELLO 3 AUTH default x", "AUTH default"):
            with pytest.raises(redis.exceptions.RedisError, match=r"(?i)auth|wrongpass|invalid"):
                client.execute_command(*words.split(), *[""] * (words == "AUTH default"))


#: What Redis cannot forbid: the commands are needed, and ACLs compare neither options nor fields (docs/redis.md).
UNAVOIDABLE: Final = {
    "service": ["XADD chronoverse-audit MAXLEN 0 * sub x"],
    "archiver": ["XADD chronoverse-audit MAXLEN 0 * sub x"],
    "runner": [
        f"XADD {LOG} MAXLEN 0 9-0 message x",
        f"PEXPIRE {LOG} 1",
        "HSET chronoverse:{wf_1}:settings job_bytes 0",
    ],
    "foreign-runner": [f"XADD {LOG} MAXLEN 0 9-0 message x", f"EXPIRE {LOG} 1"],
}


def test_the_document_lists_what_redis_cannot_forbid(server: GuardedServer) -> None:
    """With these commands, for other keys."""
    document = (DEPLOY.parent / "docs" / "redis.md").read_text("utf-8")
    section = document.partition("### What Redis cannot forbid\n")[2].partition("\n### ")[0]
    for user, commands in UNAVOIDABLE.items():
        for command in commands:
            assert server.ask("ACL", "DRYRUN", user, *command.split()) == b"OK", (user, command)
            assert command.split()[0] in section
            assert f"`{user}`" in section


@pytest.mark.long
def test_only_services_can_share_an_issuers_keys(tmp_path: Path) -> None:
    """Another service can read what the service's user writes."""
    with GuardedServer(tmp_path / "store") as server, Issuer() as issuer:
        issuer.keys = [{**ECAlgorithm.to_jwk(EC.public_key(), as_dict=True), "kid": "k1"}]
        for _node in ("old", "new"):
            with contextlib.closing(Store(server.url_of("service"))) as store:
                assert PublishedKeys(issuer.url, store=store).get("k1").key_id == "k1"
            issuer.keys = None
        assert server.ask("ACL", "LOG") == []


@pytest.mark.long
def test_passwords_are_set_as_documented(tmp_path: Path) -> None:
    """Each user has its own. The server's configuration can include the file."""
    document = (DEPLOY.parent / "docs" / "redis.md").read_text("utf-8")
    (commands,) = re.findall(r"```sh\n(umask 077\nfor user in .*?)```", document, re.DOTALL)
    shutil.copy(USERS, tmp_path)
    subprocess.run(["sh", "-euc", commands], cwd=tmp_path, check=True, timeout=PATIENCE_SECONDS)
    assert "PASSWORD" not in (tmp_path / USERS.name).read_text("utf-8")
    passwords = {path.stem.lower(): path.read_text("utf-8").strip() for path in tmp_path.glob("*.password")}
    assert passwords.keys() == {"admin", *DENIED}
    assert len(set(passwords.values())) == len(passwords)

    class IncludingServer(GuardedServer):
        def users(self) -> tuple[str, ...]:
            return ("--include", str(tmp_path / USERS.name))

        def url_of(self, user: str) -> str:
            return f"unix://{user}:{passwords[user]}@{self.socket}"

    with IncludingServer(tmp_path / "store") as server:
        assert {line.split()[1].decode() for line in server.ask("ACL", "LIST")} == {"default", *passwords}
        with redis.Redis.from_url(server.url_of("service"), driver_info=None) as client:
            assert client.ping()
