"""The files of a certificate and its key: what is wrong with them is told before the start."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from kserve_llamacpp.certificate import certificate_files
from kserve_llamacpp.errors import ConfigurationError
from tests.proxy.certificates import Authority


@pytest.mark.parametrize("kind", ["ec", "rsa"])
def test_pair(tmp_path: Path, kind: str) -> None:
    """A certificate and its key are taken; none at all is no TLS."""
    cert, key = Authority().issue(kind=kind).write(tmp_path)
    files = certificate_files(str(cert), str(key))

    assert files is not None
    assert files.read() == (key.read_bytes(), cert.read_bytes())
    assert certificate_files(None, None) is None


@pytest.mark.parametrize(
    ("certfile", "keyfile", "words"),
    [
        ("a.crt", None, "--ssl_certfile needs --ssl_keyfile"),
        (None, "a.key", "--ssl_keyfile needs --ssl_certfile"),
        ("none.crt", "a.key", "--ssl_certfile: cannot read"),
        ("a.crt", "none.key", "--ssl_keyfile: cannot read"),
        ("a.crt", "b.key", "are no certificate and its key without a passphrase"),
        ("a.key", "a.crt", "are no certificate and its key without a passphrase"),
        ("a.crt", "empty", "are no certificate and its key without a passphrase"),
        ("c.crt", "c.key", "are no certificate and its key without a passphrase"),
    ],
)
def test_no_pair(tmp_path: Path, certfile: str | None, keyfile: str | None, words: str) -> None:
    """What is no pair, cannot be read, or wants a passphrase is refused; the text names a flag."""
    authority = Authority()
    authority.issue().write(tmp_path, "a")
    authority.issue().write(tmp_path, "b")
    authority.issue(passphrase=b"secret").write(tmp_path, "c")
    (tmp_path / "empty").touch()
    named = [name and str(tmp_path / name) for name in (certfile, keyfile)]

    with pytest.raises(ConfigurationError, match=re.escape(words)):
        certificate_files(*named)
