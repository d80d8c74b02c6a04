"""Runs the Dockerfile's steps without a container engine: ``python -m tests.system.image``. Takes half a minute.

Each stage's file system is a copy-on-write view of this machine's root; the Dockerfile's base is Debian with
Python 3.13. Each step runs with the environment that the Dockerfile sets. Finally, the image's command runs as the
image's user in its own network namespace until its health check passes, and is then stopped. Needs root, and a
kernel that allows namespaces.
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

#: Runs this program in namespaces, whose mounts and processes end with them.
NAMESPACES: Final = ("unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc")
#: Environment variables passed to RUN steps: where packages come from.
PASSED_VARIABLES: Final = ("PIP_", "SSL_CERT_", "HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy")
#: Time limits on a busy machine in seconds: one step, the health check, and stopping.
STEP_SECONDS, HEALTHY_SECONDS, STOP_SECONDS = 300, 120, 15


class Image:
    """One stage of the build: its root directory, and the next instruction's environment, directory and user."""

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
        """The command that runs ``argv`` in the image, with the current user, directory and environment."""
        environ = [f"{name}={value}" for name, value in self.environ.items()]
        script = 'cd "$0" && exec "$@"'
        as_user = ["setpriv", *self.user] if self.user else []
        return ["chroot", str(self.root), *as_user, "env", "-i", *environ, "sh", "-c", script, self.directory, *argv]

    def execute(self, step: Step, others: list["Image"]) -> None:
        """Executes an instruction. ``others`` are the preceding stages."""
        if step.word == "RUN":
            words = step.rest.split(" ")
            text = " ".join(words[sum(word.startswith("--mount=") for word in words) :])
            passed = [f"{name}={value}" for name, value in os.environ.items() if name.startswith(PASSED_VARIABLES)]
            run(*self.command("env", *passed, "sh", "-c", text))
        elif step.word == "COPY":
            *sources, target = (word for word in shlex.split(step.rest) if not word.startswith("--"))
            context = others[0].root if "--from=" in step.rest else ROOT
            self.copy([context / source.lstrip("/") for source in sources], target)
        elif step.word == "ENV":
            pairs = (word.partition("=") for word in shlex.split(step.rest))
            self.environ |= {name: value.replace("$PATH", self.environ["PATH"]) for name, _, value in pairs}
        elif step.word == "WORKDIR":
            self.directory = step.rest
            self.host_path(step.rest).mkdir(parents=True, exist_ok=True)
        elif step.word == "USER":
            user, _, group = step.rest.partition(":")
            self.user = [f"--reuid={user}", f"--regid={group}", "--clear-groups", "--no-new-privs"]

    def host_path(self, path: str) -> Path:
        """The path on this machine for an absolute path in the image."""
        return self.root / path.lstrip("/")

    def copy(self, sources: list[Path], target: str) -> None:
        """Copies files into the directory ``target``; of a directory its contents, like COPY."""
        directory = self.host_path(str(Path(self.directory) / target))
        for source in sources:
            if source.is_dir():
                ignored = shutil.ignore_patterns("__pycache__")
                shutil.copytree(source, directory, symlinks=True, dirs_exist_ok=True, ignore=ignored)
            else:
                shutil.copy2(source, directory / source.name)


def run(*command: str) -> None:
    """Runs ``command``, and raises CalledProcessError if it fails."""
    subprocess.run(command, check=True, stdin=subprocess.DEVNULL, timeout=STEP_SECONDS)


def serve(image: Image, steps: list[Step]) -> None:
    """Runs the image's command until its health check passes, then sends its stop signal and expects exit code 0."""
    instructions = {step.word: step.rest for step in steps}
    new_network = ["unshare", "--net", "sh", "-c", 'ip link set lo up && exec "$@"', "sh"]
    argv = [*new_network, *image.command(*json.loads(instructions["CMD"]))]
    service = subprocess.Popen(argv, stdin=subprocess.DEVNULL)
    same_network = ["nsenter", f"--net=/proc/{service.pid}/ns/net"]
    check = [*same_network, *image.command(*json.loads(instructions["HEALTHCHECK"].partition("CMD ")[2]))]
    try:
        deadline = time.monotonic() + HEALTHY_SECONDS
        while subprocess.run(check, check=False, capture_output=True, timeout=STEP_SECONDS).returncode != 0:
            assert service.poll() is None, "the command ended"
            assert time.monotonic() < deadline, "the health check did not pass in time"
            time.sleep(0.2)
        print("image: healthy", flush=True)
        service.send_signal(signal.Signals[instructions["STOPSIGNAL"]])
        assert service.wait(STOP_SECONDS) == 0
    finally:
        service.kill()
        service.wait()


def build(directory: Path) -> None:
    """Builds all stages below ``directory``, and runs the last one's command."""
    run("mount", "-t", "tmpfs", "tmpfs", str(directory))
    directory.chmod(0o755)
    images: list[Image] = []
    stages = read_stages((ROOT / "Dockerfile").read_text(encoding="utf-8"))
    for number, steps in enumerate(stages):
        image = Image(directory / str(number))
        for step in steps:
            print(f"image: {step.word} {step.rest}", flush=True)
            image.execute(step, images)
        images.append(image)
    serve(images[-1], stages[-1])
    print("image: all steps succeeded", flush=True)


def main() -> int:
    """Builds the image in new namespaces, or reports that they are not allowed."""
    if len(sys.argv) > 1:
        build(Path(sys.argv[1]))
        return 0
    possible = subprocess.run([*NAMESPACES, "mount", "-t", "tmpfs", "tmpfs", "/mnt"], check=False, capture_output=True)
    if possible.returncode != 0:
        print(f"image: namespaces are not allowed here: {possible.stderr.decode().strip()}")
        return 0
    with tempfile.TemporaryDirectory() as directory:
        again = [sys.executable, "-m", "tests.system.image", directory]
        return subprocess.run([*NAMESPACES, *again], check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
