"""What is told of the processor and the compilers."""

from pathlib import Path

import pytest

from bootstrap.errors import BootstrapError
from bootstrap.machine import compilers, cpu

CPUINFO = """\
processor\t: {number}
vendor_id\t: GenuineIntel
model name\t: Some CPU
cpu MHz\t\t: {clock}
flags\t\t: {flags}

"""


def cpuinfo(*, clock: str = "2300.1", flags: str = "fpu avx2", processors: int = 2) -> str:
    return "".join(
        CPUINFO.format(number=number, clock=clock, flags=flags) for number in range(processors)
    )


def program(directory: Path, name: str, script: str) -> None:
    directory.mkdir(exist_ok=True)
    (directory / name).write_text(f"#!/bin/sh\n{script}\n", encoding="utf-8")
    (directory / name).chmod(0o755)


def test_flags_count() -> None:
    """A processor with another ability is another processor."""
    assert cpu(cpuinfo(flags="fpu avx2")) != cpu(cpuinfo(flags="fpu avx2 avx512f"))


@pytest.mark.parametrize(
    "same",
    [cpuinfo(clock="3000.0"), cpuinfo(flags="avx2 fpu"), cpuinfo(processors=8)],
    ids=["clock", "order of flags", "number of processors"],
)
def test_what_does_not_count(same: str) -> None:
    """Clock, order and number do not make another processor."""
    assert cpu(cpuinfo()) == cpu(same)


def test_arm_features_count() -> None:
    """On ARM the abilities are called Features."""
    assert cpu("CPU part\t: 0xd0c\nFeatures\t: fp asimd\n") == [
        "CPU part: 0xd0c",
        "Features: asimd fp",
    ]


def test_first_compilers_that_run_are_taken(tmp_path: Path) -> None:
    """A compiler that is there but does not run is passed over."""
    program(tmp_path, "cc", "exit 1")
    program(tmp_path, "gcc", "echo gcc 12; echo licence")
    program(tmp_path, "c++", "echo c++ 12")
    found = compilers({"PATH": str(tmp_path)})
    assert [(found[name].command, found[name].version) for name in ("CC", "CXX")] == [
        ("gcc", "gcc 12"),
        ("c++", "c++ 12"),
    ]


def test_chosen_compiler_may_have_options(tmp_path: Path) -> None:
    """CC can be a command with words after it, such as `ccache gcc`."""
    program(tmp_path, "ccache", 'echo "$1 by ccache"')
    program(tmp_path, "c++", "echo c++ 12")
    found = compilers({"PATH": str(tmp_path), "CC": "ccache gcc"})
    assert found["CC"].version == "gcc by ccache"


def test_missing_compiler_says_what_to_install(tmp_path: Path) -> None:
    """Without a C++ compiler the message names the package."""
    program(tmp_path, "cc", "echo cc 12")
    with pytest.raises(BootstrapError, match=r"C\+\+ compiler.* build-essential"):
        compilers({"PATH": str(tmp_path)})


def test_wrong_choice_is_named(tmp_path: Path) -> None:
    """A CC that does not run is told apart from none at all, and not replaced in silence."""
    program(tmp_path, "gcc", "echo gcc 12")
    with pytest.raises(BootstrapError, match="CC=missing-cc does not run"):
        compilers({"PATH": str(tmp_path), "CC": "missing-cc"})
