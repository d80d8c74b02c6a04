"""The Compose file: it is valid, and its services start as defined, only without containers."""

import re
import subprocess
from pathlib import Path
from typing import Any, Final

import pytest
import redis
import yaml
from redis.backoff import NoBackoff
from redis.retry import Retry

from chronoverse.settings import Settings
from tests.deploy.conftest import (
    COMPOSE_ENVIRONMENT,
    DEPLOY,
    Gunicorn,
    configure_compose_redis,
    interpolate,
    read_compose,
    seconds,
)
from tests.support.ports import free_port
from tests.support.tools import tool
from tests.support.waiting import wait_until

FILE: Final = DEPLOY / "compose.yaml"
START_SECONDS: Final = 10.0
#: The variables of ``.env`` for watches.
WATCHES: Final = {"CHRONOVERSE_WEBHOOK_HOSTS", "CHRONOVERSE_URL"}


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    """The file as Compose reads it."""
    return read_compose()


@pytest.fixture(scope="module")
def nodes(compose: dict[str, Any]) -> dict[str, Any]:
    """The services that are nodes."""
    return {name: service for name, service in compose["services"].items() if name.startswith("node")}


def test_it_follows_the_compose_specification() -> None:
    """Unknown names and wrong types are errors."""
    command = [tool("check-jsonschema"), "--builtin-schema", "vendor.compose-spec", str(FILE)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)

    assert done.returncode == 0, done.stdout


def test_no_secret_is_in_the_file() -> None:
    """Each secret comes from the environment, and is required."""
    text = FILE.read_text()
    uncommented = "".join(line for line in text.splitlines(True) if not line.lstrip().startswith("#"))

    assert set(re.findall(r"\$\{(\w+):\?\}", uncommented)) == COMPOSE_ENVIRONMENT.keys()
    assert set(re.findall(r"\$\{(\w+):-", uncommented)) == {"REDIS_MAXMEMORY", *WATCHES}
    assert set(re.findall(r"#   (\w+)=", text)) == COMPOSE_ENVIRONMENT.keys() | WATCHES


def test_there_are_two_nodes_and_nginx_knows_both(compose: dict[str, Any], nodes: dict[str, Any]) -> None:
    """By their names in its network. nginx has all files that it needs."""
    nginx = compose["services"]["nginx"]
    servers = re.findall(r"server ([\w-]+):8000 (.*);", compose["configs"]["nodes"]["content"])
    shipped = re.findall(r"^server [\w.]+:[0-9]+ (.*);", (DEPLOY / "nginx-nodes.conf").read_text(), re.MULTILINE)
    targets = {each["target"] for each in nginx["configs"] + nginx["secrets"]}

    assert list(nodes) == ["node-1", "node-2"]
    assert [name for name, _ in servers] == 2 * list(nodes)
    assert [parameters for _, parameters in servers] == shipped
    assert nginx["volumes"] == ["./nginx.conf:/etc/nginx/nginx.conf:ro"]
    configuration = (DEPLOY / "nginx.conf").read_text()
    assert all(Path(target).name in configuration for target in targets)
    assert set(nginx["networks"]) < set(nodes["node-1"]["networks"])


@pytest.mark.long
def test_a_node_has_time_to_drain(nodes: dict[str, Any], gunicorn: Gunicorn) -> None:
    """It can also open enough files for all its streams."""
    for node in nodes.values():
        assert seconds(node["stop_grace_period"]) > gunicorn.drain_seconds
        assert node["ulimits"]["nofile"] > 2 * int(gunicorn["worker_connections"])


def test_every_service_is_confined_and_comes_back(compose: dict[str, Any]) -> None:
    """All but Redis, whose image changes its own user, have a read-only file system and no capabilities."""
    for name, service in compose["services"].items():
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert service["restart"] == "unless-stopped", name
        if name != "redis":
            assert (service["read_only"], service["cap_drop"]) == (True, ["ALL"]), name
    # SIGQUIT lets nginx's streams end.
    nginx = compose["services"]["nginx"]
    assert nginx["stop_signal"] == "SIGQUIT"
    assert {name: each["condition"] for name, each in nginx["depends_on"].items()} == {
        "node-1": "service_healthy",
        "node-2": "service_healthy",
    }


def test_only_nginx_can_be_reached_from_outside(compose: dict[str, Any]) -> None:
    """Redis' network has no outbound access."""
    assert [name for name, service in compose["services"].items() if "ports" in service] == ["nginx"]
    assert compose["services"]["redis"]["networks"] == ["store"]
    assert compose["networks"]["store"] == {"internal": True}


def test_the_archiver_shares_the_nodes_archive(compose: dict[str, Any], nodes: dict[str, Any]) -> None:
    """They share a volume, and its command exists. It depends on no other service, and none depends on it."""
    archiver = compose["services"]["archiver"]

    assert archiver["command"] == ["chronoverse", "archive", "--metrics", "0.0.0.0:8001"]
    assert archiver["networks"] == nodes["node-1"]["networks"]
    for each in (archiver, *nodes.values()):
        assert each["volumes"] == ["archive:/archive"]
        assert each["environment"]["CHRONOVERSE_ARCHIVE_URL"] == "file:///archive"
    assert compose["volumes"].keys() == {"archive", "redis"}
    # It neither makes nor verifies tokens.
    assert archiver["environment"].keys() == {"CHRONOVERSE_REDIS_URL", "CHRONOVERSE_ARCHIVE_URL"}
    # A new volume gets its owner from the image's directory. Without this directory, root would own it.
    assert re.search(r"install --directory --owner 10001 .* /archive\n", (DEPLOY.parent / "Dockerfile").read_text())


def test_the_notifier_is_set_up_like_the_nodes(compose: dict[str, Any], nodes: dict[str, Any]) -> None:
    """It has their store, archive and hosts, outbound access, and no key for tokens. Its command exists."""
    notifier, node = compose["services"]["notifier"], nodes["node-1"]

    assert notifier["command"] == ["chronoverse", "notify", "--metrics", "0.0.0.0:8003"]
    assert (notifier["networks"], notifier["volumes"]) == (node["networks"], node["volumes"])
    shared = {"CHRONOVERSE_REDIS_URL", "CHRONOVERSE_ARCHIVE_URL", "CHRONOVERSE_WEBHOOK_HOSTS"}
    assert notifier["environment"].keys() == shared | {"CHRONOVERSE_URL"}
    assert {name: notifier["environment"][name] for name in shared} == {
        name: node["environment"][name] for name in shared
    }
    text = interpolate(FILE.read_text("utf-8"), COMPOSE_ENVIRONMENT | {name: f"the-{name}" for name in WATCHES})
    filled = yaml.safe_load(text)["services"]["notifier"]["environment"]
    assert {name: filled[name] for name in WATCHES} == {name: f"the-{name}" for name in WATCHES}


@pytest.mark.long
def test_the_files_redis_has_its_users(compose: dict[str, Any], nodes: dict[str, Any], tmp_path: Path) -> None:
    """Redis accepts all options, writes an append-only file, and has a least-privilege user for each program."""
    environ = {name: str(value) for name, value in nodes["node-1"]["environment"].items()}
    settings = Settings.from_env({**environ, "CHRONOVERSE_DATA_DIR": str(tmp_path)})
    assert settings.archive_location == "file:///archive"
    assert settings.web_concurrency == 2
    port, configuration = free_port(), configure_compose_redis(tmp_path)
    options = ["--bind", "127.0.0.1", "--port", str(port), "--dir", str(tmp_path), "--logfile", str(tmp_path / "log")]
    server = subprocess.Popen([tool("redis-server"), str(configuration), *options], stdin=subprocess.DEVNULL)
    url = str(settings.redis_url).replace("redis:6379", f"127.0.0.1:{port}")
    archiver = str(compose["services"]["archiver"]["environment"]["CHRONOVERSE_REDIS_URL"])
    password = COMPOSE_ENVIRONMENT["REDIS_ADMIN_PASSWORD"]
    try:
        with redis.Redis(port=port, username="admin", password=password, retry=Retry(NoBackoff(), 0)) as client:
            wait_until(lambda: answers(client), START_SECONDS, "redis answers")
            # The password in the file is not usable.
            assert {line.split()[1] for line in client.acl_list()} == {"default", "admin", "service", "archiver"}
            assert not any("PASSWORD" in line for line in client.acl_list())
            assert client.config_get("appendonly", "appendfsync", "maxmemory-policy", "maxmemory") == {
                "appendonly": "yes",
                "appendfsync": "everysec",
                "maxmemory-policy": "noeviction",
                "maxmemory": str(2 * 2**30),
            }
        with redis.Redis(port=port, retry=Retry(NoBackoff(), 0)) as stranger, pytest.raises(redis.AuthenticationError):
            stranger.ping()
        # Each program has its own user.
        with redis.Redis.from_url(archiver.replace("redis:6379", f"127.0.0.1:{port}")) as client:
            assert client.execute_command("SCAN", 0)
        with redis.Redis.from_url(url) as client, pytest.raises(redis.exceptions.NoPermissionError):
            client.execute_command("SCAN", 0)
    finally:
        server.terminate()
        server.wait(START_SECONDS)


def answers(client: "redis.Redis") -> bool:
    """Whether the server answers."""
    try:
        return bool(client.ping())
    except redis.ConnectionError:
        return False
