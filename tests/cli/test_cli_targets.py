"""Which service or store a command uses: the rule in docs/cli.md."""

import contextlib
import os
import re
import socket
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

import orjson
import pytest

from chronoverse.archive.object_store import FileObjectStore
from chronoverse.archive.store_history import MARK
from chronoverse.embedded import listeners
from chronoverse.joblog.model import JobRef, Line, Status
from chronoverse.store import Store
from tests.cli.conftest import Cli
from tests.support.commands import after_link
from tests.support.scripted import ScriptedService, answer
from tests.support.servers import RedisServer

RUN = ("run", "--workflow", "wf_1", "--job", "job_1", "--", "true")
TOKEN = "0123456789abcdef0123456789abcdef"


def accepting_service() -> ScriptedService:
    """A service that opens a job and ends it."""
    opened = orjson.dumps({"attempt": 1, "token": TOKEN, "next": 1})
    return ScriptedService(answer("200 OK", opened), *[answer("204 No Content", b"")] * 3)


def test_run_publishes_through_the_configured_service(cli: Cli, tmp_path: Path) -> None:
    """Not into an embedded store of this machine, where nobody would look for the log."""
    with accepting_service() as service:
        done = cli(*RUN, URL=service.url, TOKEN="a.b.c", DURABILITY="acked")

    assert (done.returncode, after_link(done.stderr)) == (0, "")
    assert [request.path.rsplit("/", 1)[1] for request in service.requests] == ["attempts", "end"]
    assert not (tmp_path / "redis").exists()


def test_the_link_to_the_page_is_that_of_the_embedded_stores_service(cli: Cli, tmp_path: Path) -> None:
    """Of a running one, wherever it listens; otherwise as given by CHRONOVERSE_BIND."""
    page = "/ui/workflows/wf_1/jobs/job_1"
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listeners.record(tmp_path, listener)
        beside = cli(*RUN, DURABILITY="acked")
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    assert f"is at {url}{page}\n" in beside.stderr
    assert f"is at http://127.0.0.1:9000{page}\n" in cli(*RUN, BIND="0.0.0.0:9000", DURABILITY="acked").stderr


def test_an_option_overrides_the_settings(cli: Cli) -> None:
    """--server takes precedence over both settings."""
    with accepting_service() as service:
        done = cli(
            "run", "--server", service.url, *RUN[1:], URL="http://127.0.0.1:1", REDIS_URL="redis://127.0.0.1:1",
            TOKEN="a.b.c", DURABILITY="acked",
        )  # fmt: skip

    assert (done.returncode, after_link(done.stderr), len(service.requests)) == (0, "", 2)


def test_a_store_takes_precedence_over_a_service(cli: Cli, server: RedisServer, prefix: str) -> None:
    """A runner with access to the store needs no token, whatever service its machine's readers use."""
    done = cli(*RUN, URL="http://127.0.0.1:1", REDIS_URL=server.url, KEY_PREFIX=prefix, DURABILITY="acked")

    assert (done.returncode, after_link(done.stderr)) == (0, "")


@pytest.mark.parametrize("argv", [["archive", "--once"], ["archive", "--orphans", "--delete"]])
def test_only_the_services_store_is_changed(cli: Cli, argv: Sequence[str], tmp_path: Path) -> None:
    """This machine's embedded store is not the one that CHRONOVERSE_URL means."""
    done = cli(*argv, URL="https://logs.example.com")
    assert (done.returncode, done.stdout) == (78, "")
    assert "the service at https://logs.example.com, but this command needs that service's store" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_the_embedded_store_is_that_of_its_own_service(cli: Cli, tmp_path: Path) -> None:
    """CHRONOVERSE_URL can name the service of the same data directory."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listeners.record(tmp_path, listener)
        done = cli("retention", "wf_1", "1d", URL=f"http://127.0.0.1:{listener.getsockname()[1]}")

    assert (done.returncode, done.stdout) == (0, "86400 s\n")


def test_limits_shows_and_sets_the_quotas(cli: Cli, server: RedisServer, prefix: str) -> None:
    """In the store, even if CHRONOVERSE_URL is set as well. Omitted ones are unchanged. Invalid ones are rejected."""
    place = {"URL": "https://logs.example.com", "REDIS_URL": server.url, "KEY_PREFIX": prefix}
    with contextlib.closing(Store(server.url, prefix=prefix)) as store:
        store.catalog.set_common_bounds(0, 70, list)
        for options, shown in (
            ((), "per job: no limit (default)\nper day: 70 bytes (default)\n"),
            (("--job-bytes", "5"), "per job: 5 bytes\nper day: 70 bytes (default)\n"),
            (("--job-bytes", "default", "--day-bytes", "0"), "per job: no limit (default)\nper day: no limit\n"),
        ):
            assert cli("limits", "wf_1", *options, **place).stdout == shown
        assert cli("retention", "wf_1", "1d", **place).stdout == "86400 s\n"
        own = store.catalog.settings(["wf_1"])["wf_1"]
    assert (own.job_bytes, own.day_bytes, own.retention_seconds) == (None, 0, 86_400)
    for text in ("-1", "1G", "", "9" * 16):
        assert cli("limits", "wf_1", f"--day-bytes={text}", **place).returncode == 64


def test_commands_that_write_to_the_store_are_recorded(
    cli: Cli, server: RedisServer, prefix: str, tmp_path: Path
) -> None:
    """Once for each job or workflow, with the user's name. The user also sees the line, at any log level.

    Objects of unknown jobs are listed, and deleted unless the store lost data.
    """
    objects = FileObjectStore(tmp_path / "archive")
    place = {"REDIS_URL": server.url, "KEY_PREFIX": prefix, "ARCHIVE_URL": (tmp_path / "archive").as_uri()}

    def change(*arguments: str, **settings: str) -> "subprocess.CompletedProcess[str]":
        done = cli(*arguments, **place, **settings)
        assert done.returncode == 0, done.stderr
        return done

    refs = [JobRef(workflow, job) for workflow in ("wf_1", "wf_2") for job in ("a", "b")]
    with contextlib.closing(Store(server.url, prefix=prefix)) as store:
        for ref in refs:
            attempt = store.open(ref, TOKEN)
            store.append(attempt, [Line(1, "2026-03-03T10:00:05.123Z", "a line", "stdout")])
            store.finish(attempt, Status.COMPLETED, 0, 0, 2)
        assert change("archive", "--once").stderr.count(" archived ") == len(refs)
        said = change("retention", "wf_1", "90d", LOG_LEVEL="error").stderr
        assert re.search('audit sub=os:.*did=retention workflow_id=wf_1 what="7776000 s"', said)
        change("limits", "wf_1", "--job-bytes", "1000", "--day-bytes", "2000")
        change("limits", "wf_1")
        assert change("retention", "wf_1").stdout == "7776000 s\n"
        assert change("retention", "wf_1", "default").stdout == "604800 s (default)\n"
        server.ask("DEL", *server.ask("KEYS", f"{prefix}:{{wf_*"))
        for _ in range(2):
            change("archive", "--import")
            assert all(map(store.get_job, refs))
        for ref in refs:
            for name in ("one", "two"):
                objects.put(f"{ref.workflow_id}/gone-{ref.job_id}/{name}", b"of no job")
                os.utime(tmp_path / "archive" / ref.workflow_id / f"gone-{ref.job_id}" / name, (0, 0))
        names = {each.name for each in objects.list("")}
        objects.put(MARK, orjson.dumps({"mark": time.time() + 1_000}))
        refused = cli("archive", "--orphans", "--delete", **place)
        assert (refused.returncode, refused.stdout) == (os.EX_DATAERR, "")
        assert "the store lost data" in refused.stderr
        objects.delete(MARK)
        listed = {line.split("\t")[0] for line in change("archive", "--orphans").stdout.splitlines()}
        assert listed == {name for name in names if "/gone-" in name}
        change("archive", "--orphans", "--delete")
        assert {each.name for each in objects.list("")} - {MARK} == names - listed - {MARK}
        found = [entry for _, entry in store.audit_trail.page(0, None, None, 100)]
    assert [(each["did"], each["workflow_id"], each["id"], each["what"]) for each in reversed(found)] == [
        ("retention", "wf_1", None, "7776000 s"),
        ("limits", "wf_1", None, "job_bytes 1000, day_bytes 2000"),
        ("retention", "wf_1", None, "default"),
        *(("import", workflow, None, "jobs unknown to the store") for workflow in ("wf_1", "wf_2")),
        *(("delete", ref.workflow_id, f"gone-{ref.job_id}", "objects unknown to the store") for ref in refs),
    ]
    assert {each["sub"].partition("@")[0] for each in found} == {said.partition("sub=")[2].partition("@")[0]}
