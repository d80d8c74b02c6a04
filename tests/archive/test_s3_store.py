"""The object store in S3, on a real server, with network faults."""

import contextlib
import importlib.util
import itertools
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from pathlib import Path

import pytest

from chronoverse.archive.object_store import FileObjectStore
from chronoverse.archive.s3_store import S3ObjectStore
from chronoverse.archive.schemes import open_object_store
from chronoverse.errors import ArchiveDamaged, ArchiveUnavailable, SettingsError
from chronoverse.joblog.model import Line
from tests.archive.s3faults import KINDS, REFUSALS, Call, Fault, S3Faults
from tests.archive.s3server import BUCKET, PAGE_KEYS, s3_server
from tests.support.archives import JOB, ArchiveBuilder, raw_line
from tests.support.certificates import Authority
from tests.support.faultproxy import FaultProxy
from tests.support.issuer import Issuer
from tests.support.parameters import long_after
from tests.support.waiting import wait_until

#: Time limit of a call that fails for lack of an answer, in seconds.
BOUND_SECONDS = 20.0


@pytest.fixture(scope="module")
def server() -> Iterator[tuple[str, int]]:
    with s3_server() as address:
        yield address


@pytest.fixture
def proxy(server: tuple[str, int], monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultProxy]:
    with FaultProxy(server) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", proxy.http_url)
        yield proxy


def patient_store(prefix: str) -> S3ObjectStore:
    """Retries soon, and waits for the answers of a server on a busy machine."""
    return S3ObjectStore(BUCKET, prefix, read_seconds=30.0, answer_seconds=60.0, retry_seconds=0.005)


def test_threads_share_a_client(proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch) -> None:
    """Even if they need it at the same time, before it exists."""
    sessions, at_once, make = itertools.count(), threading.Barrier(4), import_module("boto3").session.Session
    monkeypatch.setattr("boto3.session.Session", lambda: (make(), next(sessions))[0])
    store = S3ObjectStore(BUCKET, "shared")

    def read() -> None:
        at_once.wait(60)
        assert [*store.list("")] == []

    with ThreadPoolExecutor(4) as pool:
        for reading in [pool.submit(read) for _ in range(4)]:
            reading.result(60)
    assert next(sessions) == 1


def test_an_unknown_certificate_authority_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The message names the setting that boto3 reads."""
    certificate = Authority(tmp_path).issue("s3")
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate, certificate.with_suffix(".key"))
    issuer = Issuer()
    issuer.socket = context.wrap_socket(issuer.socket, server_side=True)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", issuer.url.replace("http:", "https:").removesuffix("/jwks.json"))
    reason = "the certificate of the archive is not trusted: .*; AWS_CA_BUNDLE can name a file"
    with issuer, pytest.raises(ArchiveUnavailable, match=reason):
        S3ObjectStore(BUCKET, retry_seconds=0).get("a")


def test_objects(server: tuple[str, int]) -> None:
    """Written, partially read, listed and deleted, all below the URL's prefix."""
    objects = open_object_store(f"s3://{BUCKET}/some/prefix/")
    assert list(objects.list("wf_1/job_1/")) == []
    for _ in range(2):
        objects.put("wf_1/job_1/a", b"0123456789")
    objects.put("wf_1/job_10/b", b"")
    assert objects.get("wf_1/job_1/a") == b"0123456789"
    assert objects.get("wf_1/job_1/a", 2, 5) == b"234"
    assert objects.get("wf_1/job_1/a", 8) == b"89"
    assert objects.get("wf_1/job_1/a", 3, 3) == b""
    (found,) = objects.list("wf_1/job_1/")
    assert (found.name, found.size) == ("wf_1/job_1/a", 10)
    assert abs(found.written_at - time.time()) < 600
    objects.delete("wf_1/job_1/a")
    objects.delete("wf_1/job_1/a")
    assert [each.name for each in objects.list("wf_1/")] == ["wf_1/job_10/b"]
    for start in (0, 5):
        with pytest.raises(ArchiveDamaged):
            objects.get("wf_1/job_1/a", start)
    client = import_module("boto3").client("s3")
    assert client.get_object(Bucket=BUCKET, Key="some/prefix/wf_1/job_10/b")["Body"].read() == b""


def test_a_listing_of_several_pages(server: tuple[str, int]) -> None:
    """S3 limits the objects of a listing's page."""
    objects = S3ObjectStore(BUCKET, "many")
    names = [f"wf_1/job_1/{number:04}" for number in range(PAGE_KEYS + 1)]
    for name in names:
        objects.put(name, b"")
    assert [each.name for each in objects.list("wf_1/job_1/")] == names


def test_more_concurrent_calls_than_pooled_connections(server: tuple[str, int]) -> None:
    """All succeed."""
    objects, found = S3ObjectStore(BUCKET, "parallel"), []
    objects.put("a", b"x" * 100_000)
    threads = [threading.Thread(target=lambda: found.append(objects.get("a"))) for _ in range(48)]
    for each in threads:
        each.start()
    for each in threads:
        each.join(60)
    assert found == [b"x" * 100_000] * 48


def test_a_log_is_read_from_s3(server: tuple[str, int]) -> None:
    """The reader works the same as with files."""
    builder = ArchiveBuilder(S3ObjectStore(BUCKET, "log"))
    builder.fill([raw_line(number, f"line {number}") for number in range(1, 1001)], 300, 5000)
    archive = builder.reader()
    entries = [*archive.entries(JOB, 0, 2000), *archive.entries(JOB, 3, 9, descending=True)]
    assert [line.message for line in entries if isinstance(line, Line)] == [
        *(f"line {number}" for number in range(1, 1001)),
        *("line 2", "line 1"),
    ]


def test_a_missing_bucket_is_unavailable(server: tuple[str, int]) -> None:
    """It is not reported as damage: the settings name the bucket, and a retry would not help."""
    objects = S3ObjectStore("no-such-bucket", retry_seconds=1_000)
    for call in (lambda: objects.get("a"), lambda: objects.put("a", b""), lambda: list(objects.list("a/"))):
        with pytest.raises(ArchiveUnavailable):
            call()


def test_a_cut_connection_is_retried(proxy: FaultProxy) -> None:
    """The caller does not notice a single disconnect. No retry begins after the answer's timeout."""
    objects = patient_store("broken")
    objects.put("a", b"x" * 300_000)
    proxy.drop_reply(passing=100_000, request=b"GET")
    assert objects.get("a") == b"x" * 300_000
    proxy.drop_request(passing=100, request=b"PUT")
    objects.put("b", b"y" * 100_000)
    assert objects.get("b") == b"y" * 100_000
    proxy.drop_request(passing=100, request=b"PUT")
    with pytest.raises(ArchiveUnavailable):
        S3ObjectStore(BUCKET, "broken", answer_seconds=0).put("c", b"z" * 100_000)


@pytest.mark.parametrize("kind", KINDS)
def test_a_call_that_fails_once_is_retried(server: tuple[str, int], monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    """Whether or not it had its effect. If it is always refused, the archive is unavailable."""
    with S3Faults(server) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", proxy.url)
        objects = patient_store(f"failing-{kind}")
        calls: dict[Call, Callable[[], object]] = {
            "put": lambda: objects.put("a", b"x" * 1_000),
            "get": lambda: objects.get("a"),
            "list": lambda: [(each.name, each.size) for each in objects.list("")],
            "delete": lambda: objects.delete("a"),
        }
        expected = {"get": b"x" * 1_000, "list": [("a", 1_000)]}
        for call, work in calls.items():
            with proxy.fault(Fault(call, kind, once=True)):
                assert work() == expected.get(call)
            if kind in REFUSALS:
                with proxy.fault(Fault(call, kind, once=False)), pytest.raises(ArchiveUnavailable):
                    work()
        assert calls["list"]() == []


def answers(objects: S3ObjectStore) -> bool:
    with contextlib.suppress(ArchiveUnavailable):
        return len(objects.get("a")) == 1_000_000
    return False


@pytest.mark.parametrize("fault", long_after(2, ["trickle", "refuse", "stall", "cut in the middle"]))
def test_an_unresponsive_server_is_unavailable_in_bounded_time(proxy: FaultProxy, fault: str) -> None:
    """Whatever the reason. Calls succeed once it responds again."""
    prefix = f"silent-{fault.replace(' ', '-')}"
    patient_store(prefix).put("a", b"x" * 1_000_000)
    objects = S3ObjectStore(BUCKET, prefix, read_seconds=0.5, answer_seconds=1.0)
    began = time.monotonic()
    if fault == "refuse":
        proxy.refuse()
        proxy.cut()
    elif fault == "stall":
        proxy.stall()
    elif fault == "trickle":
        proxy.throttle(80_000)
    else:
        proxy.drop_reply(passing=500_000, request=b"GET", times=100)
    with pytest.raises(ArchiveUnavailable):
        objects.get("a")
    assert time.monotonic() - began < BOUND_SECONDS
    proxy.heal()
    proxy.cut()
    wait_until(lambda: answers(objects), BOUND_SECONDS, "the same client gets answers")


def test_missing_credentials_are_unavailable(
    server: tuple[str, int], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The error names them."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    with pytest.raises(ArchiveUnavailable, match="credentials"):
        S3ObjectStore(BUCKET).get("a")


def test_without_boto3(monkeypatch: pytest.MonkeyPatch) -> None:
    """Opening the store fails, and the error names what to install."""
    found = importlib.util.find_spec
    monkeypatch.setattr("chronoverse.archive.s3_store.find_spec", lambda name: None if name == "boto3" else found(name))
    with pytest.raises(SettingsError, match="install the extra s3"):
        open_object_store("s3://bucket")


def test_files_by_url(tmp_path: Path) -> None:
    objects = open_object_store((tmp_path / "with space").as_uri())
    objects.put("a", b"1")
    assert isinstance(objects, FileObjectStore)
    assert (tmp_path / "with space" / "a").read_bytes() == b"1"
