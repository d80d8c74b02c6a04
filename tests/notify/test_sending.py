"""Sending one message: its content, the addresses that are never used, and what a bad receiver can do."""

import asyncio
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from chronoverse.cli.notify.sending import NotDelivered, is_public, post, signed_headers
from tests.support.certificates import Authority
from tests.support.receiver import Receiver

HOSTS = {"127.0.0.1": True}
CONTEXT = ssl.create_default_context()


@pytest.fixture
def tls_receiver(tmp_path: Path) -> Iterator[tuple[Receiver, ssl.SSLContext]]:
    """A receiver with a certificate for localhost and 127.0.0.1, and a context that trusts its authority."""
    authority = Authority(tmp_path)
    with Receiver(tls=authority.context("localhost")) as receiver:
        yield receiver, ssl.create_default_context(cafile=str(authority.path))


def send(
    url: str,
    hosts: dict[str, bool] = HOSTS,
    seconds: float = 10,
    body: bytes = b"{}",
    context: ssl.SSLContext = CONTEXT,
) -> None:
    post(url, {"webhook-id": "msg_1"}, body, hosts, context, seconds)


def test_a_message_is_signed_by_standard_webhooks() -> None:
    """The example of the specification's reference libraries."""
    headers = signed_headers(
        "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", "msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, b'{"test": 2432232314}'
    )
    assert headers == {
        "webhook-id": "msg_p5jXN8AQM9LWM0D4loKWxJek",
        "webhook-timestamp": "1614265330",
        "webhook-signature": "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=",
    }


def test_a_message_arrives(receiver: Receiver) -> None:
    send(f"{receiver.url}?a=b", body=b'{"x":1}')
    (message,) = receiver.messages
    assert (message.path, message.body) == ("/hook?a=b", b'{"x":1}')
    assert message.headers["content-type"] == "application/json"
    assert message.headers["host"] == f"127.0.0.1:{receiver.port}"


@pytest.mark.parametrize("status", [300, 302, 307, 400, 404, 410, 429, 500, 503])
def test_other_status_codes_are_failures(receiver: Receiver, status: int) -> None:
    """A redirect is not followed, and an invalid Retry-After is ignored."""
    with Receiver() as other:
        impossible = "Thu, 31 Dec 2099 23:59:59 +99999999999999"
        receiver.status, receiver.headers = status, {"Location": other.url, "Retry-After": impossible}
        with pytest.raises(NotDelivered, match=f"127.0.0.1 returned {status}") as refusal:
            send(receiver.url)
        assert refusal.value.retry_after == 0
        assert other.messages == []


@pytest.mark.parametrize("slow", ["silent", "dripping"])
def test_a_slow_receiver_times_out(receiver: Receiver, slow: str) -> None:
    """Even if it sends a byte of its answer now and then."""
    receiver.pause, receiver.drip = (5.0, 0.0) if slow == "silent" else (0.0, 0.2)
    began = time.monotonic()
    with pytest.raises(NotDelivered, match="no answer within 1 s"):
        send(receiver.url, seconds=1)
    assert time.monotonic() - began < 4


def test_an_endless_answer_is_limited() -> None:
    """Endless headers, an endless body, or endless interim answers."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve(head: bytes, more: bytes = b"x: y\r\n") -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(65_536)
                try:
                    connection.sendall(head)
                    while True:
                        connection.sendall(more * 10_000)
                except OSError:
                    pass

        url = f"http://127.0.0.1:{listener.getsockname()[1]}/"
        interim = b"HTTP/1.1 100 Continue\r\n\r\n"
        for head, more in ((b"HTTP/1.1 200 OK\r\n", b"x: y\r\n"), (b"", interim), (b"", b"x")):
            threading.Thread(target=serve, args=(head, more), daemon=True).start()
            with pytest.raises(NotDelivered, match="no valid HTTP answer"):
                send(url)
        for head in (
            b"HTTP/1.1 200 OK\r\n\r\n",
            b"HTTP/1.1 103 Hints\r\n\r\nHTTP/1.1 200 OK\r\n\r\n",
            b"HTTP/1.1 200 OK\n\n",
        ):
            threading.Thread(target=serve, args=(head,), daemon=True).start()
            send(url)


def test_a_receiver_that_crashes_or_is_down_is_a_failure(receiver: Receiver) -> None:
    receiver.status = None
    with pytest.raises(NotDelivered, match=r"127\.0\.0\.1: "):
        send(receiver.url)
    receiver.stop()
    with pytest.raises(NotDelivered, match="refused"):
        send(receiver.url)


@pytest.mark.parametrize(
    "address",
    [
        *("127.0.0.1", "127.8.9.1", "0.0.0.0", "10.1.2.3", "172.16.0.1", "192.168.1.1", "169.254.169.254"),
        *("100.64.0.1", "192.0.0.8", "198.18.0.1", "224.0.0.1", "240.0.0.1", "255.255.255.255"),
        *("::", "::1", "fe80::1", "fe80::1%lo", "fc00::1", "fd00:ec2::254", "ff02::1", "2001:db8::1"),
        *("::ffff:127.0.0.1", "::ffff:10.0.0.1", "::127.0.0.1", "64:ff9b::127.0.0.1", "64:ff9b::a00:1"),
        *("64:ff9b:1::1", "2002:7f00:1::", "2002:808:808::1", "2001:0:53aa:64c::1", "::ffff:0:127.0.0.1"),
    ],
)
def test_a_private_address_is_not_public(address: str) -> None:
    assert not is_public(address)


@pytest.mark.parametrize("address", ["8.8.8.8", "2606:4700::1111", "::ffff:8.8.8.8", "64:ff9b::8.8.8.8"])
def test_an_address_of_the_internet_is_public(address: str) -> None:
    assert is_public(address)


def resolver(monkeypatch: pytest.MonkeyPatch, *answers: list[str]) -> list[str]:
    """Makes each look-up of a name return the next of ``answers``. Returns the list of names that were looked up."""
    real, asked = socket.getaddrinfo, list[str]()

    def answer(host: str, port: int, *args: Any, **options: Any) -> Any:
        if not host[0].isalpha():
            return real(host, port, *args, **options)
        asked.append(host)
        found = answers[min(len(asked), len(answers)) - 1]
        return [each for address in found for each in real(address, port, type=socket.SOCK_STREAM)]

    monkeypatch.setattr(socket, "getaddrinfo", answer)
    return asked


def test_a_name_with_a_private_address_is_refused(receiver: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    """Unless its host is listed with +private."""
    resolver(monkeypatch, ["127.0.0.1"])
    url = f"https://hooks.example:{receiver.port}/"
    with pytest.raises(NotDelivered, match=r"no public address"):
        send(url, {"hooks.example": False})
    send(url.replace("https", "http"), {"hooks.example": True})
    assert len(receiver.messages) == 1


def test_a_host_can_be_an_ipv6_address(receiver: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    real, asked = asyncio.SelectorEventLoop.sock_connect, list[str]()

    async def connect(loop: asyncio.SelectorEventLoop, sock: socket.socket, address: tuple[str, int]) -> None:
        asked.append(address[0])
        await real(loop, sock, ("::ffff:127.0.0.1", address[1]))

    monkeypatch.setattr("asyncio.SelectorEventLoop.sock_connect", connect)
    send(f"http://[FD00::AB]:{receiver.port}/", {"fd00::ab": True})
    assert asked == ["fd00::ab"]
    assert receiver.messages[0].headers["host"] == f"[FD00::AB]:{receiver.port}"


def test_only_a_checked_address_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """A name is looked up once, since its address may change. Its private addresses are not tried.

    One that does not answer leaves time for the next. The error names none of them.
    """
    asked, tried = resolver(monkeypatch, ["10.0.0.1", "8.8.8.8", "127.0.0.1", "8.8.4.4"], ["127.0.0.1"]), list[str]()
    are_all_tried = asyncio.Event()

    async def refuse(_: object, sock: socket.socket, address: tuple[str, int]) -> None:
        tried.append(address[0])
        if len(tried) == 2:
            are_all_tried.set()
        await are_all_tried.wait()
        raise ConnectionRefusedError

    monkeypatch.setattr("asyncio.SelectorEventLoop.sock_connect", refuse)
    with pytest.raises(NotDelivered, match=r"\Ahooks\.example: no address accepts a connection\Z"):
        send("https://hooks.example/", {"hooks.example": False}, seconds=60)
    assert (asked, tried) == (["hooks.example"], ["8.8.8.8", "8.8.4.4"])


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("https://other.example/", "not in CHRONOVERSE_WEBHOOK_HOSTS"),
        ("http://hooks.example/", "requires hooks.example"),
        ("https://127.0.0.1@other.example/", "without a user"),
        ("https://hooks.example\\@127.0.0.1/", "without a user"),
        ("https://hooks.example/#x", "a fragment"),
        ("https://hooks.example:0/", "expected https"),
        ("https://hooks.example:99999/", "Port out of range"),
        ("https://hooks.example./", "not in CHRONOVERSE_WEBHOOK_HOSTS"),
        ("https://[::1/", "expected https"),
        ("http://[::1].hooks.example/", "expected https"),
        ("file:///etc/passwd", "expected https"),
        ("https://hooks.example/a b", "expected https"),
        ("https://hooks.example/\r\nX: y", "expected https"),
    ],
)
def test_a_url_that_is_not_allowed_is_refused(url: str, why: str) -> None:
    with pytest.raises(NotDelivered, match=why):
        send(url, {"hooks.example": False})


def test_the_certificate_must_match_the_host(
    tls_receiver: tuple[Receiver, ssl.SSLContext], monkeypatch: pytest.MonkeyPatch
) -> None:
    """And be issued by a trusted authority."""
    receiver, trusting = tls_receiver
    resolver(monkeypatch, ["127.0.0.1"])
    hosts = {"localhost": True, "hooks.example": True}
    url = f"https://localhost:{receiver.port}/"
    send(url, hosts, context=trusting)
    with pytest.raises(NotDelivered, match=r"hooks\.example: invalid certificate: .*mismatch"):
        send(url.replace("localhost", "hooks.example"), hosts, context=trusting)
    with pytest.raises(NotDelivered, match="localhost: invalid certificate"):
        send(url, hosts)
    assert len(receiver.messages) == 1
