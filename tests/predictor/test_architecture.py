"""Who may import whom: the rules that keep the processes and distributions apart."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import chat_rendering
import http_edge
import kserve_llamacpp
import openai_protocol

_PREDICTOR = Path(kserve_llamacpp.__file__).parent
_PROTOCOL = Path(openai_protocol.__file__).parent
_EDGE = Path(http_edge.__file__).parent
_RENDERING = Path(chat_rendering.__file__).parent
_PROXY = _PROTOCOL.parents[1] / "proxy" / "openai_proxy"
# They compute over their arguments: no clock, no chance, no I/O of their own.
_PURE = (
    "engine/cache/costs.py",
    "engine/cache/host_tier.py",
    "engine/cache/memory.py",
    "engine/cache/node.py",
    "engine/cache/owners.py",
    "engine/cache/radix.py",
    "engine/cache/shared_prompts.py",
    "engine/cache/snapshots.py",
    "engine/engine.py",
    "engine/preparations.py",
    "engine/prompt_reader.py",
    "engine/reading.py",
    "engine/sampling/dry.py",
    "engine/sampling/penalties.py",
    "engine/sampling/seed.py",
    "engine/sampling/typical.py",
    "engine/schedule/fair_queue.py",
    "engine/schedule/scheduler.py",
    "engine/schedule/step_budget.py",
    "engine/self_test.py",
    "engine/sequence.py",
    "engine/text/detokenizer.py",
    "engine/text/special_tokens.py",
    "engine/text/text_bounds.py",
    "engine/text/text_queue.py",
    "engine_client/admission.py",
    "engine_client/service_rate.py",
    "engine_client/watchdog.py",
    "wire/frames.py",
)
_IMPURE = {"asyncio", "os", "random", "secrets", "socket", "subprocess", "threading", "time"}


def _imports(file: Path) -> Iterator[str]:
    """Yield the full name of every module that a file imports, wherever it does."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"a relative import in {file}"
            yield node.module or ""


def _importers(package: Path, name: str) -> set[str]:
    """Return the files of a package that import a module or one below it."""
    return {
        file.relative_to(package).as_posix()
        for file in package.rglob("*.py")
        if any(imported.split(".")[0] == name for imported in _imports(file))
    }


def test_only_the_backend_imports_llama_cpp() -> None:
    """llama.cpp is loaded by one module of the backend, in the engine's process."""
    assert _importers(_PREDICTOR, "llama_cpp") == {"engine/llama/library.py"}
    assert _importers(_PROTOCOL, "llama_cpp") == set()
    assert _importers(_PROXY, "llama_cpp") == set()


# The server's side of an engine and the engine's process meet in what both exchange.
_SERVER_SIDE = ("engine_client", "api", "chat", "served_model.py", "server.py", "model.py")


def _own_imports(part: str) -> set[str]:
    """Return which of the predictor's parts a part of it imports, itself left out."""
    place = _PREDICTOR / part
    files = [place] if place.is_file() else list(place.rglob("*.py"))
    assert files, f"nothing in {place}"
    names = {name for file in files for name in _imports(file)}
    own = {name.split(".")[1] for name in names if name.startswith("kserve_llamacpp.")}
    return own - {part.removesuffix(".py")}


@pytest.mark.parametrize("part", _SERVER_SIDE)
def test_the_server_does_not_import_the_engine(part: str) -> None:
    """The engine is another process: the server knows its frames and options, not its code."""
    assert "engine" not in _own_imports(part)


def test_the_engine_imports_no_server() -> None:
    """The engine's process has the wire, and the form of log lines, in common with the server."""
    assert _own_imports("engine") <= {"wire", "logging"}


def test_the_client_of_an_engine_knows_the_wire_alone() -> None:
    """What asks an engine knows nothing of HTTP, nor of what is behind the wire."""
    assert _own_imports("engine_client") <= {"wire", "errors"}


def test_the_wire_imports_neither_side() -> None:
    """Frames and options are what both sides have; they need nothing of either."""
    assert _own_imports("wire") == set()


def test_few_modules_import_kserve() -> None:
    """KServe's SDK is known to four modules, so that it can change without the others."""
    assert _importers(_PREDICTOR, "kserve") == {
        "server.py",
        "model.py",
        "api/errors.py",
        "api/inference_service.py",
    }
    assert _importers(_PROTOCOL, "kserve") == set()
    assert _importers(_PROXY, "kserve") == set()


def test_only_metrics_knows_prometheus() -> None:
    """The core tells observers what happens; one module turns it into metrics."""
    assert _importers(_PREDICTOR, "prometheus_client") == {"metrics.py"}


@pytest.mark.parametrize(
    ("package", "other"),
    [
        (_PROTOCOL, "kserve_llamacpp"),
        (_PROTOCOL, "openai_proxy"),
        (_PROTOCOL, "http_edge"),
        (_PROTOCOL, "chat_rendering"),
        (_RENDERING, "kserve_llamacpp"),
        (_RENDERING, "openai_proxy"),
        (_EDGE, "kserve_llamacpp"),
        (_EDGE, "openai_proxy"),
        (_EDGE, "kserve"),
        (_EDGE, "fastapi"),
        (_PREDICTOR, "openai_proxy"),
        (_PROXY, "kserve_llamacpp"),
    ],
)
def test_distributions_depend_downwards_alone(package: Path, other: str) -> None:
    """The protocol depends on nothing of ours, the edge on it, the servers not on each other."""
    assert list(package.rglob("*.py")), f"nothing in {package}"
    assert _importers(package, other) == set()


@pytest.mark.parametrize("file", ["bytes_in_flight.py", "deadlines.py"])
def test_what_counts_bytes_and_times_is_pure(file: str) -> None:
    """Budgets and deadlines take times and counts as arguments."""
    assert {name.split(".")[0] for name in _imports(_EDGE / file)} & _IMPURE == set()


@pytest.mark.parametrize("file", _PURE)
def test_the_engines_core_is_pure(file: str) -> None:
    """Scheduler, engine and what they are made of know neither clock nor chance nor I/O."""
    roots = {name.split(".")[0] for name in _imports(_PREDICTOR / file)}

    assert roots & _IMPURE == set()


def test_the_server_loads_no_llama_cpp() -> None:
    """A server process with everything imported has not loaded llama.cpp, nor the backend."""
    program = (
        "import sys, kserve_llamacpp.server\n"
        "loaded = {'llama_cpp', 'kserve_llamacpp.engine.llama', 'openai_proxy'}\n"
        "print(sorted(loaded & set(sys.modules)))"
    )
    path = os.pathsep.join(place for place in sys.path if place)

    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )

    assert done.stdout.strip() == "[]"


def test_a_renderers_process_is_small() -> None:
    """It imports Jinja, and neither pydantic nor anything of a server."""
    program = (
        "import sys, chat_rendering.child\n"
        "heavy = {'pydantic', 'pydantic_core', 'asyncio', 'structlog', 'uvicorn', 'fastapi'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True
    )

    assert done.stdout.strip() == "[]"
