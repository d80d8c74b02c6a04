"""The fault proxy in a process of its own: it takes no turn of the interpreter that the test's own parts need.

Orders go to its stdin and answers come from its stdout, one line of JSON each; at the end of stdin it ends.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any, Final, Self

from tests.support.faultproxy import PATIENCE_SECONDS, Address, FaultProxy, Tally

ROOT: Final = Path(__file__).resolve().parents[2]
_ORDERS: Final = ("cut", "refuse", "stall", "throttle", "drop_reply", "drop_request", "heal", "tally")


class ProxyProcess:
    """As :class:`FaultProxy`, whose methods these are; for a ``with``."""

    def __init__(self, upstream: Address, listen: Address = ("127.0.0.1", 0)) -> None:
        self._addresses = (upstream, listen)
        self._process: subprocess.Popen[str] | None = None
        self.address: Address = listen
        self.redis_url = ""
        self.http_url = ""

    @property
    def tally(self) -> Tally:
        """What has gone through so far."""
        return Tally(*self._ask("tally"))

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

    def drop_reply(self, passing: int = 0, *, asked: bytes = b"", times: int = 1) -> None:
        """See :meth:`FaultProxy.drop_reply`."""
        self._ask("drop_reply", passing, asked=asked.hex(), times=times)

    def drop_request(self, passing: int = 0, *, asked: bytes = b"", times: int = 1) -> None:
        """See :meth:`FaultProxy.drop_request`."""
        self._ask("drop_request", passing, asked=asked.hex(), times=times)

    def heal(self) -> None:
        """See :meth:`FaultProxy.heal`."""
        self._ask("heal")

    def start(self) -> Self:
        """Starts the process, and returns once it listens."""
        command = [sys.executable, "-m", "tests.support.faultprocess", *(_spell(each) for each in self._addresses)]
        self._process = subprocess.Popen(
            command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
        )
        self.address = _read(self._answer())
        if isinstance(self.address, Path):
            self.redis_url = f"unix://{self.address}"
        else:
            self.redis_url, self.http_url = ("{}://{}:{}".format(scheme, *self.address) for scheme in ("redis", "http"))
        return self

    def stop(self) -> None:
        """Ends the process. Does nothing twice."""
        process, self._process = self._process, None
        if process is None:
            return
        try:
            process.communicate(timeout=PATIENCE_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            raise

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *exception: object) -> None:
        self.stop()

    def _ask(self, order: str, *args: object, **options: object) -> Any:
        assert self._process is not None
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps([order, args, options]) + "\n")
        return self._answer()

    def _answer(self) -> Any:
        assert self._process is not None
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, "the proxy's process has ended"
        return json.loads(line)


def _spell(address: Address) -> str:
    return str(address) if isinstance(address, Path) else "{}:{}".format(*address)


def _read(text: str) -> Address:
    if text.startswith("/"):
        return Path(text)
    host, _, port = text.rpartition(":")
    return host, int(port)


def _serve(upstream: str, listen: str) -> None:
    with FaultProxy(_read(upstream), _read(listen)) as proxy:
        print(json.dumps(_spell(proxy.address)), flush=True)
        for line in sys.stdin:
            order, args, options = json.loads(line)
            assert order in _ORDERS
            if "asked" in options:
                options["asked"] = bytes.fromhex(options["asked"])
            answer = proxy.tally if order == "tally" else getattr(proxy, order)(*args, **options)
            print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    _serve(*sys.argv[1:])
