"""A dedicated containerd, called over its CRI socket as a kubelet does: gRPC with a few hand-made messages.

The field numbers: https://github.com/kubernetes/cri-api/blob/master/pkg/apis/runtime/v1/api.proto
"""

import hashlib
import io
import json
import platform
import re
import socket
import subprocess
import tarfile
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, Final

import h2.config
import h2.connection
import h2.events

from tests.support.tools import tool
from tests.support.waiting import wait_until

IMAGE: Final = "example.com/sleep:1"
#: A container's parts of the host. Its image has a single program, which keeps a pod's namespaces alive.
MOUNTED: Final = ("/usr", "/bin", "/lib", "/lib64")

Message = Mapping[int, Any]


def encode(message: Message) -> bytes:
    """Encodes a Protocol Buffers message. Values: integers, texts, messages, and lists of these."""
    parts = []
    for number, value in message.items():
        for each in value if isinstance(value, list) else [value]:
            if isinstance(each, int):
                parts.append(_varint(number << 3) + _varint(each))
            else:
                data = encode(each) if isinstance(each, Mapping) else str(each).encode()
                parts.append(_varint(number << 3 | 2) + _varint(len(data)) + data)
    return b"".join(parts)


def decode(data: bytes) -> dict[int, Any]:
    """The last value of each field: an integer, or bytes."""
    found: dict[int, Any] = {}
    at = 0

    def varint() -> int:
        nonlocal at
        value = shift = 0
        while True:
            value |= (data[at] & 127) << shift
            at, shift = at + 1, shift + 7
            if data[at - 1] < 128:
                return value

    while at < len(data):
        key = varint()
        size = varint()
        if key & 7 == 2:
            found[key >> 3] = data[at : at + size]
            at += size
        else:
            found[key >> 3] = size
    return found


def _varint(value: int) -> bytes:
    data = b""
    while value > 127:
        data, value = data + bytes([value & 127 | 128]), value >> 7
    return data + bytes([value])


class Containerd:
    """``call`` makes one call of the runtime service. Raises RuntimeError with the error's text."""

    def __init__(self, directory: Path) -> None:
        self.address = directory / "containerd.sock"

    def call(self, method: str, message: Message) -> dict[int, Any]:
        with closing(socket.socket(socket.AF_UNIX)) as connection:
            connection.settimeout(60)
            connection.connect(str(self.address))
            http = h2.connection.H2Connection(h2.config.H2Configuration(header_encoding="utf-8"))
            http.initiate_connection()
            path = f"/runtime.v1.RuntimeService/{method}"
            headers = {":method": "POST", ":scheme": "http", ":path": path, ":authority": "localhost"}
            headers |= {"content-type": "application/grpc", "te": "trailers"}
            body = encode(message)
            http.send_headers(1, list(headers.items()))
            http.send_data(1, b"\0" + len(body).to_bytes(4, "big") + body, end_stream=True)
            connection.sendall(http.data_to_send())
            answer, status = b"", {"grpc-message": "no answer"}
            while data := connection.recv(65536):
                for event in http.receive_data(data):
                    if isinstance(event, h2.events.DataReceived):
                        answer += event.data
                    elif isinstance(event, h2.events.ResponseReceived | h2.events.TrailersReceived):
                        status |= {str(name): str(value) for name, value in event.headers}
                    elif isinstance(event, h2.events.StreamEnded):
                        if status.get("grpc-status") != "0":
                            raise RuntimeError(f"{method}: {status['grpc-message']}")
                        return decode(answer[5:])
                connection.sendall(http.data_to_send())
        raise RuntimeError(f"{method}: {status['grpc-message']}")


@contextmanager
def running_containerd(directory: Path) -> Iterator[Containerd]:
    """Starts one with one image, and pods in the host's network."""
    cri = '[plugins."io.containerd.grpc.v1.cri"'
    config = directory / "config.toml"
    config.write_text(
        f'version = 2\nroot = "{directory}/root"\nstate = "{directory}/state"\n'
        f'[grpc]\naddress = "{directory}/containerd.sock"\n'
        f'{cri}]\nsandbox_image = "{IMAGE}"\nrestrict_oom_score_adj = true\n{cri}.containerd]\nsnapshotter = "native"\n'
    )
    write_image(directory)
    log = (directory / "containerd.log").open("wb")
    process = subprocess.Popen([tool("containerd"), "-c", str(config)], stdout=log, stderr=log)
    found = Containerd(directory)
    try:
        wait_until(found.address.exists, 30, "containerd listens")
        command = [tool("ctr"), "-a", str(found.address), "-n", "k8s.io", "images", "import", f"{directory}/image.tar"]
        subprocess.run(command, check=True, capture_output=True, timeout=60)
        yield found
    finally:
        process.terminate()
        process.wait(30)
        log.close()


def write_image(directory: Path) -> None:
    """An OCI image layout with a program that waits, and its libraries."""
    program = tool("sleep")
    needed = subprocess.run([tool("ldd"), program], check=True, capture_output=True, text=True).stdout
    layer = io.BytesIO()
    with tarfile.open(fileobj=layer, mode="w", dereference=True) as files:
        for path in (program, *re.findall(r"/\S+", needed)):
            files.add(path)
    digest = hashlib.sha256(layer.getvalue()).hexdigest()
    rootfs = {"type": "layers", "diff_ids": [f"sha256:{digest}"]}
    machine = {"x86_64": "amd64", "aarch64": "arm64"}.get(platform.machine(), platform.machine())
    process = {"Entrypoint": [program, "infinity"]}
    config = {"architecture": machine, "os": "linux", "config": process, "rootfs": rootfs}
    blobs: dict[str, bytes] = {}

    def add(kind: str, data: bytes) -> dict[str, Any]:
        blobs[hashlib.sha256(data).hexdigest()] = data
        name = f"application/vnd.oci.image.{kind}"
        return {"mediaType": name, "digest": f"sha256:{hashlib.sha256(data).hexdigest()}", "size": len(data)}

    manifest: dict[str, Any] = {"schemaVersion": 2, "config": add("config.v1+json", json.dumps(config).encode())}
    manifest["layers"] = [add("layer.v1.tar", layer.getvalue())]
    entry = add("manifest.v1+json", json.dumps(manifest).encode())
    entry["annotations"] = {"io.containerd.image.name": IMAGE, "org.opencontainers.image.ref.name": "1"}
    files_of = {f"blobs/sha256/{name}": data for name, data in blobs.items()}
    files_of["index.json"] = json.dumps({"schemaVersion": 2, "manifests": [entry]}).encode()
    files_of["oci-layout"] = b'{"imageLayoutVersion":"1.0.0"}'
    with tarfile.open(directory / "image.tar", "w") as image:
        for name, data in files_of.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            image.addfile(info, io.BytesIO(data))
