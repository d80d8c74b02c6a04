"""Whether a listener is the service of a data directory."""

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from chronoverse.embedded import listeners


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as bound:
        yield bound


def port_of(listener: socket.socket) -> int:
    port: int = listener.getsockname()[1]
    return port


def test_only_the_recorded_listener_is_the_service(tmp_path: Path, listener: socket.socket) -> None:
    """By its address or a name for it, for its own data directory, and not if the port has passed to another program.

    Other users can neither replace nor list the files. The command line sends no tokens over a Unix socket.
    """
    address = listener.getsockname()
    listeners.record(tmp_path / "other", listener)
    assert not listeners.is_service(tmp_path, *address)
    path = listeners.record(tmp_path, listener)
    assert path is not None
    assert (path.parent.stat().st_mode & 0o777, path.stat().st_mode & 0o777) == (0o700, 0o600)
    assert all(listeners.is_service(tmp_path, host, address[1]) for host in ("127.0.0.1", "localhost"))
    listener.close()
    with socket.create_server(address, reuse_port=False):
        assert not listeners.is_service(tmp_path, *address)
    with socket.socket(socket.AF_UNIX) as local:
        assert listeners.record(tmp_path, local) is None


def test_a_name_with_another_listener_is_not_the_service(
    tmp_path: Path, listener: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A name can have several addresses, like ``localhost``. At the second one, nobody or another program listens."""
    listeners.record(tmp_path, listener)
    port, look_up = port_of(listener), socket.getaddrinfo
    both = [*look_up("127.0.0.1", port), *look_up("127.0.0.2", port)]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *given, **more: both if given[0] == "both" else look_up(*given))
    assert listeners.is_service(tmp_path, "both", port)
    with socket.create_server(("127.0.0.2", port)):
        assert not listeners.is_service(tmp_path, "both", port)


@pytest.mark.parametrize(
    ("host", "reached"), [("127.0.0.1", "127.0.0.1"), ("0.0.0.0", "127.0.0.1"), ("::1", "[::1]"), ("::", "[::1]")]
)
def test_the_url_of_a_service_is_one_that_reaches_it(tmp_path: Path, host: str, reached: str) -> None:
    """While it listens, on any port."""
    assert listeners.local_service_url(tmp_path) is None
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        server = socket.create_server((host, 0), family=family)
    except OSError as error:
        pytest.skip(f"no socket can listen at {host}: {error}")
    with server as listener:
        listeners.record(tmp_path, listener)
        assert listeners.local_service_url(tmp_path) == f"http://{reached}:{port_of(listener)}"
        assert listeners.is_service(tmp_path, reached.strip("[]"), port_of(listener))
    assert listeners.local_service_url(tmp_path) is None
