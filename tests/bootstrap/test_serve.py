"""What `make serve` hands to the proxy, and the models that it refuses."""

from pathlib import Path

import pytest

from bootstrap.errors import BootstrapError
from bootstrap.serve import Request, command, given_model


def test_command_line() -> None:
    """The user's own arguments come last, so that they win over the defaults."""
    request = Request("", "127.0.0.1", "9000", ("--drain-delay-seconds", "1"))
    assert command(Path("/v/bin/python"), Path("/m/a b.gguf"), request) == [
        "/v/bin/python",
        "-m",
        "openai_proxy",
        "--backend",
        "llamacpp",
        "--model-path",
        "/m/a b.gguf",
        "--host",
        "127.0.0.1",
        "--port",
        "9000",
        "--drain-delay-seconds",
        "0",
        "--drain-delay-seconds",
        "1",
    ]


def test_gguf_file_is_taken(tmp_path: Path) -> None:
    """A file that begins as GGUF files do is taken."""
    file = tmp_path / "a.gguf"
    file.write_bytes(b"GGUF\x03\x00")
    assert given_model(str(file)) == file


def test_missing_file_is_refused() -> None:
    """A MODEL that is not there is refused by name."""
    with pytest.raises(BootstrapError, match=r"MODEL=missing\.gguf cannot be read \(No such file"):
        given_model("missing.gguf")


def test_other_file_is_refused(tmp_path: Path) -> None:
    """A file of another kind is refused before anything is built for it."""
    file = tmp_path / "a.safetensors"
    file.write_bytes(b"{}")
    with pytest.raises(BootstrapError, match="is not a GGUF file"):
        given_model(str(file))
