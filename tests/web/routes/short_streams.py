"""Many short event streams, in sequence and concurrently."""

import selectors
import socket
import ssl

from tests.web.routes.wire import Endpoint


def open_short_streams(endpoint: Endpoint, requests: list[tuple[bytes, bytes]], streams: int, at_once: int) -> None:
    """Opens ``streams`` event streams, ``at_once`` of them at a time, and closes each when it has sent enough.

    Each of ``requests``, used in turn, is a request and the bytes after which its stream is closed.
    Raises AssertionError when a stream ends earlier.
    """
    selector = selectors.DefaultSelector()
    begun = ended = 0
    while ended < streams:
        while begun < streams and begun - ended < at_once:
            request, enough = requests[begun % len(requests)]
            sock = endpoint.connect(10)
            sock.sendall(request)
            sock.setblocking(False)
            selector.register(sock, selectors.EVENT_READ, (bytearray(), enough))
            begun += 1
        for key, _ in selector.select(10):
            received, enough = key.data
            assert isinstance(key.fileobj, socket.socket)
            try:
                chunk = key.fileobj.recv(65_536)
            except ssl.SSLWantReadError:
                continue
            received += chunk
            if enough in received or not chunk:
                assert enough in received, bytes(received)
                selector.unregister(key.fileobj)
                key.fileobj.close()
                ended += 1
    selector.close()
