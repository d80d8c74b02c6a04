"""Fixtures and helpers for the tests of the files in ``deploy/``."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

import pytest
import yaml

from tests.support.service import ROOT

DEPLOY: Final = ROOT / "deploy"
#: The oldest Kubernetes release whose preStop can sleep without a shell, and the newest one with a schema here.
RELEASES: Final = ("1.30", "newest")


def check_schema(document: Any, release: str = "newest") -> None:
    """Checks a Kubernetes object. Unknown names are errors."""
    # Imported here, because it takes time and few tests need it.
    import kubernetes_validate

    chosen = kubernetes_validate.latest_version() if release == "newest" else release
    kubernetes_validate.validate(document, chosen, strict=True)


class Gunicorn(dict[str, str]):
    """gunicorn's settings from ``gunicorn.conf.py``, without our environment variables. All values are strings."""

    @property
    def drain_seconds(self) -> int:
        """The maximum duration of a node's shutdown, in seconds."""
        return int(self["graceful_timeout"])


@pytest.fixture(scope="session")
def gunicorn(tmp_path_factory: pytest.TempPathFactory) -> Gunicorn:
    """The settings, as printed by gunicorn."""
    environ = {"PATH": os.environ["PATH"], "CHRONOVERSE_DATA_DIR": str(tmp_path_factory.mktemp("data"))}
    command = [sys.executable, "-m", "gunicorn", "-c", str(ROOT / "gunicorn.conf.py"), "--print-config"]
    done = subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, text=True, check=True, timeout=60)
    return Gunicorn(re.findall(r"^(\w+) += (.*)$", done.stdout, re.MULTILINE))


def interpolate(text: str, environ: dict[str, str]) -> str:
    """``text`` with ``${NAME:?}`` and ``${NAME:-default}`` replaced like Compose does.

    Raises KeyError if a variable is missing.
    """

    def value(found: re.Match[str]) -> str:
        name, operator, default = found.groups()
        return environ.get(name) or default if operator == ":-" else environ[name]

    return re.sub(r"\$\{(\w+)(:-|:\?)([^}]*)\}", value, text)


#: The required variables of the operator's ``.env``.
COMPOSE_ENVIRONMENT: Final = {
    "REDIS_ADMIN_PASSWORD": "the-administrators-password",
    "REDIS_SERVICE_PASSWORD": "the-services-password",
    "REDIS_ARCHIVER_PASSWORD": "the-archivers-password",
    "CHRONOVERSE_JWT_SECRET": "a secret of this test alone that is long enough for HS256",
    "TLS_CERTIFICATE": "/etc/tls/fullchain.pem",
    "TLS_KEY": "/etc/tls/privkey.pem",
}


def read_compose() -> dict[str, Any]:
    """The Compose file as Compose reads it, with the variables of :data:`COMPOSE_ENVIRONMENT`."""
    document: dict[str, Any] = yaml.safe_load(
        interpolate((DEPLOY / "compose.yaml").read_text("utf-8"), COMPOSE_ENVIRONMENT)
    )
    return document


def configure_compose_redis(directory: Path) -> Path:
    """Does in ``directory`` what the Compose file's Redis does before it starts. Returns its configuration."""
    compose = read_compose()
    redis = compose["services"]["redis"]
    shell, option, script = redis["command"]
    steps, _, start = script.replace("$$", "$").rpartition("exec ")
    assert start == "docker-entrypoint.sh redis-server /etc/redis/redis.conf\n"
    for path, replacement in (("/etc/redis/redis-users.acl", DEPLOY), ("/run/redis-users.acl", directory)):
        assert path in steps
        steps = steps.replace(path, shlex.quote(str(replacement / "redis-users.acl")))
    subprocess.run(
        [shell, option, steps], env={"PATH": os.environ["PATH"], **redis["environment"]}, check=True, timeout=10
    )
    configuration = directory / "redis.conf"
    content = compose["configs"]["redis"]["content"]
    configuration.write_text(content.replace("/run/redis-users.acl", str(directory / "redis-users.acl")), "utf-8")
    return configuration


def seconds(text: str) -> int:
    """The seconds of a duration such as ``40s``."""
    number, unit = text[:-1], text[-1]
    return int(number) * {"s": 1, "m": 60}[unit]


def uid() -> int:
    """The user id of the image."""
    (found,) = re.findall(r"^USER ([0-9]+):", Path(ROOT / "Dockerfile").read_text(), re.MULTILINE)
    return int(found)
