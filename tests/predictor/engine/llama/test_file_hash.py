"""Whether two files hold the same model: by what is in them, not by where they lie."""

from __future__ import annotations

from pathlib import Path

import pytest

from kserve_llamacpp.engine.llama.file_hash import file_hash

_SIZE = 24 << 20  # its end is behind what is read as a whole


def _file(path: Path, change: range | None = None, size: int = _SIZE) -> Path:
    data = bytearray(b"\0" * size)
    for at in change or ():
        data[at] = 1
    path.write_bytes(data)
    return path


def test_name_and_place_do_not_count(tmp_path: Path) -> None:
    """The same bytes elsewhere, under another name, are the same model."""
    (tmp_path / "folder").mkdir()

    assert file_hash(_file(tmp_path / "a")) == file_hash(_file(tmp_path / "folder" / "b"))


@pytest.mark.parametrize(
    "change",
    [
        range(5, 6),  # metadata
        range(16 << 20, _SIZE, 1000),  # weights, as training changes them
        range(_SIZE - 70_000, _SIZE),  # the last of them
    ],
)
def test_other_contents_are_another_model(tmp_path: Path, change: range) -> None:
    """A byte of the beginning counts, and so do weights wherever many of them differ."""
    assert file_hash(_file(tmp_path / "a")) != file_hash(_file(tmp_path / "b", change))


def test_another_size_is_another_model(tmp_path: Path) -> None:
    """A file that is longer by bytes which no sample sees is another one."""
    one = _file(tmp_path / "a")
    longer = _file(tmp_path / "b", size=_SIZE + 1)

    assert file_hash(one) != file_hash(longer)


@pytest.mark.parametrize("size", [0, 1, 70_000])
def test_small_files_have_a_hash(tmp_path: Path, size: int) -> None:
    """A file that is smaller than a sample is read as it is."""
    assert len(file_hash(_file(tmp_path / "a", size=size))) == 64


def test_every_part_of_a_model_in_several_files_counts(tmp_path: Path) -> None:
    """The first part stands for all: another second part is another model."""
    hashes = set()
    for name, change in (("a", None), ("b", None), ("c", range(100))):
        folder = tmp_path / name
        folder.mkdir()
        first = _file(folder / f"{name}-00001-of-00002.gguf", size=1000)
        _file(folder / f"{name}-00002-of-00002.gguf", change, size=1000)
        hashes.add(file_hash(first))

    assert len(hashes) == 2
