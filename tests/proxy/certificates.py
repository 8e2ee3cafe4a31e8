"""Certificates for tests: an authority, and what it signs."""

from __future__ import annotations

import datetime as dt
import ipaddress
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

Key = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey
LIFE = dt.timedelta(days=1)


@dataclass(frozen=True)
class Pair:
    """A certificate and its key, as PEM."""

    cert: bytes
    key: bytes
    serial: int

    def write(self, folder: Path, stem: str = "tls") -> tuple[Path, Path]:
        """Write both to a folder; return their paths."""
        cert, key = folder / f"{stem}.crt", folder / f"{stem}.key"
        cert.write_bytes(self.cert)
        key.write_bytes(self.key)
        return cert, key


class Authority:
    """Signs certificates for servers at 127.0.0.1 and localhost, and for clients."""

    def __init__(self, name: str = "test authority") -> None:
        self._key = new_key("ec")
        self._name = _name(name)
        extensions = [
            (x509.BasicConstraints(ca=True, path_length=0), True),
            (x509.SubjectKeyIdentifier.from_public_key(self._key.public_key()), False),
            (
                x509.KeyUsage(
                    digital_signature=True,
                    key_cert_sign=True,
                    crl_sign=True,
                    content_commitment=False,
                    key_encipherment=False,
                    data_encipherment=False,
                    key_agreement=False,
                    encipher_only=False,
                    decipher_only=False,
                ),
                True,
            ),
        ]
        self.cert = self._sign(self._name, self._key, extensions)
        self.pem = self.cert.public_bytes(serialization.Encoding.PEM)

    def write(self, folder: Path, name: str = "ca.crt") -> Path:
        """Write the authority's certificate to a folder; return its path."""
        path = folder / name
        path.write_bytes(self.pem)
        return path

    def issue(
        self,
        name: str = "server",
        kind: str = "ec",
        hosts: tuple[str, ...] = ("localhost",),
        passphrase: bytes | None = None,
    ) -> Pair:
        """Sign a certificate for these hosts and 127.0.0.1; `kind` of key: ec or rsa."""
        key = new_key(kind)
        alternatives: list[x509.GeneralName] = [x509.DNSName(host) for host in hosts]
        alternatives.append(x509.IPAddress(ipaddress.ip_address("127.0.0.1")))
        usages = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
        signer = x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key())
        cert = self._sign(
            _name(name),
            key,
            [
                (x509.SubjectAlternativeName(alternatives), False),
                (x509.ExtendedKeyUsage(usages), False),
                (x509.BasicConstraints(ca=False, path_length=None), True),
                (signer, False),
            ],
        )
        encryption: serialization.KeySerializationEncryption = serialization.NoEncryption()
        if passphrase is not None:
            encryption = serialization.BestAvailableEncryption(passphrase)
        pem = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption
        )
        return Pair(cert.public_bytes(serialization.Encoding.PEM), pem, serial=cert.serial_number)

    def _sign(
        self, subject: x509.Name, key: Key, extensions: list[tuple[x509.ExtensionType, bool]]
    ) -> x509.Certificate:
        now = dt.datetime.now(dt.UTC)
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - LIFE)
            .not_valid_after(now + LIFE)
        )
        for extension, is_critical in extensions:
            builder = builder.add_extension(extension, critical=is_critical)
        return builder.sign(self._key, hashes.SHA256())


def new_key(kind: str) -> Key:
    """A private key of this kind."""
    if kind == "rsa":
        return rsa.generate_private_key(public_exponent=65537, key_size=2048)
    return ec.generate_private_key(ec.SECP256R1())


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])
