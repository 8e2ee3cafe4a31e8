"""The server's certificate and its key: checked before anything slow is done, read again later."""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from pathlib import Path

from kserve_llamacpp.errors import ConfigurationError


@dataclass(frozen=True)
class CertificateFiles:
    """The files of a certificate (with its chain) and its key, as PEM."""

    certfile: str
    keyfile: str

    def read(self) -> tuple[bytes, bytes]:
        """Return key and chain. Raises ConfigurationError that names the flag."""
        return _read("--ssl_keyfile", self.keyfile), _read("--ssl_certfile", self.certfile)

    def check(self) -> None:
        """Raise ConfigurationError unless they are a pair that needs no passphrase."""
        self.read()
        try:
            # The wrong passphrase, or an encrypted key would ask for it on the terminal.
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(self.certfile, self.keyfile, lambda: "-")
        except (ssl.SSLError, ValueError) as error:
            reason = getattr(error, "reason", None) or "no PEM"
            raise ConfigurationError(
                f"--ssl_certfile, --ssl_keyfile: {self.certfile} and {self.keyfile} are no "
                f"certificate and its key without a passphrase, as PEM ({reason}): name a pair, "
                "the server's own certificate first in its file"
            ) from None


def certificate_files(certfile: str | None, keyfile: str | None) -> CertificateFiles | None:
    """Return the files of a pair that was checked, None where neither is named.

    Raises ConfigurationError that names the flag: also for one without the other.
    """
    if not certfile and not keyfile:
        return None
    if not certfile:
        raise ConfigurationError("--ssl_keyfile needs --ssl_certfile: name both, or neither")
    if not keyfile:
        raise ConfigurationError("--ssl_certfile needs --ssl_keyfile: name both, or neither")
    files = CertificateFiles(certfile, keyfile)
    files.check()
    return files


def _read(flag: str, path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise ConfigurationError(f"{flag}: cannot read {path}: {error.strerror}") from None
