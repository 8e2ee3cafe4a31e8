"""Each kind of backend, by a stand-in that takes the real program's command line."""

from __future__ import annotations

import json
import socket
import sys
from pathlib import Path
from typing import Any

import pytest
from aiohttp import ClientSession

from tests.proxy.harness import CHAT, MESSAGES, until
from tests.proxy.processes import Process, alive, pids_in, process, run
from tests.proxy.programs import KINDS, Programs

# The model's file is Tiny_Model.gguf.
EXPECTED = {
    "sglang": "sglang: --model-path {model} --served-model-name Tiny_Model --host 127.0.0.1 "
    "--port {port} --api-key my-key",
    "vllm": "vllm: serve {model} --host 127.0.0.1 --port {port} --served-model-name Tiny_Model "
    "--max-model-len 512",
    "llama-server": "llama-server: -m {model} -a Tiny_Model --host 127.0.0.1 --port {port} -c 512",
    "shimmy": "shimmy: serve --bind 127.0.0.1:{port}",
    "command": "plain: --port {port} --name my model",
}
PASSED_ON = {
    "sglang": ("--", "--api-key", "my-key"),
    "vllm": ("--", "--max-model-len", "512"),
    "llama-server": ("--", "-c", "512"),
    "shimmy": (),
    "command": ("--", "--name", "my model"),
}
NAMES = {"shimmy": "tiny-model", "command": "my model"}


def events(text: str) -> list[dict[str, Any]]:
    """The JSON lines of a log."""
    return [json.loads(line) for line in text.splitlines() if line.startswith("{")]


def last_words(text: str) -> str:
    """What the proxy says of the backend when it gives up on it."""
    lines = [line for line in events(text) if line["level"] == "error" and "exit_code" in line]
    return str(lines[-1]["event"])


async def report_of(proxy: Process) -> dict[str, Any]:
    """What /health says of the backend."""
    async with ClientSession() as http, http.get(f"{proxy.url}/health") as response:
        report: dict[str, Any] = (await response.json())["backend"]
        return report


@pytest.mark.parametrize("kind", KINDS)
async def test_kind_is_started_serves_and_is_stopped(
    tmp_path: Path, programs: Programs, kind: str
) -> None:
    """It gets its command line, is warmed up, serves, is told of in /health, and ends in peace."""
    name = NAMES.get(kind, "Tiny_Model")
    flags = [*programs.flags(kind, f"pids={programs.pids}"), *PASSED_ON[kind]]
    ready = {"wait_for": "/health/ready", **programs.environment}
    async with process(tmp_path, *flags, **ready) as proxy:
        body = {"model": name, "messages": MESSAGES}
        async with ClientSession() as http, http.post(proxy.url + CHAT, json=body) as response:
            answer = await response.json()
            assert answer["choices"][0]["message"]["content"] == "Hello"
        report = await report_of(proxy)
        assert (report["status"], report["name"], report["model"]) == ("ready", kind, name)
        assert len(alive(*pids_in(programs.pids))) == 2
        assert await proxy.end() == 0
        assert alive(*pids_in(programs.pids)) == []
        lines = events(proxy.log.read_text())
    told = [line["event"] for line in lines if line.get("backend") == kind]
    port = report["url"].rpartition(":")[2]
    command = EXPECTED[kind].format(model=programs.model, port=port)
    assert f"[{kind}] {command}" in told
    warm_up = "/v1/chat/completions" if kind == "shimmy" else "/v1/completions"
    assert f"[{kind}] POST {warm_up} model={name}" in told
    assert told[-2:] == [f"[{kind}] stopping", f"[{kind}] stopped"]


@pytest.mark.parametrize("kind", KINDS)
async def test_it_serves_under_our_name(tmp_path: Path, programs: Programs, kind: str) -> None:
    """Whatever it calls its model, clients may call it as we do, or not at all; so it is listed."""
    flags = programs.flags(kind)  # a command that is told no name has one of its own
    ready = {"wait_for": "/health/ready", **programs.environment}
    async with process(tmp_path, *flags, **ready) as proxy, ClientSession() as http:
        for body in ({"model": "Tiny_Model"}, {}):
            if not body and kind not in ("shimmy", "command"):
                continue  # the stand-ins of the others want a name
            url = proxy.url + CHAT
            async with http.post(url, json={**body, "messages": MESSAGES}) as response:
                assert response.status == 200, await response.text()
        async with http.get(proxy.url + "/v1/models") as response:
            names = [model["id"] for model in (await response.json())["data"]]
        assert "Tiny_Model" in names
        assert NAMES.get(kind, "its-own") not in names
        assert await proxy.end() == 0


@pytest.mark.parametrize("kind", ["llama-server", "shimmy"])
async def test_a_folder_with_one_model(tmp_path: Path, programs: Programs, kind: str) -> None:
    """A folder stands for the only model in it, of which there may be several parts."""
    folder = tmp_path / "models" / "my-model"
    folder.mkdir(parents=True)
    for number in (1, 2):
        (folder / f"m-0000{number}-of-00002.gguf").touch()
    (folder / "README.md").touch()
    flags = programs.flags(kind, f"env={tmp_path}/env", model_path=str(folder))
    async with process(tmp_path, *flags, wait_for="/health/ready", **programs.environment) as proxy:
        first = str(folder / "m-00001-of-00002.gguf")
        if kind == "shimmy":
            given = json.loads((tmp_path / "env").read_text())
            assert given["SHIMMY_BASE_GGUF"] == first
        else:
            await proxy.logged(f"-m {first} -a my-model")
        assert await proxy.end() == 0


@pytest.mark.parametrize("kind", KINDS)
async def test_a_kind_that_loads_for_long_is_waited_for(
    tmp_path: Path, programs: Programs, kind: str
) -> None:
    """Closed ports and 503 while it loads are no failure; before it is loaded nobody is let in."""
    settings = {"backend_health_path": "/ready"} if kind == "command" else {}
    flags = programs.flags(kind, "delay=2", **settings)
    async with process(tmp_path, *flags, **programs.environment) as proxy:
        assert await proxy.status("/health/ready") == 503
        assert (await report_of(proxy))["status"] in ("starting", "stopped")
        await until(lambda: proxy.answers("/health/ready"), 20)
        report = await report_of(proxy)
        assert (report["status"], report["restarts"]) == ("ready", 0)
        seconds = next(
            line["seconds"]
            for line in events(await proxy.logged("backend_ready"))
            if line["event"] == "backend_ready"
        )
        assert seconds >= 1.5
        assert await proxy.end() == 0


@pytest.mark.parametrize("kind", ["sglang", "vllm", "llama-server", "shimmy"])
async def test_arguments_that_it_does_not_know_stop_the_proxy(
    programs: Programs, kind: str
) -> None:
    """A command line that it refuses is not tried again: code 2, with what it said of it."""
    flags = [*programs.flags(kind), "--", "--no-such-flag"]
    code, _, err = await run("--port", "0", *flags, **programs.environment)
    assert code == 2
    assert "--no-such-flag" in last_words(err)
    assert err.count('"backend_starting"') == 1


@pytest.mark.parametrize("kind", KINDS)
async def test_a_missing_program(programs: Programs, kind: str) -> None:
    """It stops the proxy with code 2 and a sentence that names the setting and how to mend it."""
    (programs.bin / "plain").unlink()
    for name in ("vllm", "llama-server", "shimmy"):
        (programs.bin / name).unlink()
    environment = {"PYTHONPATH": programs.environment["PYTHONPATH"].partition(":")[2]}
    environment["PATH"] = str(programs.bin)
    code, _, err = await run("--port", "0", *programs.flags(kind), **environment)
    setting = {"sglang": "--backend-python", "command": "--backend-command"}
    assert code == 2, err
    assert setting.get(kind, "--backend-executable") in last_words(err)
    mend = {"command": "on the PATH", "llama-server": "llama.cpp's releases"}
    assert mend.get(kind, "install") in last_words(err)


@pytest.mark.parametrize("setting", ["backend-python", "backend-executable"])
async def test_a_named_program_that_does_not_exist(programs: Programs, setting: str) -> None:
    """The setting that named it is named, and the backend is not started."""
    kind = "llamacpp" if setting == "backend-python" else "vllm"
    flags = programs.flags(kind, **{setting: "/no/such/program"})
    code, _, err = await run("--port", "0", *flags, **programs.environment)
    assert code == 2
    assert f"--{setting}: there is no program '/no/such/program'" in err
    assert "backend_starting" not in err


@pytest.mark.parametrize("kind", ["sglang", "vllm", "llama-server", "shimmy"])
async def test_a_missing_model(programs: Programs, kind: str) -> None:
    """A model's path that does not exist stops the proxy with code 4, as with the predictor."""
    flags = programs.flags(kind, model_path="/no/such/model.gguf")
    code, _, err = await run("--port", "0", *flags, **programs.environment)
    assert code == 4
    assert "--model-path: there is no file or folder '/no/such/model.gguf'" in err


@pytest.mark.parametrize("kind", KINDS)
async def test_a_port_that_is_taken_in_between(
    tmp_path: Path, programs: Programs, kind: str
) -> None:
    """Where somebody takes the free port before the program does, it gets another at once."""
    flags = programs.flags(kind, f"taken={tmp_path}/taken", backend_backoff_seconds="60")
    async with process(tmp_path, *flags, wait_for="/health/ready", **programs.environment) as proxy:
        assert (await report_of(proxy))["restarts"] == 1
        told = [line["event"] for line in events(await proxy.logged("backend_ready"))]
        assert told.count("backend_starting") == 2
        assert "backend_port_taken" in told
        assert "backend_ended" not in told


@pytest.mark.parametrize("kind", [*KINDS, "llamacpp"])
async def test_a_given_port_that_is_taken(programs: Programs, kind: str) -> None:
    """It stops the proxy with code 3 and a sentence before anything is started."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        flags = programs.flags(kind, backend_port=port)
        code, _, err = await run("--port", "0", *flags, **programs.environment)
    assert code == 3
    assert f"cannot listen on 127.0.0.1 port {port}: address already in use" in err
    assert "--backend-port" in err
    assert "backend_starting" not in err


async def test_environment(tmp_path: Path, programs: Programs) -> None:
    """It gets the proxy's own environment, less its settings, with what was added to that."""
    found = tmp_path / "environment"
    added = {"STANDIN": f"env={found}", "WHERE": "{host}:{port} {else}", "GPUS": 0}
    flags = programs.flags("shimmy", backend_env=json.dumps(added), model_cache_dir="/cache")
    environment = {**programs.environment, "OPENAI_PROXY_QUIET": "1", "KEPT": "yes"}
    async with process(tmp_path, *flags, wait_for="/health/ready", **environment) as proxy:
        port = (await report_of(proxy))["url"].rpartition(":")[2]
        assert await proxy.end() == 0
    given = json.loads(found.read_text())
    assert given["WHERE"] == f"127.0.0.1:{port} {{else}}"
    assert (given["GPUS"], given["KEPT"], given["HF_HOME"]) == ("0", "yes", "/cache")
    assert given["SHIMMY_BASE_GGUF"] == str(programs.model)
    assert not [name for name in given if name.startswith("OPENAI_PROXY_")]


async def test_secrets_are_hidden_in_its_log(tmp_path: Path, programs: Programs) -> None:
    """What it says of keys that it was started with is not passed on."""
    said = "say=ServerArgs(token='env-hunter2', key='arg-hunter2')"
    added = {"STANDIN": said, "HF_TOKEN": "env-hunter2"}
    flags = programs.flags("sglang", backend_env=json.dumps(added))
    flags += ["--", "--api-key", "arg-hunter2"]
    async with process(tmp_path, *flags, wait_for="/health/ready", **programs.environment) as proxy:
        assert await proxy.end() == 0
        text = proxy.log.read_text()
    assert "[sglang] ServerArgs(token='***', key='***')" in text
    assert "--api-key ***" in text
    assert "hunter2" not in text


async def test_a_command_that_names_its_model_itself(tmp_path: Path, programs: Programs) -> None:
    """Without a name of ours the model is called as the command lists it."""
    command = f"{sys.executable} -m sglang.launch_server --model-path x --host {{host}} "
    command += "--port {port} --served-model-name 'a name'"
    flags = ["--backend", "command", "--backend-command", command]
    async with process(tmp_path, *flags, wait_for="/health/ready", **programs.environment) as proxy:
        assert (await report_of(proxy))["model"] == "a name"
        assert await proxy.end() == 0


async def test_a_command_that_is_configured_by_variables(
    tmp_path: Path, programs: Programs
) -> None:
    """A program that takes its port from a variable gets it there."""
    flags = ["--backend", "command", "--backend-command", "plain"]
    flags += ["--backend-env", '{"PORT": "{port}"}']
    async with process(tmp_path, *flags, wait_for="/health/ready", **programs.environment) as proxy:
        assert (await report_of(proxy))["model"] == "its-own"
        assert await proxy.end() == 0


async def test_a_backend_on_ipv6(tmp_path: Path, programs: Programs) -> None:
    """An address of IPv6 goes into command line and URL in the form that each wants."""
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        pytest.skip("no IPv6 here")
    flags = programs.flags("shimmy", backend_host="::1")
    async with process(tmp_path, *flags, wait_for="/health/ready", **programs.environment) as proxy:
        assert (await report_of(proxy))["url"].startswith("http://[::1]:")
        assert await proxy.end() == 0


async def test_a_program_that_cannot_be_run(programs: Programs) -> None:
    """A file that is no program after all is not tried again."""
    (programs.bin / "vllm").write_text("#!/no/such/interpreter\n")
    code, _, err = await run("--port", "0", *programs.flags("vllm"), **programs.environment)
    assert code == 2
    assert "cannot run" in last_words(err)
    assert err.count('"backend_starting"') == 1
