"""docs/deploying.md's path from nothing to two nodes works from top to bottom, and each step prints what is shown."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.deploy.two_nodes import NAMESPACES
from tests.support.provider import need_provider
from tests.support.service import ROOT
from tests.support.tools import tool, unavailable


@pytest.mark.long
@pytest.mark.timeout(600)
def test_the_path_runs_as_printed(tmp_path: Path) -> None:
    """With real servers: nginx, Redis, Prometheus, an OpenID provider, and moto for S3."""
    for name in ("nginx", "redis-server", "prometheus", "promtool", "moto_server", "openssl", "curl", "ip"):
        tool(name)
    need_provider()
    for name in ("nginx", "redis-server", "prometheus"):
        if not Path(f"/usr/lib/systemd/system/{name}.service").exists():
            unavailable(f"{name} is not the package of Debian, which has a unit")
    if os.geteuid() != 0 or subprocess.run([*NAMESPACES, "true"], check=False, timeout=30).returncode != 0:
        unavailable("this needs root, and a kernel that allows namespaces")
    python, wheels, root = tmp_path / "python", tmp_path / "wheels", tmp_path / "root"
    root.mkdir()
    download = f"{python}/bin/pip download --quiet --only-binary=:all: --dest={wheels}"
    for command in (
        f"python3 -m venv {python}",
        f"{download} -r requirements-image.txt",
        f"{download} -r requirements-build.txt",
    ):
        subprocess.run(command.split(), cwd=ROOT, check=True, timeout=200)
    done = subprocess.run(
        [*NAMESPACES, sys.executable, "-m", "tests.deploy.two_nodes", str(root), str(wheels)],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
