"""The Dockerfile's own steps, run where no container engine is: ``python -m tests.system.image``. Takes half a minute.

Each stage gets a copy-on-write view of this machine's root as its file system (Debian with Python 3.13 is the base that
the Dockerfile names), an environment that holds what the Dockerfile sets, and from this tree what .dockerignore lets
through. At the end the image's command runs as the image's user, alone in a network of its own, until its health check
is content; then it is told to stop. Needs root, and a kernel that lets it make namespaces.
"""

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Final

from tests.support.dockerfile import Step, read_stages
from tests.support.service import ROOT

#: Makes the namespaces that this then runs in: mounts end with them, and so does whatever is left running.
NAMESPACES: Final = ("unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc")
#: What an engine's own configuration would say: where packages come from.
PASSED_ON: Final = ("PIP_", "SSL_CERT_", "HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy")
#: Seconds for one step, for the health check to be content, and for the command to stop.
STEP_SECONDS, HEALTHY_SECONDS, STOP_SECONDS = 300, 30, 15


class Image:
    """One stage under way: its root, and what the next instruction runs with."""

    def __init__(self, directory: Path) -> None:
        self.root = directory / "root"
        for name in ("root", "upper", "work"):
            (directory / name).mkdir(parents=True)
        options = f"lowerdir=/,upperdir={directory}/upper,workdir={directory}/work"
        run("mount", "-t", "overlay", "overlay", "-o", options, str(self.root))
        run("mount", "--rbind", "/dev", str(self.root / "dev"))
        run("mount", "-t", "proc", "proc", str(self.root / "proc"))
        run("mount", "-t", "tmpfs", "tmpfs", str(self.root / "tmp"))
        python = self.root / "usr/local/bin/python"
        if not python.exists():
            python.symlink_to("/usr/bin/python3")
        self.environ = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/root"}
        self.directory = "/"
        self.user: list[str] = []

    def command(self, *argv: str) -> list[str]:
        """``argv`` inside, as the user and in the directory and environment that hold now."""
        environ = [f"{name}={value}" for name, value in self.environ.items()]
        inside = 'cd "$0" && exec "$@"'
        become = ["setpriv", *self.user] if self.user else []
        return ["chroot", str(self.root), *become, "env", "-i", *environ, "sh", "-c", inside, self.directory, *argv]

    def take(self, step: Step, others: list["Image"]) -> None:
        """Carries an instruction out, or keeps it in mind."""
        if step.word == "RUN":
            words = step.rest.split(" ")
            text = " ".join(words[sum(word.startswith("--mount=") for word in words) :])
            outside = [f"{name}={value}" for name, value in os.environ.items() if name.startswith(PASSED_ON)]
            run(*self.command("env", *outside, "sh", "-c", text))
        elif step.word == "COPY":
            *sources, target = (word for word in shlex.split(step.rest) if not word.startswith("--"))
            context = others[0].root if "--from=" in step.rest else ROOT
            self.copy([context / source.lstrip("/") for source in sources], target)
        elif step.word == "ENV":
            pairs = (word.partition("=") for word in shlex.split(step.rest))
            self.environ |= {name: value.replace("$PATH", self.environ["PATH"]) for name, _, value in pairs}
        elif step.word == "WORKDIR":
            self.directory = step.rest
            self.inside(step.rest).mkdir(parents=True, exist_ok=True)
        elif step.word == "USER":
            user, _, group = step.rest.partition(":")
            self.user = [f"--reuid={user}", f"--regid={group}", "--clear-groups", "--no-new-privs"]

    def inside(self, path: str) -> Path:
        """Where an absolute path of the image is."""
        return self.root / path.lstrip("/")

    def copy(self, sources: list[Path], target: str) -> None:
        """Files into the directory ``target``; a directory's content becomes the target's, as in an image."""
        place = self.inside(str(Path(self.directory) / target))
        for source in sources:
            if source.is_dir():
                ignored = shutil.ignore_patterns("__pycache__")
                shutil.copytree(source, place, symlinks=True, dirs_exist_ok=True, ignore=ignored)
            else:
                shutil.copy2(source, place / source.name)


def run(*command: str) -> None:
    """Runs ``command``, its output ours; fails when it does."""
    subprocess.run(command, check=True, stdin=subprocess.DEVNULL, timeout=STEP_SECONDS)


def serve(image: Image, steps: list[Step]) -> None:
    """The image's command, healthy by its own health check, then stopped by its own signal."""
    said = {step.word: step.rest for step in steps}
    alone = ["unshare", "--net", "sh", "-c", 'ip link set lo up && exec "$@"', "sh"]
    service = subprocess.Popen([*alone, *image.command(*json.loads(said["CMD"]))], stdin=subprocess.DEVNULL)
    beside = ["nsenter", f"--net=/proc/{service.pid}/ns/net"]
    check = [*beside, *image.command(*json.loads(said["HEALTHCHECK"].partition("CMD ")[2]))]
    try:
        deadline = time.monotonic() + HEALTHY_SECONDS
        while subprocess.run(check, check=False, capture_output=True, timeout=STEP_SECONDS).returncode != 0:
            assert service.poll() is None, "the command ended"
            assert time.monotonic() < deadline, "the health check was never content"
            time.sleep(0.2)
        print("image: healthy", flush=True)
        service.send_signal(signal.Signals[said["STOPSIGNAL"]])
        assert service.wait(STOP_SECONDS) == 0
    finally:
        service.kill()
        service.wait()


def build(directory: Path) -> None:
    """Runs all stages below ``directory``, and serves from the last."""
    run("mount", "-t", "tmpfs", "tmpfs", str(directory))
    directory.chmod(0o755)
    images: list[Image] = []
    stages = read_stages((ROOT / "Dockerfile").read_text(encoding="utf-8"))
    for number, steps in enumerate(stages):
        image = Image(directory / str(number))
        for step in steps:
            print(f"image: {step.word} {step.rest}", flush=True)
            image.take(step, images)
        images.append(image)
    serve(images[-1], stages[-1])
    print("image: every step did what it should", flush=True)


def main() -> int:
    """Builds in namespaces of its own; where there can be none it says so and does nothing."""
    if len(sys.argv) > 1:
        build(Path(sys.argv[1]))
        return 0
    possible = subprocess.run([*NAMESPACES, "mount", "-t", "tmpfs", "tmpfs", "/mnt"], check=False, capture_output=True)
    if possible.returncode != 0:
        print(f"image: not here: {possible.stderr.decode().strip()}")
        return 0
    with tempfile.TemporaryDirectory() as directory:
        again = [sys.executable, "-m", "tests.system.image", directory]
        return subprocess.run([*NAMESPACES, *again], check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
