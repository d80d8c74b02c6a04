"""Builds a release and tests it without the checkout: ``python -m tests.deploy.release``.

``dist`` then contains the wheel, the source distribution, the npm package, the Helm chart, the OpenAPI document and an
SBOM of the wheel's dependencies. The wheel, the source distribution and the npm package are each installed into an
empty directory, where the README's first commands and a page in Chromium run. With a tag (``python -m
tests.deploy.release v1.2.3``), version and changelog must match it. Publishes nothing.
"""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from chronoverse import __version__
from chronoverse.settings import Settings
from chronoverse.web.app import create_app
from tests.browser.browsing import chromium
from tests.clients.javascript import serving_files
from tests.support.service import ROOT, SECRET
from tests.system.readme import block

DIST: Final = ROOT / "dist"
#: Lists an environment's packages. Runs in its own environment.
SBOM_TOOL: Final = "cyclonedx-bom==7.5.0"
#: Time limits of one command, and of a service's start, in seconds.
COMMAND_SECONDS, READY_SECONDS = 300, 60
#: The output of the README's job.
LINES: Final = "".join(f"line {number}\n" for number in range(1, 6))
FOLLOW: Final = """
import { follow } from "chronoverse";
const [service, token] = process.argv.slice(2);
for await (const { event, data } of follow({ service, workflow: "demo", job: "job-1", token })) {
  if (event === "log") console.log(data.message);
}
"""
#: A page without a bundler. The fragment of its address has the service and a token.
PAGE: Final = """<!doctype html><title>running</title><link rel="icon" href="data:,"><pre></pre>
<script type="importmap">{"imports": {"chronoverse": "./node_modules/chronoverse/index.js"}}</script>
<script type="module">
import { follow } from "chronoverse";
const [service, token] = location.hash.slice(1).split(",");
for await (const { event, data } of follow({ service, workflow: "demo", job: "job-1", token })) {
  if (event === "log") document.querySelector("pre").append(data.message, "\\n");
}
document.title = "ended";
</script>
"""


def run(*command: str | Path, cwd: Path, **environ: str) -> str:
    """The command's output. It inherits nothing of this process's Python environment.

    Raises :class:`subprocess.CalledProcessError` if it fails.
    """
    done = subprocess.run(
        [str(each) for each in command],
        cwd=cwd,
        env=clean_environ() | environ,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
        timeout=COMMAND_SECONDS,
        check=True,
    )
    return done.stdout


def clean_environ() -> dict[str, str]:
    """The environment without the variables of a checkout or a service."""
    return {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("CHRONOVERSE_", "PROMETHEUS_", "PYTHON")) and name != "VIRTUAL_ENV"
    }


def check_tag(tag: str) -> None:
    """Checks that the version is the tag's, and has a dated section in the changelog. Raises :class:`SystemExit`."""
    if tag != f"v{__version__}":
        raise SystemExit(f"the tag is {tag}, and chronoverse/__init__.py has {__version__}")
    changelog = (ROOT / "CHANGELOG.md").read_text("utf-8")
    if not re.search(rf"^## \[{re.escape(__version__)}\] - \d{{4}}-\d\d-\d\d$", changelog, re.MULTILINE):
        raise SystemExit(f"CHANGELOG.md has no section of {__version__} with a date")


def build(scratch: Path) -> tuple[Path, Path, Path]:
    """Makes all files in :data:`DIST` but the SBOM. Returns the wheel, the source distribution and the npm package."""
    shutil.rmtree(DIST, ignore_errors=True)
    DIST.mkdir()
    run(sys.executable, "-m", "hatchling", "build", "-d", DIST, cwd=ROOT)
    (wheel,), (source,) = DIST.glob("*.whl"), DIST.glob("*.tar.gz")
    npm = DIST / run("npm", "pack", "--silent", "--pack-destination", DIST, cwd=ROOT / "clients" / "js").strip()
    described = (ROOT / "deploy" / "chart" / "Chart.yaml").read_text("utf-8")
    (number,) = re.findall(r"^version: (\S+)$", described, re.MULTILINE)
    with tarfile.open(DIST / f"chronoverse-chart-{number}.tgz", "w:gz", dereference=True) as chart:
        chart.add(ROOT / "deploy" / "chart", "chronoverse")
    settings = Settings(data_dir=scratch, redis_url=f"unix://{scratch}/none.sock", jwt_secret=SECRET)
    document = create_app(settings).test_client().get("/openapi.json").get_json()
    text = json.dumps(document, separators=(",", ":"), sort_keys=True)
    (DIST / f"openapi-{__version__}.json").write_text(f"{text}\n", "utf-8")
    return wheel, source, npm


def install(package: Path, directory: Path) -> Path:
    """Installs ``package`` into a new virtual environment in ``directory``. Returns the directory of its commands."""
    run(sys.executable, "-m", "venv", directory / "venv", cwd=directory)
    commands = directory / "venv" / "bin"
    run(commands / "python", "-m", "pip", "install", "-q", package, cwd=directory)
    origin = run(commands / "python", "-c", "import chronoverse; print(chronoverse.__file__)", cwd=directory)
    assert Path(origin.strip()).is_relative_to(directory.resolve()), origin
    return commands


@contextmanager
def service(commands: Path, directory: Path, origin: str) -> Iterator[str]:
    """Runs ``chronoverse serve`` with its embedded store. Yields its URL. Pages of ``origin`` can read."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    settings = {"BIND": address, "CORS_ORIGINS": origin, "DATA_DIR": str(directory / "data")}
    environ = clean_environ() | {f"CHRONOVERSE_{name}": value for name, value in settings.items()}
    with open(directory / "serve.log", "w") as log:
        process = subprocess.Popen(
            [commands / "chronoverse", "serve"], cwd=directory, env=environ, stdout=log, stderr=subprocess.STDOUT
        )
    try:
        deadline = time.monotonic() + READY_SECONDS
        while " serves at " not in (directory / "serve.log").read_text():
            if process.poll() is not None or time.monotonic() > deadline:
                raise SystemExit((directory / "serve.log").read_text())
            time.sleep(0.1)
        yield f"http://{address}"
    finally:
        process.terminate()
        process.wait(COMMAND_SECONDS)


def try_commands(commands: Path, directory: Path, npm: Path | None) -> None:
    """The README's first commands: serve, run a job, follow it, read it with curl and ``npm``."""
    program = directory / "program"
    program.mkdir()
    with serving_files(program) as origin, service(commands, directory, origin) as url:
        environ = {
            "PATH": f"{commands}:{os.environ['PATH']}",
            "CHRONOVERSE_DATA_DIR": str(directory / "data"),
            "CHRONOVERSE_BIND": url.removeprefix("http://"),
        }

        def paste(containing: str) -> str:
            text = block("sh", containing).replace(".venv/bin/python -m chronoverse", "chronoverse")
            return run("sh", "-ec", text.replace("http://127.0.0.1:8000", url), cwd=directory, **environ)

        assert paste("chronoverse run --") == LINES
        assert paste("chronoverse logs -f") == LINES
        assert re.findall(r'"message":"(line \d)"', paste("curl -N")) == LINES.splitlines()
        assert "<html" in run("curl", "-sS", url, cwd=directory)
        if npm is not None:
            token = run("chronoverse", "token", cwd=directory, **environ).strip()
            try_npm(npm, program, origin, url, token)


def try_npm(npm: Path, program: Path, origin: str, url: str, token: str) -> None:
    """Node.js and a page of ``origin`` in Chromium each show the job's lines, without a bundler."""
    (program / "package.json").write_text("{}")
    run("npm", "install", "--silent", "--no-audit", "--no-fund", npm, cwd=program)
    (program / "follow.mjs").write_text(FOLLOW)
    assert run("node", "follow.mjs", url, token, cwd=program) == LINES
    (program / "page.html").write_text(PAGE)
    with chromium() as browser:
        page = browser.new_page()
        page.goto(f"{origin}/page.html#{url},{token}")
        page.wait_for_function("document.title === 'ended'")
        assert page.inner_text("pre") == LINES


def write_sbom(commands: Path) -> None:
    """Lists the environment's packages in the CycloneDX format."""
    tool = ("uv", "tool", "run", "--from", SBOM_TOOL, "cyclonedx-py", "environment", "--output-reproducible")
    text = run(sys.executable, "-m", *tool, commands / "python", cwd=DIST)
    names = {each["name"] for each in json.loads(text)["components"]}
    assert {"flask", "gevent", "gunicorn", "redis", "marshmallow"} <= {name.lower() for name in names}
    (DIST / f"chronoverse-{__version__}.cdx.json").write_text(text, "utf-8")


def check_image() -> None:
    """Checks that each library of the image also has a wheel for arm64: the Dockerfile builds nothing from source."""
    (version,) = set(re.findall(r"^FROM python:(\d+\.\d+)-", (ROOT / "Dockerfile").read_text("utf-8"), re.MULTILINE))
    tags = [f"--platform=manylinux_{each}_aarch64" for each in ("2_17", "2_28")] + ["--platform=manylinux2014_aarch64"]
    wheels = ["--python-version", version, *tags, "--only-binary=:all:", "--require-hashes", "--target=unused"]
    for name in ("requirements-image.txt", "requirements-build.txt"):
        run(sys.executable, "-m", "pip", "install", "--dry-run", "-q", *wheels, "-r", ROOT / name, cwd=DIST)


def main() -> None:
    """Builds and tests everything. Raises an exception for the first problem."""
    if len(sys.argv) > 1:
        check_tag(sys.argv[1])
    with tempfile.TemporaryDirectory(prefix="release") as name:
        scratch = Path(name)
        wheel, source, npm = build(scratch)
        for package, with_npm in ((wheel, npm), (source, None)):
            directory = scratch / package.suffix.removeprefix(".")
            directory.mkdir()
            commands = install(package, directory)
            try_commands(commands, directory, with_npm)
            if package is wheel:
                write_sbom(commands)
            print(f"{package.name}: installed, and the first minutes of the README pass", flush=True)
    check_image()
    for each in sorted(DIST.iterdir()):
        print(f"dist/{each.name}: {each.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
