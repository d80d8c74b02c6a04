"""Free TCP ports of the loopback."""

import contextlib
import socket


def free_ports(number: int) -> list[int]:
    """Different ports that were unused a moment ago."""
    with contextlib.ExitStack() as stack:
        probes = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(number)]
        return [probe.getsockname()[1] for probe in probes]


def free_port() -> int:
    """A port that was unused a moment ago."""
    (port,) = free_ports(1)
    return port
