"""The fault proxy in a process of its own, so that it does not slow down the interpreter of the test.

Commands go to its stdin and answers come from its stdout, one line of JSON each. It ends at the end of stdin.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any, Final, Self

from tests.support.faultproxy import TIMEOUT_SECONDS, Address, FaultProxy, Traffic

ROOT: Final = Path(__file__).resolve().parents[2]
_COMMANDS: Final = ("cut", "refuse", "stall", "throttle", "drop_reply", "drop_request", "heal", "traffic")


class ProxyProcess:
    """A context manager with the methods of :class:`FaultProxy`. The proxy runs in a process of its own."""

    def __init__(self, upstream: Address, listen: Address = ("127.0.0.1", 0)) -> None:
        self._addresses = (upstream, listen)
        self._process: subprocess.Popen[str] | None = None
        self.address: Address = listen
        self.redis_url = ""
        self.http_url = ""

    @property
    def traffic(self) -> Traffic:
        """What was forwarded so far."""
        return Traffic(*self._ask("traffic"))

    def cut(self) -> None:
        """See :meth:`FaultProxy.cut`."""
        self._ask("cut")

    def refuse(self) -> None:
        """See :meth:`FaultProxy.refuse`."""
        self._ask("refuse")

    def stall(self, *directions: str) -> None:
        """See :meth:`FaultProxy.stall`."""
        self._ask("stall", *directions)

    def throttle(self, bytes_per_second: float, *directions: str) -> None:
        """See :meth:`FaultProxy.throttle`."""
        self._ask("throttle", bytes_per_second, *directions)

    def drop_reply(self, passing: int = 0, *, request: bytes = b"", times: int = 1) -> None:
        """See :meth:`FaultProxy.drop_reply`."""
        self._ask("drop_reply", passing, request=request.hex(), times=times)

    def drop_request(self, passing: int = 0, *, request: bytes = b"", times: int = 1) -> None:
        """See :meth:`FaultProxy.drop_request`."""
        self._ask("drop_request", passing, request=request.hex(), times=times)

    def heal(self) -> None:
        """See :meth:`FaultProxy.heal`."""
        self._ask("heal")

    def start(self) -> Self:
        """Starts the process, and returns once it listens."""
        argv = [
            sys.executable,
            "-m",
            "tests.support.faultprocess",
            *(_address_text(address) for address in self._addresses),
        ]
        self._process = subprocess.Popen(
            argv, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
        )
        self.address = _parse_address(self._answer())
        if isinstance(self.address, Path):
            self.redis_url = f"unix://{self.address}"
        else:
            self.redis_url, self.http_url = ("{}://{}:{}".format(scheme, *self.address) for scheme in ("redis", "http"))
        return self

    def stop(self) -> None:
        """Ends the process. A second call does nothing."""
        process, self._process = self._process, None
        if process is None:
            return
        try:
            process.communicate(timeout=TIMEOUT_SECONDS)
        except BaseException:
            process.kill()
            process.communicate()
            raise

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *exception: object) -> None:
        self.stop()

    def _ask(self, command: str, *args: object, **options: object) -> Any:
        assert self._process is not None
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps([command, args, options]) + "\n")
        return self._answer()

    def _answer(self) -> Any:
        assert self._process is not None
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, "the proxy's process has ended"
        return json.loads(line)


def _address_text(address: Address) -> str:
    return str(address) if isinstance(address, Path) else "{}:{}".format(*address)


def _parse_address(text: str) -> Address:
    if text.startswith("/"):
        return Path(text)
    host, _, port = text.rpartition(":")
    return host, int(port)


def _serve(upstream: str, listen: str) -> None:
    with FaultProxy(_parse_address(upstream), _parse_address(listen)) as proxy:
        print(json.dumps(_address_text(proxy.address)), flush=True)
        for line in sys.stdin:
            command, args, options = json.loads(line)
            assert command in _COMMANDS
            if "request" in options:
                options["request"] = bytes.fromhex(options["request"])
            answer = proxy.traffic if command == "traffic" else getattr(proxy, command)(*args, **options)
            print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    _serve(*sys.argv[1:])
