"""What a compiled library depends on: the processor, the C library and the compilers."""

import os
import platform
import shlex
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from bootstrap.errors import BootstrapError

_CPUINFO = Path("/proc/cpuinfo")
# Those of x86, then those of ARM; clock rates and the like change from run to run.
_CPU_FIELDS = frozenset(
    {
        "vendor_id",
        "cpu family",
        "model",
        "model name",
        "flags",
        "CPU implementer",
        "CPU architecture",
        "CPU variant",
        "CPU part",
        "Features",
    }
)
_ABILITIES = frozenset({"flags", "Features"})
# In the order in which CMake looks for them.
_CANDIDATES = {"CC": ("cc", "gcc", "clang"), "CXX": ("c++", "g++", "clang++")}
_LANGUAGES = {"CC": "C", "CXX": "C++"}


@dataclass(frozen=True)
class Compiler:
    """A compiler by the command that starts it and by what it says of its version."""

    command: str
    version: str


def cpu(cpuinfo: str) -> list[str]:
    """The processors' models and abilities in the text of /proc/cpuinfo, in a settled order."""
    facts: set[str] = set()
    for line in cpuinfo.splitlines():
        name, separator, value = line.partition(":")
        if separator and name.strip() in _CPU_FIELDS:
            facts.add(f"{name.strip()}: {_settled(name.strip(), value)}")
    return sorted(facts)


def _settled(name: str, value: str) -> str:
    # A newer kernel may list the same abilities in another order.
    words = value.split()
    return " ".join(sorted(words) if name in _ABILITIES else words)


def this_cpu() -> list[str]:
    """The processors of this machine."""
    try:
        return cpu(_CPUINFO.read_text(encoding="utf-8", errors="replace"))
    except OSError:
        return [platform.processor()]


def libc() -> str:
    """The name and the version of the C library."""
    return " ".join(platform.libc_ver()).strip() or "unknown"


def compilers(environ: Mapping[str, str]) -> dict[str, Compiler]:
    """The C and the C++ compiler, by the variables CC and CXX that choose them."""
    return {variable: _compiler(variable, environ) for variable in _CANDIDATES}


def cuda(environ: Mapping[str, str]) -> str | None:
    """What the CUDA compiler says of its version, where there is one."""
    command = environ.get("CUDACXX") or shutil.which("nvcc", path=environ.get("PATH"))
    return _version(command, environ) if command else None


def _compiler(variable: str, environ: Mapping[str, str]) -> Compiler:
    chosen = environ.get(variable)
    for command in [chosen] if chosen else _CANDIDATES[variable]:
        if version := _version(command, environ):
            return Compiler(command, version)
    wanted = f"{variable}={chosen} does not run" if chosen else "none was found"
    raise BootstrapError(
        f"llama.cpp needs a {_LANGUAGES[variable]} compiler, and {wanted}: install one "
        f"(Debian, Ubuntu: apt-get install build-essential), set {variable} to one that you have, "
        "or set LLAMA_CPP_WHEEL to a wheel that was built elsewhere"
    )


def _version(command: str, environ: Mapping[str, str]) -> str | None:
    program, *options = shlex.split(command)
    found = shutil.which(program, path=environ.get("PATH", os.defpath))
    if found is None:
        return None
    try:
        answer = subprocess.run(
            [found, *options, "--version"],
            capture_output=True,
            text=True,
            env=dict(environ) | {"LC_ALL": "C"},
            timeout=30,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    # The second line on is a licence, and for clang an installation directory.
    return answer.stdout.partition("\n")[0].strip() or None
