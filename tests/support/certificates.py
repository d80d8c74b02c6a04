"""Certificates for one test run: a CA and the certificates that it issues."""

import ssl
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

#: Validity before and after now. Outlasts any test.
VALID: Final = timedelta(days=1)


class Authority:
    """A CA. Writes ``<name>.pem`` and ``<name>.key`` to ``directory``: its own as ``ca``, others by :meth:`issue`."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        directory.mkdir(parents=True, exist_ok=True)
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = _common_name("tests")
        # Python 3.13 and newer reject a CA certificate without the key usage for signing certificates.
        signs = x509.KeyUsage(False, False, False, False, False, True, True, False, False)
        self.path = self._write("ca", self._name, self._key, [(x509.BasicConstraints(True, 0), True), (signs, True)])

    def issue(self, name: str, host: str = "127.0.0.1") -> Path:
        """Issues a certificate for ``host`` and localhost. The path of the key ends in ``.key``."""
        loopback = x509.SubjectAlternativeName([x509.IPAddress(ip_address(host)), x509.DNSName("localhost")])
        return self._write(name, _common_name(name), ec.generate_private_key(ec.SECP256R1()), [(loopback, False)])

    def context(self, name: str) -> ssl.SSLContext:
        """A server's context with such a certificate."""
        context, certificate = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), self.issue(name)
        context.load_cert_chain(certificate, certificate.with_suffix(".key"))
        return context

    def _write(
        self,
        name: str,
        subject: x509.Name,
        key: ec.EllipticCurvePrivateKey,
        extensions: list[tuple[x509.ExtensionType, bool]],
    ) -> Path:
        now = datetime.now(UTC)
        builder = x509.CertificateBuilder(
            self._name, subject, key.public_key(), x509.random_serial_number(), now - VALID, now + VALID
        )
        authority = x509.SubjectKeyIdentifier.from_public_key(self._key.public_key())
        extensions = [
            *extensions,
            (x509.SubjectKeyIdentifier.from_public_key(key.public_key()), False),
            (x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(authority), False),
        ]
        for extension, critical in extensions:
            builder = builder.add_extension(extension, critical)
        pem = serialization.Encoding.PEM
        path = self.directory / f"{name}.pem"
        path.write_bytes(builder.sign(self._key, hashes.SHA256()).public_bytes(pem))
        private = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        path.with_suffix(".key").write_bytes(key.private_bytes(pem, *private))
        return path


def _common_name(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
