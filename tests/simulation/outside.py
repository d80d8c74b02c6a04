"""What the service needs besides its store: an object store and an issuer of tokens, with their faults."""

import json
import time
from collections.abc import Iterator
from typing import Any, Final

import jwt
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from jwt.algorithms import OKPAlgorithm

from chronoverse.archive.object_store import StoredObject
from chronoverse.errors import ArchiveDamaged, ArchiveUnavailable
from tests.simulation.kernel import EPOCH, loop, world


class SimObjectStore:
    """It is slow, rejects requests, and drops what it did not confirm. Times are ends of faults."""

    def __init__(self) -> None:
        self.stored: Final[dict[str, tuple[bytes, float]]] = {}
        self.away_until = self.slow_until = 0.0

    def put(self, name: str, data: bytes) -> None:
        self._wait()
        if world.chance.random() < 0.5:
            self._store(name, data)
        self._wait()
        self._store(name, data)
        world.tell(world.process_name, f"put {name} ({len(data)} bytes)")

    def _store(self, name: str, data: bytes) -> None:
        self.stored[name] = data, time.time()

    def get(self, name: str, start: int = 0, stop: int | None = None) -> bytes:
        self._wait()
        found = self.stored.get(name)
        if found is None:
            raise ArchiveDamaged(f"the archive lacks {name}")
        return found[0][start:stop]

    def delete(self, name: str) -> None:
        self._wait()
        if self.stored.pop(name, None) is not None:
            world.tell(world.process_name, f"deleted {name}")

    def list(self, prefix: str) -> Iterator[StoredObject]:
        self._wait()
        for name in sorted(self.stored):
            if name.startswith(prefix) and (found := self.stored.get(name)):
                yield StoredObject(name, len(found[0]), found[1])

    def _wait(self) -> None:
        chance = world.chance.random
        time.sleep(chance() * (3.0 if loop.time < self.slow_until else 0.02))
        if loop.time < self.away_until and chance() < 0.8:
            raise ArchiveUnavailable("the archive does not answer")


class Issuer:
    """Its key set grows. ``away_until`` is the end of a fault."""

    def __init__(self) -> None:
        self.away_until = 0.0
        self._published: list[dict[str, Any]] = []
        self.rotate()

    def rotate(self) -> None:
        """Publishes one more key, which signs from now on."""
        self._key, self._kid = Ed25519PrivateKey.from_private_bytes(world.entropy.randbytes(32)), f"key{loop.steps}"
        public = OKPAlgorithm.to_jwk(self._key.public_key(), as_dict=True)
        self._published.append({**public, "kid": self._kid, "use": "sig"})

    def sign(self, subject: str) -> str:
        claims = {"sub": subject, "iat": EPOCH - 86_400, "exp": EPOCH + 400 * 86_400, "workflows": ["*"]}
        claims["scope"] = "logs:read logs:write logs:admin"
        return jwt.encode(claims, self._key, "EdDSA", {"kid": self._kid})

    def fetch(self, *_: object) -> bytes:
        """The key set, after some time. Raises OSError."""
        chance = world.chance.random
        time.sleep(chance() * 0.1)
        if loop.time < self.away_until:
            time.sleep(3.0 * (chance() < 0.5))
            raise OSError("the issuer is away")
        return json.dumps({"keys": self._published}).encode()
