"""An S3 server for tests: moto in its own process, with an empty bucket."""

import contextlib
import os
import socket
import subprocess
from collections.abc import Iterator
from typing import Final

import pytest

from tests.support.ports import free_port
from tests.support.processes import stop_process
from tests.support.tools import tool
from tests.support.waiting import wait_until

BUCKET: Final = "logs"
#: Page size of its listings. S3 has 1,000.
PAGE_KEYS: Final = 20
#: Time limit of the server's start and stop, in seconds.
START_SECONDS: Final = 60.0
STOP_SECONDS: Final = 10.0


@contextlib.contextmanager
def s3_server() -> Iterator[tuple[str, int]]:
    """Yields the host and port of a server that runs within the ``with`` block. The environment directs boto3 to it."""
    # Imported here, because it takes time and few tests need it.
    import boto3

    port = free_port()
    process = subprocess.Popen(
        [tool("moto_server"), "-H", "127.0.0.1", "-p", str(port)],
        env={**os.environ, "MOTO_S3_DEFAULT_MAX_KEYS": str(PAGE_KEYS)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("AWS_ACCESS_KEY_ID", "test")
            patch.setenv("AWS_SECRET_ACCESS_KEY", "test")
            patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
            patch.setenv("AWS_ENDPOINT_URL_S3", f"http://127.0.0.1:{port}")
            wait_until(lambda: _listens(port) or process.poll() is not None, START_SECONDS, "moto_server listens")
            boto3.session.Session().client("s3").create_bucket(Bucket=BUCKET)
            yield "127.0.0.1", port
    finally:
        stop_process(process, STOP_SECONDS)


def _listens(port: int) -> bool:
    with socket.socket() as sock:
        return sock.connect_ex(("127.0.0.1", port)) == 0
