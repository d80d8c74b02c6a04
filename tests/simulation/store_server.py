"""A Redis server of the simulation: the model behind connections, with a file that is synced each second."""

from collections.abc import Callable
from typing import Any, Final

import hiredis

from tests.simulation.kernel import Process, loop, world
from tests.simulation.network import Network, SimSocket
from tests.simulation.store_model import Data, Refusal, Status, encode


class StoreServer:
    """The server at ``address``. It runs in the event loop, and has no greenlet."""

    def __init__(self, network: Network, address: str) -> None:
        self._network = network
        self._address = address
        self._tracked: dict[bytes, dict[Client, None]] = {}
        self.process = Process(address)
        self.data = Data(self._clock, lambda count: int(world.chance.random() * count), self._changed)
        self._changes: dict[bytes, None] = {}
        #: Who waits for the next sync, and whether syncing stands still.
        self._waiting: list[Callable[[], object]] = []
        #: Who waits for the replica, and until when that lags.
        self._replicating: list[Callable[[], object]] = []
        self.lags_until = 0.0
        #: Whether its replica is the master now, and takes nothing from it.
        self.was_replaced = False
        self.disk_is_busy = False
        #: Share of the reports of changes that are lost, as a proxy may lose them, and until when it is half.
        self.lost_reports = 0.0
        self.loses_reports_until = 0.0
        self._start()

    def _clock(self) -> float:
        return 1_767_225_600.0 + loop.time

    def _start(self) -> None:
        self._tracked.clear()
        self._changes.clear()
        self._waiting.clear()
        self._replicating.clear()
        self._network.listen(self._address, self.process, lambda sock: Client(self, sock))
        self.process.spawn(self._tick)

    def _tick(self) -> None:
        if not self.disk_is_busy:
            self.sync()
        self.data.expire_due()
        self.report_changes()
        loop.call_later(1.0, self._tick)

    def replicate(self) -> None:
        """From now on the server has a replica, which is some time behind."""
        if self.was_replaced:
            return
        if self.data.unreplicated is None or loop.time >= self.lags_until:
            self.data.unreplicated = {}
            waiting, self._replicating = self._replicating, []
            for call in waiting:
                call()
        loop.call_later(world.chance.uniform(0.01, 0.5), self.replicate)

    def fail_over(self, address: str) -> "StoreServer":
        """The replica, which is the master at ``address`` from now on. This server does not know it yet."""
        self.was_replaced = True
        new = StoreServer(self._network, address)
        new.data.become_replica_of(self.data)
        new.lost_reports = self.lost_reports
        new.replicate()
        return new

    def sync(self) -> None:
        """The append-only file is synced."""
        self.data.sync()
        waiting, self._waiting = self._waiting, []
        for call in waiting:
            call()

    def crash(self, power: bool, seconds: float, *, lose_all: bool = False) -> None:
        """The server dies and comes back after that long: without what was not synced, when the ``power`` fails."""
        if self.process.dead:
            return
        self._network.kill(self.process, power=power)
        self.process = Process(self._address)
        self.process.dead = True
        if power:
            self.data.restore()
        else:
            self.data.sync()
        if lose_all:
            self.data.clear()
        self.data.scripts.clear()
        loop.call_later(seconds, self._restart)

    def _restart(self) -> None:
        self.process.dead = False
        self.data.started_at = self._clock()
        world.tell("store", "is back")
        self._start()

    def wait_for(self, command: bytes, call: Callable[[], object]) -> None:
        """Makes the call once what was written is on the disk, or with WAIT on the replica."""
        (self._replicating if command == b"WAIT" else self._waiting).append(call)

    def track(self, key: bytes, client: "Client") -> None:
        self._tracked.setdefault(key, {})[client] = None

    def _changed(self, key: bytes) -> None:
        if key in self._tracked:
            self._changes[key] = None

    def report_changes(self) -> None:
        """Tells clients of the keys that have changed since they have read them."""
        changes, self._changes = self._changes, {}
        for key in changes:
            for client in self._tracked.pop(key, ()):
                lost = 0.5 if loop.time < self.loses_reports_until else self.lost_reports
                if lost and world.chance.random() < lost:
                    continue
                client.send(b">2\r\n$10\r\ninvalidate\r\n*1\r\n$%d\r\n%b\r\n" % (len(key), key))


class Client:
    """One connection, as the server has it."""

    def __init__(self, server: StoreServer, sock: SimSocket) -> None:
        self._server: Final = server
        self._sock: Final = sock
        self._reader = hiredis.Reader()
        self._tracks = False
        #: Commands that wait until an earlier one is answered.
        self._blocked: list[list[bytes]] | None = None
        sock.on_data, sock.on_close = self._on_data, sock.close

    def send(self, data: bytes) -> None:
        if data and not self._sock.closed:
            try:
                self._sock.sendall(data)
            except OSError:
                self._sock.close()

    def _on_data(self, data: bytes) -> None:
        self._reader.feed(data)
        commands = []
        while (command := self._reader.gets()) is not False:
            commands.append(command)
        if self._blocked is not None:
            self._blocked += commands
        else:
            self._run(commands)

    def _run(self, commands: list[list[bytes]]) -> None:
        replies: list[bytes] = []
        for at, command in enumerate(commands):
            name = command[0].upper()
            if name in (b"WAITAOF", b"WAIT"):
                self.send(b"".join(replies))
                self._server.report_changes()
                self._block(name, int(command[1]), float(command[-1]) / 1000, commands[at + 1 :])
                return
            replies.append(encode(self._answer(name, command)))
        if replies:
            self.send(b"".join(replies))
        self._server.report_changes()

    def _answer(self, name: bytes, command: list[bytes]) -> Any:
        if name == b"HELLO":
            return {b"server": b"redis", b"proto": 3, b"role": b"master"}
        if name == b"CLIENT":
            self._tracks = self._tracks or command[1].upper() == b"TRACKING"
            return Status(b"OK")
        if self._tracks and name == b"XREAD":
            self._server.track(command[-2], self)
        try:
            answer = self._server.data.run(command)
        except Refusal as refusal:
            answer = refusal
        if world.story is not None:
            world.story.append((loop.time, "store", _shown(self._sock.name, command, answer)))
        return answer

    def _block(self, name: bytes, least: int, seconds: float, rest: list[list[bytes]]) -> None:
        """Answers WAITAOF at the next sync, and WAIT at the next replication, or after ``seconds``."""
        self._blocked = rest
        is_done = False

        def answer(synced: int) -> None:
            nonlocal is_done
            if is_done:
                return
            is_done = True
            self.send(encode([synced, 0] if name == b"WAITAOF" else synced))
            commands, self._blocked = self._blocked or [], None
            self._run(commands)

        if name == b"WAIT" and (self._server.data.unreplicated is None or least == 0):
            answer(0)
            return
        self._server.wait_for(name, lambda: answer(1))
        loop.call_later(seconds, answer, 0)


def _shown(name: str, command: list[bytes], answer: Any) -> str:
    words = [each.decode("latin-1")[:24] for each in command[:3] if not each.startswith((b"#!", b"local"))]
    keys = [each.decode("latin-1") for each in command[3:5]]
    return f"{name.split('<')[-1]} {' '.join(words)[:48]} {' '.join(keys)[:70]} -> {bytes(encode(answer))[:60]!r}"


class Sentinel:
    """A Sentinel at ``address``, which says that the master is ``master``."""

    def __init__(self, network: Network, address: str, master: str) -> None:
        self.master = master
        network.listen(address, Process(address), self._accept)

    def _accept(self, sock: SimSocket) -> None:
        reader = hiredis.Reader()

        def on_data(data: bytes) -> None:
            reader.feed(data)
            while (command := reader.gets()) is not False:
                is_question = command[0].upper() == b"SENTINEL"
                sock.sendall(encode([self.master.encode(), b"6379"] if is_question else {b"proto": 3}))

        sock.on_data, sock.on_close = on_data, sock.close
