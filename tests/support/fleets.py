"""Several real servers that form one store: a master and replica with Sentinels, or a Cluster, on the loopback."""

from collections.abc import Iterator, Sequence
from itertools import count as count_up
from pathlib import Path
from typing import Any, Final, Self

import redis

from chronoverse.store.cluster import slot_of
from tests.support.ports import free_ports
from tests.support.servers import RedisServer
from tests.support.waiting import wait_until

#: Time limit of starting a fleet, or of its recovery, on a busy machine, in seconds.
TIMEOUT_SECONDS: Final = 30.0
#: Milliseconds without an answer after which a server counts as down.
DOWN_MS: Final = 500
SERVICE: Final = "logs"
#: Interval of a Sentinel's messages to the others, in milliseconds. The default is two seconds.
FAST_PUBLISHING: Final = ("publish-period", "200")
#: The password that isolates a server: the others cannot connect to it.
PASSWORD: Final = "nobody-knows"
SLOTS: Final = 16_384


def on_port(port: int, tls: Sequence[str]) -> tuple[str, ...]:
    """Server options for a TCP port. With ``tls``, the server's TLS options, the port accepts only TLS."""
    port_options = ("--port", "0", "--tls-port", str(port), *tls) if tls else ("--port", str(port))
    return ("--bind", "127.0.0.1", *port_options)


def node(directory: Path, port: int, *options: str, binary: str | None = None, tls: Sequence[str] = ()) -> RedisServer:
    """A server that also listens on a TCP port."""
    return RedisServer(directory, binary, *on_port(port, tls), "--repl-diskless-sync-delay", "0", *options)


class Fleet:
    """Servers that form one store, as a context manager. ``url`` is the store's."""

    url: str

    def __init__(self, servers: Sequence[RedisServer]) -> None:
        self.servers = list(servers)

    def start(self) -> Self:
        """Starts all servers, and waits until they know each other."""
        for server in self.servers:
            server.start()
        return self

    def ask(self, *command: Any) -> Any:
        """Sends one command to the server that has the key."""
        raise NotImplementedError

    def close(self) -> None:
        """Kills all servers, even those stopped by SIGSTOP."""
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


class SentinelFleet(Fleet):
    """A master, a replica, and three Sentinels. With ``tls``, the options for TLS, they accept only TLS."""

    def __init__(self, directory: Path, *options: str, binary: str | None = None, tls: Sequence[str] = ()) -> None:
        first, second, *self.sentinel_ports = free_ports(5)
        self.ports = (first, second)
        self._directory = directory
        self._binary, self._tls = binary, tls
        servers = [
            node(directory / "a", first, *options, binary=binary, tls=tls),
            node(directory / "b", second, "--replicaof", "127.0.0.1", str(first), *options, binary=binary, tls=tls),
        ]
        super().__init__([*servers, *self._sentinels()])
        hosts = ",".join(f"127.0.0.1:{port}" for port in self.sentinel_ports)
        self.url = f"{'rediss' if tls else 'redis'}+sentinel://{hosts}/{SERVICE}"

    def _sentinels(self) -> Iterator[RedisServer]:
        for number, port in enumerate(self.sentinel_ports):
            directory = self._directory / f"s{number}"
            directory.mkdir(parents=True)
            config = directory / "sentinel.conf"
            config.write_text(
                f"sentinel monitor {SERVICE} 127.0.0.1 {self.ports[0]} 2\n"
                f"sentinel down-after-milliseconds {SERVICE} {DOWN_MS}\n"
                f"sentinel failover-timeout {SERVICE} 3000\n"
            )
            yield Sentinel(directory, config, port, self._binary, tls=self._tls)

    def start(self) -> Self:
        super().start()
        for sentinel in self.servers[2:]:
            sentinel.ask("SENTINEL", "DEBUG", *FAST_PUBLISHING)
        self.settle()
        return self

    def settle(self) -> None:
        """Waits for a replica, and until all Sentinels know it and each other. Then a failover is possible."""
        wait_until(lambda: all(map(self._is_known, self.servers[2:])), TIMEOUT_SECONDS, "the Sentinels know all")

    def _is_known(self, sentinel: RedisServer) -> bool:
        (replica,) = map(_pairs, sentinel.ask("SENTINEL", "REPLICAS", SERVICE) or [[]])
        others = _pairs(sentinel.ask("SENTINEL", "MASTER", SERVICE))[b"num-other-sentinels"]
        is_synced = replica.get(b"flags") == b"slave" and replica[b"master-link-status"] == b"ok"
        return is_synced and others == b"2" and replica[b"port"] != str(self._port(self.master)).encode()

    def _port(self, server: RedisServer) -> int:
        return self.ports[self.servers.index(server)]

    @property
    def replica(self) -> RedisServer:
        """The server that is not the master."""
        return next(each for each in self.servers[:2] if each is not self.master)

    @property
    def master(self) -> RedisServer:
        """The server that the first Sentinel names."""
        port = int(self.servers[2].ask("SENTINEL", "GET-MASTER-ADDR-BY-NAME", SERVICE)[1])
        return self.servers[self.ports.index(port)]

    def ask(self, *command: Any) -> Any:
        return self.master.ask(*command)

    def cut_off(self) -> RedisServer:
        """Isolates the master from the Sentinels and its replica, and returns it. Clients keep their connections."""
        master = self.master
        with redis.Redis.from_url(master.url, protocol=2, single_connection_client=True) as client:
            # An open connection stays authenticated.
            client.execute_command("CONFIG", "SET", "requirepass", PASSWORD)
            for other in client.client_list():
                if other["name"].startswith("sentinel") or "S" in other["flags"]:
                    client.execute_command("CLIENT", "KILL", "ID", other["id"])
        return master

    def rejoin(self, lost: RedisServer) -> None:
        """Ends the isolation of a former master, and makes it a replica of the new one."""
        with redis.Redis.from_url(lost.url, protocol=2, password=PASSWORD) as client:
            client.execute_command("CONFIG", "SET", "requirepass", "")
        self.follow(lost)

    def follow(self, lost: RedisServer) -> None:
        """Makes a former master a replica of the new one. The Sentinels would do so after 10 s."""
        lost.ask("REPLICAOF", "127.0.0.1", self._port(self.master))


def _pairs(flat: list[bytes]) -> dict[bytes, bytes]:
    return dict(zip(flat[::2], flat[1::2], strict=True))


class Sentinel(RedisServer):
    """A Sentinel, with a configuration file, which it rewrites."""

    def __init__(
        self, directory: Path, config: Path, port: int, binary: str | None = None, tls: Sequence[str] = ()
    ) -> None:
        super().__init__(directory, binary, *on_port(port, tls))
        self._config = str(config)

    def _command(self) -> list[str]:
        binary, _, _, *rest = super()._command()
        listening = rest[: rest.index("--save")]
        return [binary, self._config, "--sentinel", *listening, *self._options]


class Cluster(Fleet):
    """Three masters with a third of the slots each, and a replica of one. With ``tls`` they accept only TLS."""

    def __init__(self, directory: Path, *options: str, binary: str | None = None, tls: Sequence[str] = ()) -> None:
        ports = free_ports(8)
        self.ports, self._buses = ports[:4], ports[4:]
        self._ids: list[str] = []
        cluster = ("--cluster-enabled", "yes", "--cluster-node-timeout", str(2 * DOWN_MS))
        # With full coverage, all masters would refuse commands while one is down.
        partial = ("--cluster-require-full-coverage", "no")
        # CLUSTER SLOTS lists a replica only after a message from its master, which by default pings every 10 s.
        options = (*cluster, *partial, "--repl-ping-replica-period", "1", *options)
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
        wait_until(lambda: all(map(self._is_ready, self.servers)), TIMEOUT_SECONDS, "all nodes know each other")
        self.servers[3].ask("CLUSTER", "REPLICATE", self.id(0))
        self.settle()
        return self

    def settle(self) -> None:
        """Waits until all nodes know the replica and its master. Only then can the replica take over."""
        wait_until(lambda: all(map(self._pair, self.servers)), TIMEOUT_SECONDS, "all know the replica")

    def _is_ready(self, server: RedisServer) -> bool:
        info = server.ask("CLUSTER", "INFO")
        return b"cluster_state:ok" in info and f"cluster_known_nodes:{len(self.servers)}".encode() in info

    def id(self, number: int) -> str:
        """The node's id."""
        return self._ids[number]

    def _number(self, node: list[Any]) -> int:
        """The number of a node in a reply about slots, found by its id: only TLS clients get the TLS port."""
        return self._ids.index(node[2].decode())

    def _map(self) -> list[tuple[range, int]]:
        server = next(each for each in self.servers if each.answers())
        slots = server.ask("CLUSTER", "SLOTS")
        return [(range(first, last + 1), self._number(owner)) for first, last, owner, *_ in slots]

    def masters(self) -> list[int]:
        """The numbers of the nodes with slots."""
        return sorted({number for _, number in self._map()})

    @property
    def pair(self) -> tuple[int, int]:
        """The numbers of the master that has a replica, and of that replica."""
        pair = self._pair(self.servers[1])
        assert pair
        return pair

    def _pair(self, server: RedisServer) -> tuple[int, int] | None:
        slots = server.ask("CLUSTER", "SLOTS")
        return next(((self._number(owner), self._number(others[0])) for _, _, owner, *others in slots if others), None)

    def owner(self, workflow_id: str) -> int:
        """The number of the node with the workflow's slot."""
        return next(number for slots, number in self._map() if slot_of(workflow_id) in slots)

    def workflow(self, number: int, salt: str = "wf") -> str:
        """The id of a workflow whose keys are on node ``number``."""
        slots = [slot for found, owner in self._map() if owner == number for slot in found]
        return next(name for name in (f"{salt}-{count}" for count in count_up()) if slot_of(name) in slots)

    def ask(self, *command: Any) -> Any:
        (key,) = (str(word) for word in command if "{" in str(word))
        return self.servers[self.owner(key.partition("{")[2].partition("}")[0])].ask(*command)

    def restart(self, number: int) -> None:
        """Kills a node, which loses unsaved data, and restarts it. Waits until all nodes are ready again."""
        self.servers[number].kill()
        self.servers[number].start()
        wait_until(lambda: all(map(self._is_ready, self.servers)), 60, "all nodes are ready")

    def begin_move(self, workflow_id: str, source: int, target: int) -> int:
        """Starts moving the workflow's slot, and returns it. Until the move ends, a key can be on either node."""
        slot = slot_of(workflow_id)
        self.servers[target].ask("CLUSTER", "SETSLOT", slot, "IMPORTING", self.id(source))
        self.servers[source].ask("CLUSTER", "SETSLOT", slot, "MIGRATING", self.id(target))
        return slot

    def move_keys(self, slot: int, source: int, target: int, *keys: str) -> None:
        """Moves ``keys``, by default all keys of the slot that are on the source."""
        moved = keys or self.servers[source].ask("CLUSTER", "GETKEYSINSLOT", slot, 1000)
        self.servers[source].ask("MIGRATE", "127.0.0.1", self.ports[target], "", 0, 5000, "KEYS", *moved)

    def end_move(self, slot: int, source: int, target: int) -> None:
        """Assigns the slot to the target."""
        for number in (target, source):
            self.servers[number].ask("CLUSTER", "SETSLOT", slot, "NODE", self.id(target))
