"""A network namespace whose links can go silent, as if the machine at the other end had been switched off."""

import contextlib
import os
import subprocess
from collections.abc import Iterator
from ipaddress import ip_network
from typing import Final

from tests.support.tools import unavailable

#: Addresses for network benchmarks (RFC 2544), four per link, selected by the process id.
TEST_NETWORK: Final = ip_network("198.18.0.0/15")
LINK_ADDRESSES: Final = 4


class Links:
    """A context manager that creates a network namespace with ``number`` links to it. Needs root.

    On a machine that does not allow this, the test is skipped, or fails if ``CI`` is set.
    """

    def __init__(self, number: int = 1) -> None:
        pid = os.getpid()
        self.name = f"chronoverse-{pid}"
        blocks = TEST_NETWORK.num_addresses // LINK_ADDRESSES
        first = [(number * pid + link) % blocks * LINK_ADDRESSES for link in range(number)]
        #: The two addresses of each link: outside and inside the namespace.
        self.addresses = [(str(TEST_NETWORK[base + 1]), str(TEST_NETWORK[base + 2])) for base in first]
        self._ends: list[tuple[tuple[list[str], str], tuple[list[str], str]]] = [
            (([], f"cvn{pid}-{link}"), (self.command_prefix, f"cvf{pid}-{link}")) for link in range(number)
        ]

    @property
    def command_prefix(self) -> list[str]:
        """The command prefix that runs a command in the namespace."""
        return ["ip", "netns", "exec", self.name]

    def limit_tcp_retries(self, retries: int) -> None:
        """Makes the namespace's kernel close a connection after ``retries`` unanswered retransmissions."""
        setting = f"echo {retries} > /proc/sys/net/ipv4/tcp_retries2"
        subprocess.run([*self.command_prefix, "sh", "-c", setting], check=True)

    @contextlib.contextmanager
    def silent(self, link: int) -> Iterator[None]:
        """Drops what either side sends, as if the other had been switched off. Neither side gets an error."""
        # The link is not set down: what the kernel cannot send would not count as a retransmission.
        for prefix, device in self._ends[link]:
            _run(*prefix, f"tc qdisc replace dev {device} root blackhole")
        try:
            yield
        finally:
            for prefix, device in self._ends[link]:
                _run(*prefix, f"tc qdisc del dev {device} root")

    def __enter__(self) -> "Links":
        try:
            # Both belong to iproute2, but some distributions ship `ip` without `tc`.
            _run("tc", "-V")
            _run(f"ip netns add {self.name}")
        except (OSError, subprocess.CalledProcessError) as error:
            unavailable(f"no network namespace can be made: {error}")
        _run(*self.command_prefix, "ip link set lo up")
        for ends, addresses in zip(self._ends, self.addresses, strict=True):
            (_, near), (_, far) = ends
            _run(f"ip link add {near} type veth peer name {far} netns {self.name}")
            for (prefix, device), address in zip(ends, addresses, strict=True):
                _run(*prefix, f"ip addr add {address}/30 dev {device}")
                _run(*prefix, f"ip link set {device} up")
        return self

    def __exit__(self, *exception: object) -> None:
        # The namespace exists until its last socket is closed, so the links must be deleted separately.
        for (_, near), _ in self._ends:
            _run(f"ip link del {near}")
        _run(f"ip netns del {self.name}")


def _run(*words: str) -> None:
    """Runs a command, whose last argument is split into words."""
    subprocess.run([*words[:-1], *words[-1].split()], check=True)
