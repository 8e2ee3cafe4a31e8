"""The pinned requirements in requirements/*.txt."""

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path

from bootstrap.errors import BootstrapError

DIRECTORY = Path(__file__).resolve().parent.parent / "requirements"
_PIN = re.compile(r"([A-Za-z0-9][\w.-]*)(?:\[[^]]*\])?==([^\s;\\]+)")
_HASH = re.compile(r"--hash=(\w+:[0-9a-f]+)")


@dataclass(frozen=True)
class Pin:
    """One distribution at one version, and the hashes that its files may have."""

    name: str
    version: str
    hashes: tuple[str, ...]


def path(name: str) -> Path:
    """The file that holds a lock."""
    return DIRECTORY / f"{name}.txt"


def digest(name: str) -> str:
    """The SHA-256 of a lock, which changes with any pin in it."""
    try:
        return hashlib.sha256(path(name).read_bytes()).hexdigest()
    except FileNotFoundError as error:
        raise BootstrapError(f"{path(name)} is missing; restore it, or run `make lock`") from error


def read(name: str) -> list[Pin]:
    """The pins of a lock in the order of the file."""
    return parse(path(name).read_text(encoding="utf-8"))


def parse(text: str) -> list[Pin]:
    """The pins in the text of a lock; anything but a pin, an option or a comment is refused."""
    logical_lines = text.replace("\\\n", " ").splitlines()
    pins: list[Pin] = []
    for line in logical_lines:
        requirement = line.split(" #", 1)[0].strip()
        if not requirement or requirement.startswith(("#", "--")):
            continue
        match = _PIN.match(requirement)
        if match is None:
            raise BootstrapError(f"not a pinned requirement: {requirement!r}; run `make lock`")
        pins.append(Pin(match[1], match[2], tuple(_HASH.findall(requirement))))
    return pins


def only(name: str) -> Pin:
    """The pin of a lock that holds no other."""
    pins = read(name)
    if len(pins) != 1:
        raise BootstrapError(f"{path(name)} must pin one distribution, not {len(pins)}")
    return pins[0]
