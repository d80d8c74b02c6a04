#!/usr/bin/env python3
"""A ``systemctl`` for tests: starts, stops and restarts units from their files, without systemd and its sandbox.

Supports what the units in docs/deploying.md use. A unit with ``DynamicUser`` runs as root.
"""

import os
import pwd
import re
import shlex
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil

DIRECTORIES = (Path("/etc/systemd/system"), Path("/usr/lib/systemd/system"), Path("/lib/systemd/system"))
#: Process ids and output of the units.
RUN = Path("/run/units")
#: Time limit of a unit's start and stop on a busy machine, in seconds.
PATIENCE_SECONDS = 60.0


class Unit:
    """A unit, read from its file. The last assignment of a name applies; those of the environment add up."""

    def __init__(self, name: str) -> None:
        self.name = name
        path = next(path for each in DIRECTORIES if (path := each / f"{name}.service").exists())
        pairs = re.findall(r"^(\w+)=(.*)$", path.read_text(), re.MULTILINE)
        self.fields = dict(pairs)
        self.environ = {key: os.environ[key] for key in ("PATH", "PYTHONPATH", "WEB_CONCURRENCY") if key in os.environ}
        for key, value in pairs:
            if key == "Environment":
                self.environ |= dict(each.split("=", 1) for each in shlex.split(value))
            elif key == "EnvironmentFile" and (not value.startswith("-") or Path(value[1:]).exists()):
                text = Path(value.removeprefix("-")).read_text()
                self.environ |= dict(re.findall(r"""^(\w+)=["']?(.*?)["']?$""", text, re.MULTILINE))

    def start(self) -> Callable[[], object]:
        """Starts it. Returns a function that waits until it has started, according to its type."""
        user = pwd.getpwnam(self.fields.get("User", "root")) if "DynamicUser" not in self.fields else pwd.getpwuid(0)
        for parent, name in (("/run", "RuntimeDirectory"), ("/var/lib", "StateDirectory")):
            if name in self.fields:
                path = Path(parent, self.fields[name])
                path.mkdir(parents=True, exist_ok=True)
                os.chown(path, user.pw_uid, user.pw_gid)
        command = [word for each in shlex.split(self.fields["ExecStart"]) for word in self._words(each)]
        kind = self.fields.get("Type", "simple")
        notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        if kind == "notify":
            path = RUN / f"{self.name}.notify"
            path.unlink(missing_ok=True)
            notify.bind(str(path))
            path.chmod(0o666)
            notify.settimeout(PATIENCE_SECONDS)
            self.environ["NOTIFY_SOCKET"] = str(path)
        with (RUN / f"{self.name}.log").open("ab") as log:
            process = subprocess.Popen(
                command,
                env=self.environ,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                user=user.pw_uid,
                group=user.pw_gid,
                cwd="/",
            )
        if kind == "forking":
            return lambda: process.wait(PATIENCE_SECONDS)
        (RUN / f"{self.name}.pid").write_text(str(process.pid))

        def wait_ready() -> None:
            while kind == "notify" and b"READY=1" not in notify.recv(4_096):
                pass

        return wait_ready

    def _words(self, word: str) -> list[str]:
        """``$NAME`` becomes the words of the variable; ``${NAME}`` within a word becomes its text."""
        if found := re.fullmatch(r"\$(\w+)", word):
            return shlex.split(self.environ.get(found[1], ""))
        return [re.sub(r"\$\{(\w+)\}", lambda found: self.environ.get(found[1], ""), word)]

    def stop(self) -> None:
        """Stops it, if it runs, and waits until it has ended."""
        path = Path(self.fields.get("PIDFile", "")) if "PIDFile" in self.fields else RUN / f"{self.name}.pid"
        if not path.exists() or not path.read_text().strip():
            return
        try:
            process = psutil.Process(int(path.read_text()))
            process.terminate()
        except psutil.NoSuchProcess:
            return
        give_up_at = time.monotonic() + PATIENCE_SECONDS
        while process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
            assert time.monotonic() < give_up_at, f"{self.name} does not end"
            time.sleep(0.05)


def main(verb: str, *arguments: str) -> None:
    """Does what ``systemctl`` does with these arguments."""
    RUN.mkdir(exist_ok=True)
    names = [each for each in arguments if not each.startswith("--")]
    if verb == "restart" or "--now" in arguments:
        units = list(map(Unit, names))
        for unit in units:
            unit.stop()
        for wait in [unit.start() for unit in units]:
            wait()
    else:
        assert verb in ("daemon-reload", "enable"), verb


if __name__ == "__main__":
    main(*sys.argv[1:])
