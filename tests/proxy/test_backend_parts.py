"""The parts of supervised backends: verdicts, ports, looks, and settings."""

from __future__ import annotations

import asyncio
import json
import os
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest

from openai_proxy.backends import looks, ports
from openai_proxy.backends.base import (
    REFUSALS_TO_CLOSED,
    BackendState,
    Checks,
    Life,
    Supervisor,
    SupervisorOptions,
)
from openai_proxy.backends.command import Command
from openai_proxy.backends.kind import Backend, BackendError, ModelServer
from openai_proxy.backends.launch import make, options, secrets
from openai_proxy.backends.llama_server import LlamaServer
from openai_proxy.backends.llamacpp import LlamaCpp
from openai_proxy.backends.sglang import SGLang
from openai_proxy.backends.shimmy import Shimmy
from openai_proxy.backends.vllm import VLLM
from openai_proxy.config import ConfigError, load
from openai_proxy.dialects.base import CHAT, COMPLETIONS
from openai_proxy.flags import parse
from tests.proxy.harness import until
from tests.proxy.test_backend_output import collected

BACKENDS: dict[str, Backend] = {
    "llamacpp": LlamaCpp("python", "m", "m.gguf", 30),
    "sglang": SGLang("python", "m", "m"),
    "vllm": VLLM("vllm", "m", "m"),
    "llama-server": LlamaServer("llama-server", "m", "m.gguf"),
    "shimmy": Shimmy("shimmy", "m.gguf"),
    "command": Command(("run",)),
}


@pytest.mark.parametrize(
    ("kind", "exit_code", "said", "verdict"),
    [
        ("llamacpp", 4, ["startup", "no such file"], 4),
        ("llamacpp", 3, ["the port is taken"], 3),
        ("llamacpp", 9, ["Killed"], None),
        ("llamacpp", 1, ["/usr/bin/python: No module named kserve_llamacpp"], 2),
        ("sglang", 2, ["usage: x", "x: error: unrecognized arguments: --y"], 2),
        ("sglang", 1, ["(ModuleNotFoundError: No module named 'sglang')"], 2),
        ("sglang", 1, ["ERROR:    [Errno 98] error while attempting to bind on address"], 3),
        ("sglang", 137, ["OSError: x is not a local folder and is not a valid model id"], None),
        (
            "sglang",
            137,
            ["OSError: x is not a local folder and is not a valid model identifier", "Killed"],
            4,
        ),
        ("vllm", 1, ["OSError: [Errno 98] Address already in use"], 3),
        ("vllm", 1, ["torch.OutOfMemoryError: CUDA out of memory."], None),
        ("vllm", 3, ["uvicorn could not start"], None),
        ("llama-server", 1, ["error: invalid argument: --y"], 2),
        ("llama-server", 1, ["srv start: couldn't bind HTTP server socket, port: 1", "bye"], 3),
        ("llama-server", 1, ["srv load_model: failed to load model, 'x'", "bye"], 4),
        ("llama-server", 2, ["GGML_ASSERT"], None),
        ("shimmy", 2, ["error: unexpected argument '--y' found", "try '--help'"], 2),
        ("shimmy", 1, ["Error: Address already in use (os error 98)"], 3),
        ("command", 2, ["never mind"], None),
        ("command", 1, ["Error: listen EADDRINUSE: address already in use 127.0.0.1:1"], 3),
        ("command", 127, ["cannot run x: Permission denied"], 2),
        ("command", 0, ["address already in use"], None),
        ("command", 5, [], None),
        ("vllm", 2, [], 2),
    ],
)
def test_verdicts(kind: str, exit_code: int, said: list[str], verdict: int | None) -> None:
    """By its exit code and its words a program's end is hopeless, a lost port, or worth a try."""
    found = BACKENDS[kind].judge(exit_code, said)
    assert (None if found is None else found.exit_code) == verdict


def test_a_verdict_quotes_the_line_that_tells() -> None:
    """What follows the reason does not hide it."""
    said = ["error: unexpected argument '--y' found", "Usage: x", "For more, try '--help'."]
    found = BACKENDS["shimmy"].judge(2, said)
    assert found is not None
    assert found.message == "error: unexpected argument '--y' found"
    found = BACKENDS["llama-server"].judge(1, ["failed to load model, 'x'", "cleaning up"])
    assert found is not None
    assert found.message == "failed to load model, 'x'; see --model-path"


def test_command_placeholders() -> None:
    """They are filled inside of words; a value with spaces stays one word, other braces stay."""
    words = ("run", "--at={host}:{port}", "{model_path}", '{"a": {model_name}}')
    command = Command(words, "a name", "/my models/m.gguf", ("--more", "{port}"))
    assert command.command("h", 1) == [
        *("run", "--at=h:1", "/my models/m.gguf", '{"a": a name}', "--more", "{port}")
    ]


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"backend": "vllm", "model_path": "Qwen/Qwen2.5-0.5B"}, "Qwen/Qwen2.5-0.5B"),
        ({"backend": "vllm", "model_path": "/models/Qwen2.5"}, "Qwen2.5"),
        ({"backend": "sglang", "model_path": "org/m", "model_name": "mine"}, "mine"),
        ({"backend": "llama-server", "model_path": "models/m.gguf"}, "m"),
        ({"backend": "shimmy", "model_path": "m.gguf"}, None),
        ({"backend": "command", "backend_command": "x {port}", "model_path": "m.gguf"}, None),
        (
            {
                "backend": "command",
                "backend_command": "x {port} {model_name}",
                "model_path": "m.gguf",
            },
            "m",
        ),
    ],
)
def test_the_name_that_a_backend_is_told(settings: dict[str, Any], expected: str | None) -> None:
    """It is told our name where it takes one; where it does not, it is asked for its own."""
    assert make(load(settings)).model == expected


COMMAND = {"backend": "command"}


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (COMMAND, "--backend-command"),
        ({**COMMAND, "backend_command": "run 'it"}, "quotation"),
        ({**COMMAND, "backend_command": "run"}, "--backend-port"),
        ({**COMMAND, "backend_command": "run {prot}"}, "{prot}"),
        ({**COMMAND, "backend_command": "run {port} {model_path}"}, "--model-path"),
        ({**COMMAND, "backend_command": "run {port} {model_name}"}, "--model-name"),
        ({"backend": "vllm"}, "--model-path"),
        ({"backend": "shimmy"}, "--model-path"),
        ({**COMMAND, "backend_command": "run {port}", "backend_env": "A=b"}, "--backend-env"),
        ({**COMMAND, "backend_command": "run {port}", "backend_env": "[1]"}, "--backend-env"),
        ({**COMMAND, "backend_command": "run {port}", "backend_env": {"A": []}}, "--backend-env"),
        ({**COMMAND, "backend_command": "run {port}", "backend_env": {"A=": ""}}, "--backend-env"),
        (
            {**COMMAND, "backend_command": "run {port}", "backend_health_path": "health"},
            "/health",
        ),
        (
            {**COMMAND, "backend_command": "run {port}", "backend_health_path": "/a b"},
            "--backend-health-path",
        ),
    ],
)
def test_bad_settings(flags: dict[str, Any], says: str) -> None:
    """What a backend cannot be started with is refused by one line that says how to mend it."""
    with pytest.raises(ConfigError) as raised:
        load(flags)
    assert says in str(raised.value)
    assert "\n" not in str(raised.value)


def test_secrets_of_backends_are_not_shown() -> None:
    """Neither an error nor repr shows the command, the arguments or the variables."""
    flags = ["--backend", "command", "--backend-env", '{"TOKEN": "hunter2"']
    with pytest.raises(ConfigError) as raised:
        load(parse(flags))
    assert "hunter2" not in str(raised.value)
    settings = load(
        parse([*flags[:2], "--backend-env", '{"T": "hunter2"}', "--backend-command", "x {port} s3"])
    )
    for shown in (repr(settings), repr(options(settings))):
        assert "hunter2" not in shown
        assert "s3" not in shown


def test_what_is_hidden_in_logs() -> None:
    """Values named like keys are hidden, in variables and flags of both forms; short ones stay."""
    settings = load(
        {
            **COMMAND,
            "backend_command": "run {port} --api-key command-key",
            "backend_args": ("--hf-token=token-of-hf", "--secret", "short", "--n", "12345678"),
            "backend_env": {
                "HF_TOKEN": "token-of-env",
                "PASSWORD": "1234567",
                "HOME": "/home/me/x",
            },
        }
    )
    assert secrets(settings) == {"command-key", "token-of-hf", "token-of-env"}


def test_find_port() -> None:
    """A free port is found; a taken one, or an address that is not ours, is told with settings."""
    assert ports.find_port("127.0.0.1", 0) > 0
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(BackendError, match="--backend-port") as raised:
            ports.find_port("127.0.0.1", port)
        assert raised.value.exit_code == 3
        assert ports.listens(os.getpid(), port) is True
        assert ports.listens(1_000_000_000, port) is False
    assert ports.find_port("127.0.0.1", port) == port
    assert ports.listens(os.getpid(), port) is None
    with pytest.raises(BackendError, match="--backend-host") as raised:
        ports.find_port("192.0.2.1", 0)
    assert raised.value.exit_code == 2


@asynccontextmanager
async def answering(*parts: bytes) -> AsyncIterator[str]:
    """A server that answers each connection with these bytes; its URL."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.writelines(parts)
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"


@pytest.mark.parametrize(
    ("answer", "status"),
    [
        (b"HTTP/1.1 200 OK\r\n\r\nyes", 200),
        (b"HTTP/1.0 503 Service Unavailable\r\n\r\n", 503),
        (b"HTTP/1.1 204\r\n\r\n", 204),
        (b"SSH-2.0-OpenSSH\r\n", None),
        (b"HTTP/1.1 x\r\n", None),
        (b"x" * 100_000, None),
        (b"", None),
    ],
)
async def test_status_of(answer: bytes, status: int | None) -> None:
    """The status is read, whatever answers there."""
    async with answering(answer) as url:
        assert await looks.status_of(url, "/health") == status
        assert await looks.is_open(url)
    assert await looks.status_of(url, "/health") is None
    assert not await looks.is_open(url)


@pytest.mark.parametrize(
    ("path", "served", "expected"),
    [
        (COMPLETIONS, {CHAT, COMPLETIONS}, COMPLETIONS),
        (CHAT, {CHAT, COMPLETIONS}, CHAT),
        (COMPLETIONS, {CHAT}, CHAT),
        (CHAT, {COMPLETIONS}, COMPLETIONS),
    ],
)
def test_first_call(path: str, served: set[str], expected: str) -> None:
    """It asks what the backend prefers, or what its dialect has, for one token."""
    call = looks.first_call("m", path, frozenset(served))
    assert call.path == expected
    assert json.loads(call.body)["max_tokens"] == 1
    assert (call.model, call.upstream_model) == ("m", "m")


@dataclass(frozen=True, slots=True)
class Sleeper(ModelServer):
    """A backend that does not listen at all."""

    name: ClassVar[str] = "sleeper"
    program: ClassVar[str] = "sleep"
    model: ClassVar[str] = "m"
    health_path: ClassVar[None] = None

    def command(self, host: str, port: int) -> list[str]:
        """Return a command that does nothing."""
        return ["sleep", "1000"]


async def yes(_: str) -> bool:
    """All is well."""
    return True


async def alive(_: str, __: float) -> Life:
    """It answers looks."""
    return Life.ALIVE


async def warm(_: str) -> str | None:
    """It answers."""
    return "m"


def supervisor(
    is_open: Callable[[str], Awaitable[bool]],
    told: list[str | None],
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    find_port: Callable[[str, int], int] = ports.find_port,
) -> Supervisor:
    """The supervisor of a sleeper that seems to be loaded and to answer."""
    settings = SupervisorOptions(max_restarts=0, environment=dict(os.environ))
    checks = Checks(yes, warm, is_open, alive, lambda _: {})
    output, _ = collected()
    return Supervisor(
        Sleeper(), settings, checks, output, told.append, sleep=sleep, find_port=find_port
    )


async def test_another_program_on_its_port_is_not_taken_for_it() -> None:
    """Where somebody else answers on the chosen port, the backend is not ready."""
    async with answering(b"HTTP/1.1 200 OK\r\n\r\n") as url:
        told: list[str | None] = []
        port = int(url.rpartition(":")[2])
        supervised = supervisor(yes, told, find_port=lambda *_: port)
        running = asyncio.create_task(supervised.run())
        await asyncio.sleep(0.6)
        assert supervised.state is BackendState.STARTING
        assert told == []
        running.cancel()
        await supervised.stop(1)
        with suppress(asyncio.CancelledError):
            await running


async def test_a_port_is_closed_after_some_refusals_in_a_row() -> None:
    """One refusal may be chance; several end the process, and the router hears of it first."""
    looks_at_port = iter([True, False, False, True, *[False] * REFUSALS_TO_CLOSED])
    told: list[str | None] = []

    async def is_open(_: str) -> bool:
        return next(looks_at_port)

    supervised = supervisor(is_open, told, sleep=lambda _: asyncio.sleep(0))
    with pytest.raises(BackendError) as raised:
        await asyncio.wait_for(supervised.run(), 10)
    assert raised.value.exit_code == 1
    assert next(looks_at_port, None) is None
    assert told[1:] == [None]
    assert supervised.report()["last_exit_code"] == 143


async def test_ready_backend_reports_its_model() -> None:
    """The name under which it answered is told in /health."""
    told: list[str | None] = []
    supervised = supervisor(yes, told)
    running = asyncio.create_task(supervised.run())
    await until(lambda: supervised.is_ready)
    assert supervised.report()["model"] == "m"
    assert told == [supervised.url]
    running.cancel()
    await supervised.stop(1)
    with suppress(asyncio.CancelledError):
        await running
