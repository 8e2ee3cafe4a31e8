"""When a wheel may be reused, and what is asked of the build."""

from dataclasses import replace
from pathlib import Path

import pytest

from bootstrap import machine, pip, wheel
from bootstrap.cache import Cache
from bootstrap.errors import BootstrapError, CommandFailed
from bootstrap.machine import Compiler
from bootstrap.pins import Pin
from bootstrap.wheel import WheelKey, requirement_line, this_key

KEY = WheelKey(
    version="0.3.36",
    source=("sha256:00",),
    options=("a=b",),
    variables={},
    architecture="x86_64",
    libc="glibc 2.36",
    cpu=("flags: avx2",),
    compilers={"CC": "cc 12", "CXX": "c++ 12"},
)
COMPILERS = {"CC": Compiler("cc", "cc 12"), "CXX": Compiler("c++", "c++ 12")}


@pytest.mark.parametrize(
    "other",
    [
        replace(KEY, version="0.3.37"),
        replace(KEY, source=("sha256:01",)),
        replace(KEY, options=("a=c",)),
        replace(KEY, variables={"CMAKE_ARGS": "-DGGML_CUDA=on"}),
        replace(KEY, architecture="aarch64"),
        replace(KEY, libc="glibc 2.41"),
        replace(KEY, cpu=("flags: avx2 avx512f",)),
        replace(KEY, compilers={"CC": "cc 12", "CXX": "c++ 13"}),
    ],
)
def test_each_part_changes_the_key(other: WheelKey) -> None:
    """No wheel is reused where anything that it was built from or for has changed."""
    assert other.digest != KEY.digest


def test_key_is_the_same_in_another_process() -> None:
    """The digest depends on the values alone, so that a later run finds the wheel."""
    assert replace(KEY).digest == "4082a4386e263952"


@pytest.mark.parametrize(
    "name", ["CMAKE_ARGS", "CFLAGS", "CXXFLAGS", "LDFLAGS", "SKBUILD_CMAKE_DEFINE"]
)
def test_build_variables_count(name: str) -> None:
    """The variables that CMake, the compilers and the build tool read belong to the key."""
    assert this_key({name: "-x"}, COMPILERS) != this_key({}, COMPILERS)


@pytest.mark.parametrize("name", ["CMAKE_BUILD_PARALLEL_LEVEL", "PATH", "HOME", "PWD"])
def test_other_variables_do_not_count(name: str) -> None:
    """How fast and where from it is built changes nothing, and neither does an empty setting."""
    assert this_key({name: "1", "CMAKE_ARGS": ""}, COMPILERS) == this_key({}, COMPILERS)


def test_cuda_compiler_counts_for_cuda_builds(tmp_path: Path) -> None:
    """A CUDA build depends on nvcc, other builds do not."""
    nvcc = tmp_path / "nvcc"
    nvcc.write_text("#!/bin/sh\necho nvcc 12.9\n", encoding="utf-8")
    nvcc.chmod(0o755)
    environ = {"CUDACXX": str(nvcc)}
    assert this_key(environ, COMPILERS) == this_key({}, COMPILERS)
    key = this_key({**environ, "CMAKE_ARGS": "-DGGML_CUDA=on"}, COMPILERS)
    assert key.compilers["CUDACXX"] == "nvcc 12.9"


def test_this_machine_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """The processor, the C library and the compilers found here are in the key."""
    before = this_key({}, COMPILERS)
    assert this_key({}, {**COMPILERS, "CC": Compiler("cc", "cc 13")}) != before
    monkeypatch.setattr(machine, "this_cpu", lambda: ["flags: other"])
    other_cpu = this_key({}, COMPILERS)
    monkeypatch.setattr(machine, "libc", lambda: "glibc 9")
    assert len({key.digest for key in (before, other_cpu, this_key({}, COMPILERS))}) == 3


def test_pip_is_given_the_options_with_the_pin() -> None:
    """The build's options stand in the requirement's own line: pip ignores them elsewhere."""
    line = requirement_line(Pin("llama-cpp-python", "0.3.36", ("sha256:00",)))
    assert line == (
        "llama-cpp-python==0.3.36 --hash=sha256:00"
        ' --config-settings="cmake.define.LLAVA_BUILD=OFF"'
        ' --config-settings="build.targets=llama;llama-common"'
    )


def test_cached_wheel_is_reused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A wheel under the right key is taken without a build."""
    monkeypatch.setattr(machine, "compilers", lambda environ: COMPILERS)
    monkeypatch.setattr(wheel, "_build", lambda *_: pytest.fail("built again"))
    directory = tmp_path / "wheels" / this_key({}, COMPILERS).name
    directory.mkdir(parents=True)
    kept = directory / "llama_cpp_python-0.3.36-py3-none-linux_x86_64.whl"
    kept.touch()
    assert wheel.ensure(Cache(tmp_path), {}) == kept


def test_own_wheel_needs_no_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """LLAMA_CPP_WHEEL is taken as it is."""
    monkeypatch.setattr(machine, "compilers", lambda environ: pytest.fail("looked for compilers"))
    own = tmp_path / "llama_cpp_python-9-py3-none-any.whl"
    own.touch()
    assert wheel.ensure(Cache(tmp_path), {"LLAMA_CPP_WHEEL": str(own)}) == own


@pytest.mark.parametrize("name", ["missing.whl", "not-a-wheel.zip", ""])
def test_wrong_own_wheel_is_refused(tmp_path: Path, name: str) -> None:
    """A LLAMA_CPP_WHEEL that is no wheel file is refused by name instead of building another."""
    (tmp_path / "not-a-wheel.zip").touch()
    with pytest.raises(BootstrapError, match="LLAMA_CPP_WHEEL="):
        wheel.ensure(Cache(tmp_path), {"LLAMA_CPP_WHEEL": str(tmp_path / name)})


@pytest.mark.parametrize(
    ("line", "advice"),
    [
        ("c++: fatal error: Killed signal terminated program cc1plus", "PARALLEL_LEVEL=1"),
        ("fatal error: error writing to /x.s: No space left on device", "disk is full"),
        ("CMake Error: CUDA Toolkit not found", "nvcc"),
        ("ggml.c:1:2: error: expected identifier", "newer compiler"),
    ],
)
def test_failed_build_says_what_to_mend(line: str, advice: str) -> None:
    """The likeliest reasons are told apart, though all end in an error of the compiler's."""
    failure = CommandFailed("building", 1, [line, "ninja: error: FAILED: x.o"], Path("a.log"))
    assert advice in str(pip.explain(failure, wheel.ADVICE)).splitlines()[-1]
