"""Each example makes the proxy another system's replacement: it is called as its document does."""

from __future__ import annotations

import json
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import yaml
from aiohttp import ClientSession

from openai_proxy.config import Settings
from tests.proxy import harness
from tests.proxy.harness import COMPLETION, DONE, StandIn, answered_json, refused_port, streamed
from tests.proxy.processes import PYTHONPATH, STANDIN, Process, process
from tests.proxy.test_api_generate import completion, piece

EXAMPLES = Path(__file__).parents[2] / "examples"

# The tests give the proxy a port of its own, and this machine has no such directory.
NOT_HERE = ("PORT", "HOST", "LOG_FILE", "HF_HOME")


def variables(system: str) -> dict[str, str]:
    """The variables of an example, less what cannot be the same on every machine."""
    lines = (EXAMPLES / system / "proxy.env").read_text(encoding="utf-8").splitlines()
    pairs = [line.split("=", 1) for line in lines if line and not line.startswith("#")]
    return {name: value for name, value in pairs if not name.endswith(NOT_HERE)}


class Client:
    """Calls a proxy process as curl would."""

    def __init__(self, http: ClientSession, url: str) -> None:
        self.http = http
        self.url = url

    async def get(self, path: str) -> tuple[int, Any]:
        """Status and decoded body of a GET."""
        async with self.http.get(self.url + path) as response:
            return response.status, await response.json()

    async def text(self, path: str) -> str:
        """The text of a GET."""
        async with self.http.get(self.url + path) as response:
            return await response.text()

    async def post(self, path: str, **body: Any) -> tuple[int, Any]:
        """Status and decoded body of a POST."""
        async with self.http.post(self.url + path, json=body) as response:
            return response.status, await response.json()


@asynccontextmanager
async def started(
    tmp_path: Path, *flags: str, cwd: Path | None = None, **env: str
) -> AsyncIterator[Client]:
    """Run the proxy's own process, ready, with these variables."""
    async with process(
        tmp_path, "--quiet", *flags, wait_for="/health/ready", cwd=cwd, **env
    ) as running:
        assert isinstance(running, Process)
        async with ClientSession() as http:
            yield Client(http, running.url)


def listed(*models: str, owner: str = "local") -> harness.Respond:
    """A list of models."""
    data = [{"id": name, "object": "model", "created": 1, "owned_by": owner} for name in models]
    return answered_json({"object": "list", "data": data})


def said(model: str, text: str, **usage: int) -> harness.Respond:
    """A chat's answer."""
    message = {"role": "assistant", "content": text}
    choice = {"index": 0, "message": message, "finish_reason": "stop"}
    return answered_json(COMPLETION | {"model": model, "choices": [choice], "usage": usage})


async def test_inference_service(tmp_path: Path, upstream: StandIn) -> None:
    """With its own file the proxy answers the Inference Service's requests as it did."""
    upstream.models = listed("gpt-oss-20b", "llama-2-7b", "gpt-4")
    upstream.respond = said("gpt-oss-20b", "The capital of France is Paris.", completion_tokens=7)
    env = {"INFERENCE_INFERENCE_BASE_URL": f"{upstream.url}/v1", "RUN_ENV": "production"}
    async with started(tmp_path, cwd=EXAMPLES / "inference-service", **env) as client:
        assert await client.get("/") == (200, {"message": "Ok"})
        status, health = await client.get("/health")
        assert (status, health["status"], health["provider"]) == (200, "healthy", "lmstudio")
        assert health["http_config"]["timeout_secs"] == 30
        assert set(health["http_config"]) == {"timeout_secs", "connect_timeout_secs", "max_retries"}
        _, models = await client.get("/v1/models")
        assert [model["id"] for model in models["data"]] == ["gpt-oss-20b", "llama-2-7b"]

        question = [{"role": "user", "content": "What is the capital of France?"}]
        path = "/v1/chat/completions"
        status, answer = await client.post(path, messages=question)
        assert status == 200
        assert answer["choices"][0]["message"]["content"] == "The capital of France is Paris."
        assert json.loads(upstream.bodies[-1])["model"] == "gpt-oss-20b"
        advanced = {
            "temperature": 0.9,
            "max_tokens": 200,
            "top_p": 0.95,
            "frequency_penalty": 0.5,
            "presence_penalty": 0.5,
            "stop": ["The end", "END"],
            "seed": 42,
        }
        status, _ = await client.post(path, model="gpt-oss-20b", messages=question, **advanced)
        assert status == 200
        assert json.loads(upstream.bodies[-1]).items() >= advanced.items()
        assert await client.post(path, messages=[]) == (
            400,
            {"error": "Messages array cannot be empty", "code": "EMPTY_MESSAGES"},
        )
        status, refusal = await client.post(path, model="gpt-4", messages=question)
        assert (status, refusal["code"]) == (400, "MODEL_NOT_ALLOWED")
        assert refusal["error"] == (
            "Model 'gpt-4' is not in the allowed list. "
            "Available models: gpt-oss-20b, llama-2-7b, mistral-7b"
        )


async def test_inference_service_without_its_provider(tmp_path: Path) -> None:
    """Without LM Studio a chat is 502, in that service's own words."""
    env = {"INFERENCE_INFERENCE_BASE_URL": f"http://127.0.0.1:{refused_port()}/v1"}
    cwd = EXAMPLES / "inference-service"
    async with process(tmp_path, "--quiet", cwd=cwd, **env) as running, ClientSession() as http:
        client = Client(http, running.url)
        messages = [{"role": "user", "content": "Hello"}]
        assert await client.post("/v1/chat/completions", messages=messages) == (
            502,
            {
                "error": "Connection failed: error sending request",
                "code": "PROVIDER_CONNECTION_FAILED",
            },
        )


async def test_semantic_explorer(tmp_path: Path, upstream: StandIn) -> None:
    """With its own variables the proxy answers the LLM Inference API's requests as it did."""
    model = "mistralai/Mistral-7B-Instruct-v0.2"
    env = variables("semantic-explorer") | {"OPENAI_PROXY_UPSTREAM_URL": upstream.url}
    upstream.models = listed(model)
    async with started(tmp_path, **env) as client:
        assert await client.get("/health/live") == (200, {"status": "ok"})
        ready = {"status": "ok", "llm_models_loaded": True}
        assert await client.get("/health/ready") == (200, ready)
        _, catalog = await client.get("/api/models")
        assert catalog["models"][0]["name"] == "Mistral 7B Instruct v0.2"
        assert catalog["models"][0]["size"] == "7B"

        upstream.respond = answered_json(completion("Quantum computing is..."))
        prompt = "Explain quantum computing in simple terms:"
        asked = {"model": model, "prompt": prompt, "temperature": 0.7, "max_tokens": 200}
        assert await client.post("/api/generate", **asked) == (
            200,
            {
                "text": "Quantum computing is...",
                "model": model,
                "tokens_generated": 156,
                "finish_reason": "length",
            },
        )
        upstream.respond = streamed(piece("1"), piece(", 2"), piece(", 3"), DONE)
        asked = {"model": model, "prompt": "Count from 1 to 10:", "max_tokens": 50}
        async with client.http.post(f"{client.url}/api/generate/stream", json=asked) as response:
            assert await response.text() == "data: 1\n\ndata: , 2\n\ndata: , 3\n\n"
        assert json.loads(upstream.bodies[-1])["temperature"] == 0.7

        upstream.respond = said(model, "The capital of France is Paris.", completion_tokens=8)
        messages = [{"role": "user", "content": "What is the capital of France?"}]
        assert await client.post("/api/chat", messages=messages, max_tokens=100) == (
            200,
            {
                "message": {"role": "assistant", "content": "The capital of France is Paris."},
                "model": model,
                "tokens_generated": 8,
                "finish_reason": "eos",
            },
        )
        status, refusal = await client.post("/api/chat", messages=messages, max_tokens=5000)
        assert (status, refusal["code"]) == (400, "INVALID_MAX_TOKENS")
        status, refusal = await client.post("/api/chat", messages=messages, model="other")
        assert (status, refusal["code"]) == (400, "MODEL_NOT_ALLOWED")
        assert "<html" in await client.text("/swagger-ui/")
        assert "openai_proxy_requests_total" in await client.text("/metrics")


async def test_seminstruct(tmp_path: Path, upstream: StandIn) -> None:
    """With its own variables the proxy answers SemInstruct's requests as it did."""
    model = "mistral-7b-instruct"
    upstream.models = listed(model, owner="shimmy")
    upstream.respond = said(model, "Hello!", prompt_tokens=0, completion_tokens=2, total_tokens=2)
    env = variables("seminstruct") | {"SEMINSTRUCT_SHIMMY_URL": upstream.url}
    async with started(tmp_path, **env) as client:
        assert await client.get("/health") == (
            200,
            {"status": "healthy", "shimmy_url": upstream.url, "shimmy_healthy": True},
        )
        _, models = await client.get("/v1/models")
        assert [entry["id"] for entry in models["data"]] == [model]
        messages = [{"role": "user", "content": "Hello!"}]
        status, answer = await client.post(
            "/v1/chat/completions", model=model, messages=messages, max_tokens=100
        )
        assert (status, answer["object"]) == (200, "chat.completion")
        assert answer["choices"][0]["message"]["content"] == "Hello!"
        assert json.loads(upstream.bodies[-1])["stream"] is False  # shimmy's default is true
        metrics = await client.text("/metrics")
        for name in ("requests_total", "request_duration_seconds", "errors_total"):
            assert f"# TYPE seminstruct_{name} " in metrics
        assert "# TYPE seminstruct_shimmy_errors_total counter" in metrics


async def test_deterministic_inference_server(tmp_path: Path) -> None:
    """With its own variables and flags the proxy runs SGLang and answers as that server did."""
    model = tmp_path / "model"
    model.mkdir()
    log = tmp_path / "inference.log"
    env = variables("deterministic-inference-server")
    env |= {"INFERENCE_MODEL_PATH": str(model), "INFERENCE_LOG_FILE": str(log)}
    backend_port = refused_port()
    env |= {"INFERENCE_BACKEND_PORT": str(backend_port)}
    env |= {"PYTHONPATH": os.pathsep.join((str(STANDIN / "programs"), PYTHONPATH))}
    async with started(tmp_path, **env) as client:
        assert await client.get("/health") == (
            200,
            {
                "status": "healthy",
                "backend": {
                    "status": "ready",
                    "healthy": True,
                    "url": f"http://127.0.0.1:{backend_port}",
                },
            },
        )
        _, models = await client.get("/v1/models")
        name = models["data"][0]["id"]
        messages = [{"role": "user", "content": "Hello!"}]
        status, answer = await client.post(
            "/v1/chat/completions", model=name, messages=messages, max_tokens=50
        )
        assert (status, answer["choices"][0]["message"]["content"]) == (200, "Hello")
        status, answer = await client.post(
            "/v1/completions", model=name, prompt="Once upon a time", max_tokens=50
        )
        assert (status, answer["choices"][0]["text"]) == (200, "Hello")


async def test_shimmy_openai_proxy(tmp_path: Path, upstream: StandIn) -> None:
    """With its own variables the proxy answers the SAP AI Core guide's requests as that one did."""
    model = "phi3-lora"
    upstream.models = listed(model, owner="shimmy")
    upstream.respond = said(model, "The capital of France is Paris.", completion_tokens=8)
    env = variables("shimmy-openai-proxy") | {"SHIMMY_PORT": upstream.url.rpartition(":")[2]}
    async with started(tmp_path, **env) as client:
        healthy = {"status": "healthy", "shimmy_status": "healthy"}
        assert await client.get("/health") == await client.get("/v1/health") == (200, healthy)
        _, models = await client.get("/v1/models")
        assert models["object"] == "list"
        assert (models["data"][0]["id"], models["data"][0]["owned_by"]) == (model, "shimmy")
        messages = [{"role": "user", "content": "What is the capital of France?"}]
        status, answer = await client.post(
            "/v1/chat/completions", model=model, messages=messages, max_tokens=100, temperature=0.7
        )
        assert (status, answer["model"]) == (200, model)
        assert answer["choices"][0]["message"]["content"] == "The capital of France is Paris."
        assert answer["choices"][0]["finish_reason"] == "stop"


def test_every_system_has_an_example() -> None:
    """There are five, and the table names each."""
    table = (EXAMPLES / "README.md").read_text(encoding="utf-8")
    directories = sorted(path.name for path in EXAMPLES.iterdir() if path.is_dir())
    assert len(directories) == 5
    assert [name for name in directories if f"| `{name}/` |" not in table] == []


def test_the_forms_are_settings() -> None:
    """What an example says in our own names are settings that there are, with values they take."""
    fields = Settings.model_fields
    ours = {
        name.removeprefix("OPENAI_PROXY_").lower(): value
        for path in EXAMPLES.glob("*/proxy.env")
        for name, value in variables(path.parent.name).items()
        if name.startswith("OPENAI_PROXY_")
    }
    document = yaml.safe_load((EXAMPLES / "inference-service/config/default.yaml").read_text())
    ours |= {name: value for name, value in document.items() if isinstance(value, str)}
    assert {"errors", "health", "metrics_namespace"} <= set(ours)
    assert [name for name in ours if name not in fields] == []
