"""Runs the path of docs/deploying.md from nothing to two nodes, as it is printed, and compares what each step shows.

It needs namespaces of its own for processes, mounts and the network (:data:`NAMESPACES`). So it has all ports and the
whole of ``/etc``, and nothing of it is left afterwards.
"""

import contextlib
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Final

import httpx
import yaml

from tests.archive.s3server import BUCKET, s3_server
from tests.support.provider import Provider, providing
from tests.support.service import ROOT
from tests.support.waiting import wait_until

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
    """A view of this machine to which only we can write. What ``apt-get`` is to install is there already."""
    run("ip", "link", "set", "lo", "up")
    run("mount", "-t", "tmpfs", "tmpfs", str(directory))
    for name in ("etc", "opt", "run", "var"):
        for each in ("upper", "work"):
            (directory / name / each).mkdir(parents=True)
        options = f"lowerdir=/{name},upperdir={directory}/{name}/upper,workdir={directory}/{name}/work"
        run("mount", "-t", "overlay", "overlay", "-o", options, f"/{name}")
    with open("/etc/hosts", "a", encoding="utf-8") as hosts:
        hosts.write(f"127.0.0.1 {HOST}\n")
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


def follow(directory: Path, wheels: Path, provider: Provider, variables: dict[str, str]) -> None:
    """Runs all steps in one shell, and compares what they show. Signs in where a command asks for it.

    Only the values of the first block are replaced, with ``variables``.
    """
    (first, _), *steps = blocks()
    yours = re.sub(r"(\w+)=\S+", lambda found: f"{found[1]}={variables[found[1]]}", first)
    script = "\n".join(["set -eu", yours, *(f"printf '\\036'\n{command}" for command, _ in steps)])
    messages = directory / "messages"
    with messages.open("wb") as stderr:
        process = subprocess.Popen(
            ["bash", "-c", script],
            env={
                "PATH": f"{directory}/bin:{os.environ['PATH']}",
                "HOME": str(directory),
                "WEB_CONCURRENCY": "1",
                # There is no network here.
                "PIP_NO_INDEX": "1",
                "PIP_FIND_LINKS": str(wheels),
            },
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
        )

    def address() -> re.Match[str] | None:
        return re.search(r"^or open (\S+)$", messages.read_text(), re.MULTILINE)

    wait_until(lambda: address() or process.poll() is not None, PATIENCE_SECONDS, "login prints an address")
    if found := address():
        provider.approve(found[1])
    shown = process.communicate(timeout=PATIENCE_SECONDS)[0].split("\x1e")[1:]
    logs = "".join(f"{path.name}:\n{path.read_text()[-2_000:]}\n" for path in Path("/run/units").glob("*.log"))
    assert process.returncode == 0, f"{shown}\n{messages.read_text()}\n{logs}"
    for (command, expected), text in zip(steps, shown, strict=True):
        pattern = ".*".join(map(re.escape, expected.strip().split("…")))
        assert re.fullmatch(pattern, text.strip()), f"{command}\nshows\n{text}\nand not\n{expected}"

    # It answers 404 without the extra `otlp`.
    assert httpx.post("http://127.0.0.1:8000/v1/logs", json={}).status_code == 401

    # The notifier may read the store as the service's user.
    def has_stepped() -> bool:
        with contextlib.suppress(httpx.ConnectError):
            metrics = httpx.get("http://127.0.0.1:8003/metrics").text
            return bool(re.search(r"^chronoverse_notify_last_step_timestamp_seconds [1-9]", metrics, re.MULTILINE))
        return False

    wait_until(has_stepped, PATIENCE_SECONDS, f"the notifier works\n{logs}")

    # There is no Grafana here. What it would read is at least YAML.
    provisioned = [yaml.safe_load(path.read_text()) for path in Path("/etc/grafana/provisioning").glob("*/*.yaml")]
    assert [each["apiVersion"] for each in provisioned] == [1, 1]


def main(directory: Path, wheels: Path) -> None:
    make_root(directory)
    with providing(directory) as provider, s3_server() as (host, port):
        variables = {
            "HOST": HOST,
            "ISSUER": provider.url,
            "CLIENT": provider.client_id,
            "BUCKET": BUCKET,
            "S3": f"http://{host}:{port}",
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_DEFAULT_REGION": "us-east-1",
        }
        follow(directory, wheels, provider, variables)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
