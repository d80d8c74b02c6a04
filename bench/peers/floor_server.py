"""The floor: a writer that only sends everything to all viewers. ``bench.peers.floor_server PORT INPUT_PORT``."""

import contextlib
import select
import socket
import sys
from typing import Final

#: Bytes of one write, as in the service.
WRITE_BYTES: Final = 256 * 2**10
#: Bytes that the kernel may hold for one viewer, as in the service.
SEND_BUFFER_BYTES: Final = 64 * 2**10
HEAD: Final = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\nTransfer-Encoding: chunked\r\n"
    b"Cache-Control: no-cache, no-transform\r\n\r\n"
)


class Floor:
    """All viewers and the bytes for them."""

    def __init__(self, port: int, input_port: int) -> None:
        self._epoll = select.epoll()
        self._listener = self._listen(port)
        self._input_listener = self._listen(input_port)
        self._input: socket.socket | None = None
        self._viewers: dict[int, socket.socket] = {}
        self._positions: dict[int, int] = {}
        self._sent = bytearray()
        #: The viewers whose socket is full. epoll says when it has room.
        self._full: set[int] = set()

    def _listen(self, port: int) -> socket.socket:
        listener = socket.create_server(("127.0.0.1", port), backlog=4096)
        listener.setblocking(False)
        self._epoll.register(listener.fileno(), select.EPOLLIN)
        return listener

    def serve(self) -> None:
        """Serves until stopped."""
        while True:
            for fd, events in self._epoll.poll():
                if fd == self._listener.fileno():
                    self._accept()
                elif fd == self._input_listener.fileno():
                    self._input = self._input_listener.accept()[0]
                    self._epoll.register(self._input.fileno(), select.EPOLLIN)
                elif self._input is not None and fd == self._input.fileno():
                    self._publish(self._input)
                elif events & select.EPOLLOUT:
                    self._write(fd)
                else:
                    self._read(fd)

    def _accept(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while True:
                viewer = self._listener.accept()[0]
                viewer.setblocking(False)
                viewer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                viewer.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)
                self._viewers[viewer.fileno()] = viewer
                self._epoll.register(viewer.fileno(), select.EPOLLIN)

    def _read(self, fd: int) -> None:
        try:
            asked = self._viewers[fd].recv(4096)
        except OSError:
            asked = b""
        if not asked:
            self._leave(fd)
        elif fd not in self._positions:
            self._viewers[fd].sendall(HEAD)
            self._positions[fd] = 0
            if self._sent:
                self._write(fd)

    def _publish(self, source: socket.socket) -> None:
        data = source.recv(1 << 20)
        if not data:
            self._epoll.unregister(source.fileno())
            source.close()
            self._input = None
            return
        self._sent += data
        for fd in list(self._positions):
            if fd not in self._full:
                self._write(fd)

    def _write(self, fd: int) -> None:
        position, end = self._positions[fd], len(self._sent)
        try:
            with memoryview(self._sent) as view:
                position += self._viewers[fd].send(view[position : position + WRITE_BYTES])
        except BlockingIOError:
            pass
        except OSError:
            self._leave(fd)
            return
        self._positions[fd] = position
        if position < end and fd not in self._full:
            self._full.add(fd)
            self._epoll.modify(fd, select.EPOLLIN | select.EPOLLOUT)
        elif position == end and fd in self._full:
            self._full.discard(fd)
            self._epoll.modify(fd, select.EPOLLIN)

    def _leave(self, fd: int) -> None:
        self._epoll.unregister(fd)
        self._viewers.pop(fd).close()
        self._positions.pop(fd, None)
        self._full.discard(fd)


if __name__ == "__main__":
    Floor(int(sys.argv[1]), int(sys.argv[2])).serve()
