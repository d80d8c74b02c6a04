"""Runs the path of docs/deploying.md from nothing to two nodes, as it is printed, and compares what each step shows.

It needs namespaces of its own for processes, mounts and the network (:data:`NAMESPACES`). So it has all ports and the
whole of ``/etc``, and nothing of it is left afterwards.
"""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

import httpx
import yaml

from tests.archive.s3server import BUCKET, s3_server
from tests.support.provider import Provider, providing
from tests.support.service import ROOT

#: The command that runs this program.
NAMESPACES: Final = ("unshare", "--mount", "--net", "--pid", "--fork", "--kill-child", "--mount-proc")
HOST: Final = "logs.example.com"
#: Seconds for the whole path on a busy machine.
PATIENCE_SECONDS: Final = 240


def blocks() -> list[tuple[str, str]]:
    """The commands of each step, and what they show."""
    page = (ROOT / "docs" / "deploying.md").read_text("utf-8")
    section = page.partition("## From nothing to two nodes\n")[2].partition("\n## ")[0]
    return re.findall(r"^```sh\n(.*?)^```\n(?:\n```text\n(.*?)^```\n)?", section, re.MULTILINE | re.DOTALL)


def make_root(directory: Path) -> None:
    """A view of this machine to which only we can write. Programs that the path installs are there."""
    run("ip", "link", "set", "lo", "up")
    run("mount", "-t", "tmpfs", "tmpfs", str(directory))
    for name in ("etc", "opt", "run", "var"):
        for each in ("upper", "work"):
            (directory / name / each).mkdir(parents=True)
        options = f"lowerdir=/{name},upperdir={directory}/{name}/upper,workdir={directory}/{name}/work"
        run("mount", "-t", "overlay", "overlay", "-o", options, f"/{name}")
    with open("/etc/hosts", "a", encoding="utf-8") as hosts:
        hosts.write(f"127.0.0.1 {HOST}\n")
    write_program(Path("/opt/chronoverse/bin/chronoverse"), f'exec {sys.executable} -m chronoverse "$@"')
    tools = directory / "bin"
    write_program(tools / "systemctl", f'exec {sys.executable} {Path(__file__).with_name("systemctl.py")} "$@"')
    write_program(tools / "apt-get", "")
    # There is no Grafana here: its unit does nothing.
    unit = Path("/etc/systemd/system/grafana-server.service")
    unit.parent.mkdir(parents=True, exist_ok=True)
    unit.write_text("[Service]\nExecStart=/bin/true\n")


def write_program(path: Path, command: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{command}\n")
    path.chmod(0o755)


def run(*command: str) -> None:
    subprocess.run(command, check=True, stdin=subprocess.DEVNULL, timeout=PATIENCE_SECONDS)


def sign_in(provider: Provider) -> str:
    """A token of the provider, by its device flow (RFC 8628)."""
    asked: dict[str, Any] = {"client_id": provider.client_id, "scope": "openid logs:read logs:write"}
    device = httpx.post(f"{provider.url}/device/auth", data=asked).raise_for_status().json()
    provider.approve(device["verification_uri_complete"])
    grant = "urn:ietf:params:oauth:grant-type:device_code"
    asked = {"client_id": provider.client_id, "grant_type": grant, "device_code": device["device_code"]}
    token: str = httpx.post(f"{provider.url}/token", data=asked).raise_for_status().json()["access_token"]
    return token


def follow(directory: Path, variables: dict[str, str]) -> None:
    """Runs all steps in one shell, and compares what they show."""
    (first, _), *steps = blocks()
    assert set(re.findall(r"(\w+)=", first)) <= variables.keys()
    # Libraries are not installed again. The tests of the packaging and of the image do that.
    commands = [re.sub(r"(?m)^python3 -m venv .*\n", "", command) for command, _ in steps]
    script = "\n".join(["set -eu", *(f"printf '\\036'\n{command}" for command in commands)])
    done = subprocess.run(
        ["bash", "-c", script],
        env={"PATH": f"{directory}/bin:{os.environ['PATH']}", "PYTHONPATH": str(ROOT), **variables},
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=PATIENCE_SECONDS,
        check=False,
    )
    shown = done.stdout.split("\x1e")[1:]
    logs = "".join(f"{path.name}:\n{path.read_text()[-2_000:]}\n" for path in Path("/run/units").glob("*.log"))
    assert done.returncode == 0, f"{shown}\n{done.stderr}\n{logs}"
    for (command, expected), text in zip(steps, shown, strict=True):
        pattern = ".*".join(map(re.escape, expected.strip().split("…")))
        assert re.fullmatch(pattern, text.strip()), f"{command}\nshows\n{text}\nand not\n{expected}"

    # There is no Grafana here. What it would read is at least YAML.
    provisioned = [yaml.safe_load(path.read_text()) for path in Path("/etc/grafana/provisioning").glob("*/*.yaml")]
    assert [each["apiVersion"] for each in provisioned] == [1, 1]


def main(directory: Path) -> None:
    make_root(directory)
    with providing(directory) as provider, s3_server() as (host, port):
        variables = {
            "HOST": HOST,
            "ISSUER": provider.url,
            "BUCKET": BUCKET,
            "S3": f"http://{host}:{port}",
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_DEFAULT_REGION": "us-east-1",
            "TOKEN": sign_in(provider),
            "WEB_CONCURRENCY": "1",
        }
        follow(directory, variables)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
