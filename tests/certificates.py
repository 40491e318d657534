"""Keys and certificates for tests of TLS, made anew: PEM text throughout."""

from __future__ import annotations

import ipaddress
import json
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID


@dataclass(frozen=True)
class Identity:
    """A private key, and a certificate that an authority signed for it."""

    key: str
    certificate: str


class Authority:
    """Signs certificates for 127.0.0.1 and localhost."""

    def __init__(self, name: str) -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = _name(name)
        self._certificate = _signed(self._name, self._name, self._key, self._key, authority=True)
        self.certificate = _pem(self._certificate)

    def identity(self, name: str) -> Identity:
        """Return a new key with its certificate."""
        key = ec.generate_private_key(ec.SECP256R1())
        text = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        ).decode()
        return Identity(text, _pem(_signed(_name(name), self._name, key, self._key, authority=False)))


def ssl_config(path: Path, identity: Identity, authority: str = "", verify: bool = False) -> Path:
    """Write an SSLConfig: PEM text in protobuf's text format."""
    fields = {"server_key": identity.key, "server_cert": identity.certificate, "custom_ca": authority}
    lines = [f"{name}: {json.dumps(text)}" for name, text in fields.items() if text]
    path.write_text("\n".join([*lines, f"client_verify: {str(verify).lower()}"]))
    return path


def _name(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def _pem(certificate: x509.Certificate) -> str:
    return certificate.public_bytes(serialization.Encoding.PEM).decode()


def _signed(
    subject: x509.Name,
    issuer: x509.Name,
    key: ec.EllipticCurvePrivateKey,
    signer: ec.EllipticCurvePrivateKey,
    authority: bool,
) -> x509.Certificate:
    now = datetime.now(timezone.utc)
    here = [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=authority, path_length=None), critical=True)
        .add_extension(x509.SubjectAlternativeName(here), critical=False)
        .sign(signer, hashes.SHA256())
    )
