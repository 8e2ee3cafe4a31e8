"""What the running predictor answers to: nothing that changes what it serves."""

from __future__ import annotations

import asyncio
import signal
import socket
import ssl
from pathlib import Path
from typing import Any

import grpc
import httpx2
import psutil
import pytest
from kserve.protocol.grpc import grpc_predict_v2_pb2 as pb

from tests.processes import Predictor
from tests.proxy.certificates import Authority

pytestmark = pytest.mark.model

SERVICE = "/inference.GRPCInferenceService"


def listeners(server: Predictor) -> set[tuple[str, int]]:
    """Return the addresses that the server's processes listen on."""
    process = psutil.Process(server.pid)
    return {
        (connection.laddr.ip.removeprefix("::ffff:"), connection.laddr.port)
        for each in [process, *process.children(recursive=True)]
        for connection in each.connections()
        if connection.status == psutil.CONN_LISTEN
    }


@pytest.mark.parametrize("verb", ["unload", "load", "index"])
async def test_no_page_switches_the_model_off(http: httpx2.AsyncClient, verb: str) -> None:
    """A cross-site POST to KServe's repository routes is a 404, and the model answers as before."""
    place = "index" if verb == "index" else f"models/smollm2/{verb}"
    answer = await http.post(
        f"/v2/repository/{place}",
        headers={"content-type": "text/plain", "origin": "https://evil.example"},
    )
    completion = await http.post("/v1/completions", json={"prompt": "A fox", "max_tokens": 1})

    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "unknown_url")
    assert completion.status_code == 200


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/openapi.json", 404),
        ("GET", "/docs", 404),
        ("GET", "/docs/oauth2-redirect", 404),
        ("GET", "/redoc", 404),
        ("GET", "/v1/models/", 404),
        ("POST", "/v1/chat/completions/", 404),
        ("POST", "/v1/models/smollm2:explain", 404),
        ("POST", "/v2/models/smollm2/infer", 404),
        ("GET", "/v2/models/smollm2/versions/1", 404),
        ("GET", "/v2/models/smollm2/versions/1/ready", 404),
        ("OPTIONS", "/v1/completions", 405),
        ("HEAD", "/v1/completions", 405),
        ("DELETE", "/v1/models/smollm2", 405),
        ("TRACE", "/metrics", 405),
        ("GET", "/v2", 200),
        ("GET", "/v2/health/live", 200),
        ("GET", "/v2/health/ready", 200),
        ("GET", "/v2/models", 200),
        ("GET", "/v2/models/smollm2", 200),
        ("GET", "/v2/models/smollm2/ready", 200),
        ("GET", "/v2/models/other/ready", 404),
        ("GET", "/", 200),
        ("GET", "/metrics", 200),
    ],
)
async def test_status(http: httpx2.AsyncClient, method: str, path: str, status: int) -> None:
    """What is listed is answered; what is not is refused in OpenAI's envelope, never redirected."""
    answer = await http.request(method, path)

    assert answer.status_code == status
    if status >= 400 and method != "HEAD":
        assert answer.json()["error"]["type"] == "invalid_request_error"


def test_one_port(predictor: Predictor) -> None:
    """Without `--enable_grpc` the predictor listens on its HTTP port alone."""
    assert listeners(predictor) == {("127.0.0.1", int(predictor.url.rpartition(":")[2]))}


async def test_grpc_with_tls(tiny_models: dict[str, Path], tmp_path: Path) -> None:
    """gRPC has HTTP's address and certificate, cannot unload, and drains with HTTP.

    Who speaks clear text gets no answer, and leaves no line of gRPC's own in the log.
    """
    authority = Authority()
    cert, key = authority.issue().write(tmp_path)
    trust = ssl.create_default_context(cadata=authority.pem.decode())
    flags = ("--enable_grpc", "true", "--grpc_port=0", f"--ssl_certfile={cert}")
    with Predictor(
        tiny_models["llama"], *flags, f"--ssl_keyfile={key}", "--drain_delay_seconds=1"
    ) as server:
        server.ready()
        http_port = server.wait_for("http_listening")["port"]
        port = server.wait_for("grpc_listening")["port"]
        credentials = grpc.ssl_channel_credentials(authority.pem)
        async with grpc.aio.secure_channel(f"127.0.0.1:{port}", credentials) as channel:

            async def is_ready() -> bool:
                answer = await channel.unary_unary(f"{SERVICE}/ServerReady")(b"", timeout=5)
                return pb.ServerReadyResponse.FromString(answer).ready  # type: ignore[no-any-return]  # bool

            assert listeners(server) == {("127.0.0.1", http_port), ("127.0.0.1", port)}
            assert await is_ready()
            async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as clear:
                with pytest.raises(grpc.aio.AioRpcError):
                    await clear.unary_unary(f"{SERVICE}/ServerReady")(b"", timeout=5)
            unload = pb.RepositoryModelUnloadRequest(model_name="smollm2")
            for method in ("RepositoryModelUnload", "RepositoryModelLoad", "ModelInfer"):
                call = channel.unary_unary(f"{SERVICE}/{method}")
                with pytest.raises(grpc.aio.AioRpcError) as error:
                    await call(unload.SerializeToString(), timeout=5)
                assert error.value.code() == grpc.StatusCode.UNIMPLEMENTED
            url = f"https://127.0.0.1:{http_port}/v1/completions"
            async with httpx2.AsyncClient(verify=trust, timeout=60) as client:
                body: dict[str, Any] = {"prompt": "A fox", "max_tokens": 1}
                assert (await client.post(url, json=body)).status_code == 200
            server.signal(signal.SIGTERM)
            await asyncio.to_thread(server.wait_for, "draining")
            assert not await is_ready()
        assert await asyncio.to_thread(server.exit_status, 20) == 0
        assert [line for line in server.text if not line.startswith("{")] == []  # gRPC's own log


def test_grpc_port_taken(tiny_models: dict[str, Path]) -> None:
    """A taken gRPC port ends the start with status 3 and a line that names the flag."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        flags = ("--enable_grpc=true", f"--grpc_port={port}")
        with Predictor(tiny_models["llama"], *flags) as server:
            assert server.exit_status() == 3
            assert f"--grpc_port: another process listens on port {port}" in "".join(server.text)
