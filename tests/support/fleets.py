"""Several real servers as one store: a master with a replica under Sentinels, and a Cluster. All on the loopback."""

import contextlib
import socket
from collections.abc import Iterator, Sequence
from itertools import count as count_up
from pathlib import Path
from typing import Any, Final, Self

import redis

from chronoverse.store.cluster import slot_of
from tests.support.servers import RedisServer
from tests.support.waiting import wait_until

#: Seconds for a fleet to find together, or to recover, on a busy machine.
PATIENCE_SECONDS: Final = 30.0
#: Milliseconds of silence after which a server counts as down.
DOWN_MS: Final = 500
SERVICE: Final = "logs"
#: Milliseconds between a Sentinel's words to the others, who would else hear of it after two seconds.
HURRIED: Final = ("publish-period", "200")
#: Of a server that nobody may reach.
PASSWORD: Final = "nobody-knows"
SLOTS: Final = 16_384


def free_ports(number: int) -> list[int]:
    """Ports that nobody listened on a moment ago, all different."""
    with contextlib.ExitStack() as stack:
        probes = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(number)]
        return [probe.getsockname()[1] for probe in probes]


def on_port(port: int, tls: Sequence[str]) -> tuple[str, ...]:
    """A server's options to be on a TCP port; with ``tls``, its options for that, nobody gets in without."""
    port_options = ("--port", "0", "--tls-port", str(port), *tls) if tls else ("--port", str(port))
    return ("--bind", "127.0.0.1", *port_options)


def node(directory: Path, port: int, *options: str, binary: str | None = None, tls: Sequence[str] = ()) -> RedisServer:
    """A server that is also on a TCP port."""
    return RedisServer(directory, binary, *on_port(port, tls), "--repl-diskless-sync-delay", "0", *options)


class Fleet:
    """Servers for a ``with``; ``url`` is the store's."""

    url: str

    def __init__(self, servers: Sequence[RedisServer]) -> None:
        self.servers = list(servers)

    def start(self) -> Self:
        """Starts them all, and waits until they have found together."""
        for server in self.servers:
            server.start()
        return self

    def ask(self, *command: Any) -> Any:
        """One command, asked of the server that has its key."""
        raise NotImplementedError

    def close(self) -> None:
        """Ends them all, also those that stand still."""
        for server in self.servers:
            server.kill()
            server.close()

    def __enter__(self) -> Self:
        try:
            return self.start()
        except BaseException:
            self.close()
            raise

    def __exit__(self, *exception: object) -> None:
        self.close()


class Watched(Fleet):
    """A master, a replica, and three Sentinels that watch them; with ``tls``, options for it, they speak it alone."""

    def __init__(self, directory: Path, *options: str, binary: str | None = None, tls: Sequence[str] = ()) -> None:
        first, second, *self.watchers = free_ports(5)
        self.ports = (first, second)
        self._directory = directory
        self._binary, self._tls = binary, tls
        servers = [
            node(directory / "a", first, *options, binary=binary, tls=tls),
            node(directory / "b", second, "--replicaof", "127.0.0.1", str(first), *options, binary=binary, tls=tls),
        ]
        super().__init__([*servers, *self._sentinels()])
        hosts = ",".join(f"127.0.0.1:{port}" for port in self.watchers)
        self.url = f"{'rediss' if tls else 'redis'}+sentinel://{hosts}/{SERVICE}"

    def _sentinels(self) -> Iterator[RedisServer]:
        for number, port in enumerate(self.watchers):
            place = self._directory / f"s{number}"
            place.mkdir(parents=True)
            config = place / "sentinel.conf"
            config.write_text(
                f"sentinel monitor {SERVICE} 127.0.0.1 {self.ports[0]} 2\n"
                f"sentinel down-after-milliseconds {SERVICE} {DOWN_MS}\n"
                f"sentinel failover-timeout {SERVICE} 3000\n"
            )
            yield Sentinel(place, config, port, self._binary, tls=self._tls)

    def start(self) -> Self:
        super().start()
        for sentinel in self.servers[2:]:
            sentinel.ask("SENTINEL", "DEBUG", *HURRIED)
        self.settle()
        return self

    def settle(self) -> None:
        """Waits until there is a replica, and all Sentinels know it and each other: another failover can be."""
        wait_until(lambda: all(map(self._is_known, self.servers[2:])), PATIENCE_SECONDS, "the Sentinels know all")

    def _is_known(self, sentinel: RedisServer) -> bool:
        (told,) = map(_pairs, sentinel.ask("SENTINEL", "REPLICAS", SERVICE) or [[]])
        others = _pairs(sentinel.ask("SENTINEL", "MASTER", SERVICE))[b"num-other-sentinels"]
        in_step = told.get(b"flags") == b"slave" and told[b"master-link-status"] == b"ok"
        return in_step and others == b"2" and told[b"port"] != str(self._port(self.master)).encode()

    def _port(self, server: RedisServer) -> int:
        return self.ports[self.servers.index(server)]

    @property
    def replica(self) -> RedisServer:
        """The other one."""
        return next(each for each in self.servers[:2] if each is not self.master)

    @property
    def master(self) -> RedisServer:
        """The server that the first Sentinel names."""
        port = int(self.servers[2].ask("SENTINEL", "GET-MASTER-ADDR-BY-NAME", SERVICE)[1])
        return self.servers[self.ports.index(port)]

    def ask(self, *command: Any) -> Any:
        return self.master.ask(*command)

    def cut_off(self) -> RedisServer:
        """The master goes on serving those who are connected, but neither Sentinels nor its replica any more; it."""
        master = self.master
        with redis.Redis.from_url(master.url, protocol=2, single_connection_client=True) as client:
            # Whoever is connected has passed the door.
            client.execute_command("CONFIG", "SET", "requirepass", PASSWORD)
            for told in client.client_list():
                if told["name"].startswith("sentinel") or "S" in told["flags"]:
                    client.execute_command("CLIENT", "KILL", "ID", told["id"])
        return master

    def rejoin(self, lost: RedisServer) -> None:
        """A master that was cut off is found again, as the replica that it is by now."""
        with redis.Redis.from_url(lost.url, protocol=2, password=PASSWORD) as client:
            client.execute_command("CONFIG", "SET", "requirepass", "")
        self.follow(lost)

    def follow(self, lost: RedisServer) -> None:
        """A former master becomes the replica of the new one, as the Sentinels would have it after 10 s."""
        lost.ask("REPLICAOF", "127.0.0.1", self._port(self.master))


def _pairs(flat: list[bytes]) -> dict[bytes, bytes]:
    return dict(zip(flat[::2], flat[1::2], strict=True))


class Sentinel(RedisServer):
    """A Sentinel, by its configuration file, which it rewrites."""

    def __init__(
        self, directory: Path, config: Path, port: int, binary: str | None = None, tls: Sequence[str] = ()
    ) -> None:
        super().__init__(directory, binary, *on_port(port, tls))
        self._config = str(config)

    def _command(self) -> list[str]:
        binary, _, _, *rest = super()._command()
        place = rest[: rest.index("--save")]
        return [binary, self._config, "--sentinel", *place, *self._options]


class Cluster(Fleet):
    """Three masters with a third of the slots each, and a replica of one; with ``tls``, options for it, by it alone."""

    def __init__(self, directory: Path, *options: str, binary: str | None = None, tls: Sequence[str] = ()) -> None:
        ports = free_ports(8)
        self.ports, self._buses = ports[:4], ports[4:]
        self._ids: list[str] = []
        on = ("--cluster-enabled", "yes", "--cluster-node-timeout", str(2 * DOWN_MS))
        # With full coverage all would refuse while one is away.
        partial = ("--cluster-require-full-coverage", "no")
        # Nobody is told of a replica that has not heard of its master, which else says something every 10 s.
        options = (*on, *partial, "--repl-ping-replica-period", "1", *options)
        super().__init__(
            [
                node(directory / f"n{number}", port, "--cluster-port", str(bus), *options, binary=binary, tls=tls)
                for number, (port, bus) in enumerate(zip(self.ports, self._buses, strict=True))
            ]
        )
        scheme = "rediss" if tls else "redis"
        self.url = f"{scheme}+cluster://127.0.0.1:{self.ports[0]},127.0.0.1:{self.ports[1]}"

    def start(self) -> Self:
        super().start()
        self._ids = [server.ask("CLUSTER", "MYID").decode() for server in self.servers]
        for number, server in enumerate(self.servers[:3]):
            server.ask("CLUSTER", "ADDSLOTSRANGE", SLOTS * number // 3, SLOTS * (number + 1) // 3 - 1)
            server.ask("CLUSTER", "SET-CONFIG-EPOCH", number + 1)
        for port, bus in zip(self.ports[1:], self._buses[1:], strict=True):
            self.servers[0].ask("CLUSTER", "MEET", "127.0.0.1", port, bus)
        wait_until(lambda: all(map(self._is_ready, self.servers)), PATIENCE_SECONDS, "the Cluster is one")
        self.servers[3].ask("CLUSTER", "REPLICATE", self.id(0))
        self.settle()
        return self

    def settle(self) -> None:
        """Waits until all know who is whose replica, without which none of these could take over."""
        wait_until(lambda: all(map(self._pair, self.servers)), PATIENCE_SECONDS, "all know the replica")

    def _is_ready(self, server: RedisServer) -> bool:
        told = server.ask("CLUSTER", "INFO")
        return b"cluster_state:ok" in told and f"cluster_known_nodes:{len(self.servers)}".encode() in told

    def id(self, number: int) -> str:
        """The node's name for itself."""
        return self._ids[number]

    def _number(self, told: list[Any]) -> int:
        """The node that an answer about slots tells of. Not by its port: a TLS port is told to TLS clients alone."""
        return self._ids.index(told[2].decode())

    def _map(self) -> list[tuple[range, int]]:
        server = next(each for each in self.servers if each.answers())
        told = server.ask("CLUSTER", "SLOTS")
        return [(range(first, last + 1), self._number(owner)) for first, last, owner, *_ in told]

    def masters(self) -> list[int]:
        """The nodes that have slots."""
        return sorted({number for _, number in self._map()})

    @property
    def pair(self) -> tuple[int, int]:
        """The master that has a replica, and the replica."""
        pair = self._pair(self.servers[1])
        assert pair
        return pair

    def _pair(self, server: RedisServer) -> tuple[int, int] | None:
        told = server.ask("CLUSTER", "SLOTS")
        return next(((self._number(owner), self._number(others[0])) for _, _, owner, *others in told if others), None)

    def owner(self, workflow_id: str) -> int:
        """Which of the nodes has the workflow's slot."""
        return next(number for slots, number in self._map() if slot_of(workflow_id) in slots)

    def workflow(self, number: int, salt: str = "wf") -> str:
        """A workflow that node ``number`` has."""
        slots = [slot for found, owner in self._map() if owner == number for slot in found]
        return next(name for name in (f"{salt}-{count}" for count in count_up()) if slot_of(name) in slots)

    def ask(self, *command: Any) -> Any:
        (key,) = (str(word) for word in command if "{" in str(word))
        return self.servers[self.owner(key.partition("{")[2].partition("}")[0])].ask(*command)

    def begin_move(self, workflow_id: str, source: int, target: int) -> int:
        """The workflow's slot, whose keys may from now on be at either node."""
        slot = slot_of(workflow_id)
        self.servers[target].ask("CLUSTER", "SETSLOT", slot, "IMPORTING", self.id(source))
        self.servers[source].ask("CLUSTER", "SETSLOT", slot, "MIGRATING", self.id(target))
        return slot

    def move_keys(self, slot: int, source: int, target: int, *keys: str) -> None:
        """Moves ``keys``, or all that are in the slot."""
        moved = keys or self.servers[source].ask("CLUSTER", "GETKEYSINSLOT", slot, 1000)
        self.servers[source].ask("MIGRATE", "127.0.0.1", self.ports[target], "", 0, 5000, "KEYS", *moved)

    def end_move(self, slot: int, source: int, target: int) -> None:
        """The slot is the target's."""
        for number in (target, source):
            self.servers[number].ask("CLUSTER", "SETSLOT", slot, "NODE", self.id(target))
