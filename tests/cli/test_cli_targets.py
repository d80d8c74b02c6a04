"""Which service or store a command uses: the rule in docs/cli.md."""

import contextlib
import socket
from collections.abc import Sequence
from pathlib import Path

import orjson
import pytest

from chronoverse.embedded import listeners
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
