"""The pip that is kept in the repository, and the settings that reach it."""

import hashlib
import subprocess
import sys
from pathlib import Path

import pytest

from bootstrap import pip
from bootstrap.errors import CommandFailed

PUBLISHED_SHA256 = "f3b60b20ffaadd4415ed7957212a38ac63fa4c5fa375bd0f4a797777940fad13"


def test_pip_is_the_published_one() -> None:
    """The wheel is byte for byte what pip's project publishes."""
    assert hashlib.sha256(pip.WHEEL.read_bytes()).hexdigest() == PUBLISHED_SHA256


def test_pip_runs_from_its_wheel() -> None:
    """No installed pip is needed, only an interpreter without site-packages."""
    program, *arguments = pip.command(Path(sys.executable), "--version")
    answer = subprocess.run(
        [program, "-I", "-S", *arguments], capture_output=True, text=True, check=True
    )
    assert answer.stdout.startswith("pip 26.3 from ")


@pytest.mark.parametrize(
    "name", ["PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL", "PIP_CERT", "PIP_CONFIG_FILE", "PIP_PROXY"]
)
def test_ways_to_the_index_are_kept(name: str) -> None:
    """Where packages come from is the user's choice."""
    assert pip.environment({name: "x"})[name] == "x"


@pytest.mark.parametrize(
    "name", ["PIP_TARGET", "PIP_PREFIX", "PIP_CONSTRAINT", "PIP_NO_BINARY", "PIP_PYTHON"]
)
def test_other_settings_are_dropped(name: str) -> None:
    """Nothing else may change what is installed, or where to."""
    assert name not in pip.environment({name: "x"})


def test_a_configuration_file_cannot_break_the_installation() -> None:
    """Settings that a pip.conf may hold are overruled: PIP_USER, PIP_REQUIRE_VIRTUALENV."""
    settings = pip.environment({"PIP_USER": "1", "PIP_REQUIRE_VIRTUALENV": "1"})
    assert (settings["PIP_USER"], settings["PIP_REQUIRE_VIRTUALENV"]) == ("0", "0")


@pytest.mark.parametrize(
    ("line", "advice"),
    [
        ("ERROR: THESE PACKAGES DO NOT MATCH THE HASHES FROM THE REQUIREMENTS FILE", "pins"),
        ("OSError: [Errno 28] No space left on device", "disk is full"),
        ("Temporary failure in name resolution", "PIP_INDEX_URL"),
        ("ERROR: No matching distribution found for numpy==2", "package index"),
        ("something unheard of", "the log says"),
    ],
)
def test_failures_say_what_to_mend(line: str, advice: str) -> None:
    """The message has the end of the log, the log's place, and advice from further up in it."""
    output = [line, *map(str, range(100))]
    failure = CommandFailed("installing", 1, output, Path("/logs/a.log"))
    message = str(pip.explain(failure, pip.ADVICE))
    assert "\n98\n99\n" in message
    assert len(message.splitlines()) < 60
    assert "log: /logs/a.log" in message
    assert advice in message.splitlines()[-1]
