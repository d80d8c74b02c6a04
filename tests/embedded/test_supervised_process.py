"""A supervised child process."""

import os
import socket
import sys
from pathlib import Path
from typing import Final

import pytest

from chronoverse.embedded.supervised_process import SupervisedProcess
from tests.support.waiting import wait_until

PATIENCE_SECONDS: Final = 10.0


def test_the_program_does_not_keep_our_listening_sockets_open(tmp_path: Path) -> None:
    """gunicorn's listening sockets are inheritable. Once we close ours, the port must be closed."""
    started = tmp_path / "started"
    code = f"import sys; open({str(started)!r}, 'w').close(); sys.stdin.read()"
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.set_inheritable(True)
        program = SupervisedProcess([sys.executable, "-c", code], os.environ, lambda pid, seconds: None)
        program.start()
        wait_until(started.exists, PATIENCE_SECONDS, "the program runs")
        address = listener.getsockname()
    try:
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(address, PATIENCE_SECONDS)
    finally:
        program.stop()
