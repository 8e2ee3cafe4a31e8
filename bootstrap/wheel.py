"""The llama-cpp-python wheel: built once for a version, a machine and a set of options."""

import hashlib
import json
import os
import platform
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from bootstrap import machine, pins, pip, tools
from bootstrap.cache import Cache
from bootstrap.errors import BootstrapError
from bootstrap.lock import exclusive
from bootstrap.progress import Progress, ninja_step

OVERRIDE = "LLAMA_CPP_WHEEL"
LOCK = "llama-cpp"
TOOLS = "llama-cpp-build"
# Neither the multimodal library nor llama.cpp's own programs are used: they would double the time.
OPTIONS = ("cmake.define.LLAVA_BUILD=OFF", "build.targets=llama;llama-common")
_PREFIXES = ("CMAKE_", "SKBUILD_")
_VARIABLES = frozenset({"CFLAGS", "CPPFLAGS", "CXXFLAGS", "CUDAFLAGS", "CUDAHOSTCXX", "LDFLAGS"})
# How fast it is built does not change what is built.
_IGNORED_VARIABLES = frozenset({"CMAKE_BUILD_PARALLEL_LEVEL"})
ADVICE: pip.Advice = (
    (
        r"Killed signal terminated program|internal compiler error: Killed|ninja: fatal:.*memory",
        "the memory did not suffice: set CMAKE_BUILD_PARALLEL_LEVEL=1 and try again",
    ),
    (
        r"CUDA Toolkit not found|Failed to find nvcc|No CMAKE_CUDA_COMPILER",
        "CMAKE_ARGS asks for CUDA: install the CUDA toolkit, and put nvcc on PATH or in CUDACXX",
    ),
    *pip.ADVICE,
    # Last, since the rest of what can go wrong also ends in an error of the compiler's.
    (
        r"CMake Error|error:|FAILED:",
        (
            "the source did not compile: try a newer compiler (CC, CXX), check CMAKE_ARGS, "
            "or set LLAMA_CPP_WHEEL to a wheel that was built elsewhere"
        ),
    ),
)


@dataclass(frozen=True)
class WheelKey:
    """All that decides what a build gives; two builds with equal keys may stand for each other."""

    version: str
    source: tuple[str, ...]
    options: tuple[str, ...]
    variables: dict[str, str]
    architecture: str
    libc: str
    cpu: tuple[str, ...]
    compilers: dict[str, str]

    @property
    def digest(self) -> str:
        """Return the key in 16 hexadecimal digits, for a folder's name."""
        text = json.dumps(asdict(self), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    @property
    def name(self) -> str:
        """The name of its directory in the cache."""
        return f"{self.version}-{self.digest}"


def ensure(cache: Cache, environ: Mapping[str, str]) -> Path:
    """The wheel for this machine: the user's own, the cached one, or one built now."""
    if override := environ.get(OVERRIDE):
        return _overriding(override)
    compilers = machine.compilers(environ)
    key = this_key(environ, compilers)
    if found := _cached(cache, key):
        return found
    progress = Progress(f"llama-cpp-python {key.version}")
    with exclusive(cache.lock(f"wheel-{key.name}"), progress):
        if found := _cached(cache, key):
            return found
        progress.say("building it for this machine (once; some minutes)")
        choices = {variable: compiler.command for variable, compiler in compilers.items()}
        _build(cache, key, {**environ, **choices}, progress)
    built = _cached(cache, key)
    if built is None:
        raise BootstrapError(f"the build left no wheel in {cache.wheels / key.name}")
    progress.finish(f"built: {built}")
    return built


def this_key(environ: Mapping[str, str], compilers: Mapping[str, machine.Compiler]) -> WheelKey:
    """The key of the wheel that would be built here and now."""
    pin = pins.only(LOCK)
    versions = {variable: compiler.version for variable, compiler in compilers.items()}
    if "CUDA" in environ.get("CMAKE_ARGS", ""):
        versions["CUDACXX"] = machine.cuda(environ) or "none"
    return WheelKey(
        version=pin.version,
        source=pin.hashes,
        options=OPTIONS,
        variables=_variables(environ),
        architecture=platform.machine(),
        libc=machine.libc(),
        cpu=tuple(machine.this_cpu()),
        compilers=versions,
    )


def _variables(environ: Mapping[str, str]) -> dict[str, str]:
    return {
        name: value
        for name, value in environ.items()
        if (name in _VARIABLES or name.startswith(_PREFIXES))
        and name not in _IGNORED_VARIABLES
        and value
    }


def _overriding(value: str) -> Path:
    wheel = Path(value).expanduser().absolute()
    if wheel.suffix != ".whl" or not wheel.is_file():
        raise BootstrapError(f"{OVERRIDE}={value} is not a wheel file: correct it, or unset it")
    return wheel


def _cached(cache: Cache, key: WheelKey) -> Path | None:
    return next((cache.wheels / key.name).glob("llama_cpp_python-*.whl"), None)


def _build(cache: Cache, key: WheelKey, environ: Mapping[str, str], progress: Progress) -> None:
    modules = tools.ensure(TOOLS, cache, environ, progress)
    cache.wheels.mkdir(parents=True, exist_ok=True)
    for leftover in cache.wheels.glob(f".{key.name}-*"):
        shutil.rmtree(leftover, ignore_errors=True)
    with tempfile.TemporaryDirectory(dir=cache.wheels, prefix=f".{key.name}-") as scratch:
        made, temporary = Path(scratch) / "made", Path(scratch) / "tmp"
        temporary.mkdir()
        requirement = Path(scratch) / "requirement.txt"
        requirement.write_text(requirement_line(pins.only(LOCK)) + "\n", encoding="utf-8")
        settings = {
            **environ,
            "PATH": f"{modules / 'bin'}{os.pathsep}{environ.get('PATH', os.defpath)}",
            # The build takes more room than a small /tmp has.
            "TMPDIR": os.fspath(temporary),
        }
        pip.run(
            "building llama-cpp-python",
            _arguments(requirement, made),
            python=tools.PYTHON,
            environ=settings,
            log=cache.log(f"llama-cpp-python-{key.name}"),
            modules=modules,
            on_line=lambda line: _show(line, progress),
            advice=ADVICE,
        )
        (made / "key.json").write_text(json.dumps(asdict(key), indent=2) + "\n", encoding="utf-8")
        # A directory that bears its name is whole: it gets the name last.
        made.rename(cache.wheels / key.name)


def requirement_line(pin: pins.Pin) -> str:
    """The pinned source with the build's options, which pip takes from a file only in this form."""
    hashes = [f"--hash={value}" for value in pin.hashes]
    options = [f'--config-settings="{option}"' for option in OPTIONS]
    return " ".join([f"{pin.name}=={pin.version}", *hashes, *options])


def _arguments(requirement: Path, made: Path) -> list[str | Path]:
    return [
        "wheel",
        "--verbose",
        "--no-deps",
        # The tools are pinned by hash beside this; what pip would fetch by itself is not.
        "--no-build-isolation",
        # pip's own cache of wheels knows neither the processor nor CMAKE_ARGS.
        "--no-cache-dir",
        "--no-binary",
        "llama-cpp-python",
        "--require-hashes",
        "--requirement",
        requirement,
        "--wheel-dir",
        made,
    ]


def _show(line: str, progress: Progress) -> None:
    if step := ninja_step(line):
        progress.update("compiling", *step)
