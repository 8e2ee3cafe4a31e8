"""Nobody switches a model off: no route, no gRPC method, no port that nobody asked for."""

from __future__ import annotations

import subprocess
import time
from contextlib import AbstractContextManager
from pathlib import Path

import grpc
import psutil
import pytest
from kserve.protocol.grpc import grpc_predict_v2_pb2 as pb

from tests.attack import servers
from tests.attack.canary import normal
from tests.attack.servers import Target

pytestmark = pytest.mark.model

SERVICE = "/inference.GRPCInferenceService"
REPOSITORY = (
    "/v2/repository/models/smollm2/unload",
    "/v2/repository/models/smollm2/load",
    "/v2/repository/index",
)
FORMS = ((), (("Origin", "https://a.example"), ("Content-Type", "text/plain")))


@pytest.mark.parametrize("path", REPOSITORY)
def test_no_page_unloads_a_model(target: Target, path: str) -> None:
    """There are no routes of a repository: an empty POST, also from a page, changes nothing."""
    for headers in FORMS:
        answer = target.post(path, b"", headers=headers)
        assert answer.status == 404, (answer.status, answer.body[:200])
    assert normal(target.url).status == 200
    assert target.ask("GET", "/v1/models").status == 200


@pytest.mark.parametrize("path", ["/docs", "/redoc", "/openapi.json", "/v2", "/v2/models/smollm2"])
def test_only_what_is_documented_is_served(shared_predictor: Target, path: str) -> None:
    """A route that the SDK brings answers as documented or not at all, never with 500."""
    for method in ("GET", "POST"):
        answer = shared_predictor.ask(method, path, b"" if method == "POST" else None)
        assert answer.status in {200, 400, 404, 405}, (answer.status, answer.body[:200])


def _predictor(model: Path, *flags: str) -> AbstractContextManager[Target]:
    """Run a predictor with a tiny model, which is told nothing of gRPC but by `flags`."""
    return servers.predictor(model, *flags, "--n_threads=1", max_bytes=None, has_grpc=None)


def _listening(target: Target) -> set[tuple[str, int]]:
    found = psutil.Process(target.server.pid).connections("tcp")
    # gRPC writes an address of IPv4 as one of IPv6
    return {
        (c.laddr[0].removeprefix("::ffff:"), c.laddr[1])
        for c in found
        if c.status == psutil.CONN_LISTEN
    }


def test_grpc_is_off_unless_asked_for(tiny_model: Path) -> None:
    """A predictor that is told nothing of gRPC has one port, and on the host that it was given."""
    port = servers.free_port()
    with _predictor(tiny_model, f"--grpc_port={port}") as target:
        assert _listening(target) == {("127.0.0.1", int(target.url.rsplit(":", 1)[1]))}


@pytest.mark.attack
def test_grpc_listens_where_http_does_and_unloads_nothing(tiny_model: Path) -> None:
    """gRPC is bound to `--http_host`; its methods of a repository are not there."""
    port = servers.free_port()
    flags = (f"--grpc_port={port}", "--enable_grpc=true")
    with _predictor(tiny_model, *flags) as target:
        servers.wait_until(lambda: ("127.0.0.1", port) in _listening(target), 10)
        assert {host for host, _ in _listening(target)} == {"127.0.0.1"}
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            asks = {
                "RepositoryModelUnload": pb.RepositoryModelUnloadRequest(model_name="smollm2"),
                "RepositoryModelLoad": pb.RepositoryModelLoadRequest(model_name="smollm2"),
            }
            for name, message in asks.items():
                assert _status(channel, name, message) == grpc.StatusCode.UNIMPLEMENTED, name
        assert target.ask("GET", "/v2/health/ready").status == 200
        assert normal(target.url).status == 200


@pytest.mark.attack
def test_grpc_speaks_tls_where_http_does(tiny_model: Path, tmp_path: Path) -> None:
    """With a certificate for HTTP, gRPC has the same and clear text is no more spoken."""
    key, certificate = tmp_path / "tls.key", tmp_path / "tls.crt"
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1"),
            *("-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1"),
            *("-keyout", key, "-out", certificate),
        ],
        check=True,
        capture_output=True,
    )
    port = servers.free_port()
    flags = (
        *(f"--grpc_port={port}", "--enable_grpc=true"),
        *(f"--ssl_certfile={certificate}", f"--ssl_keyfile={key}"),
    )
    with _predictor(tiny_model, *flags) as target:
        servers.wait_until(lambda: port in {number for _, number in _listening(target)}, 10)
        live = pb.ServerLiveRequest()
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            assert _status(channel, "ServerLive", live) == grpc.StatusCode.UNAVAILABLE
        trusted = grpc.ssl_channel_credentials(certificate.read_bytes())
        with grpc.secure_channel(f"127.0.0.1:{port}", trusted) as channel:
            assert _status(channel, "ServerLive", live) is None


def _status(channel: grpc.Channel, name: str, message: object) -> grpc.StatusCode | None:
    """Call a method; return the status that it fails with, None where it does not."""
    call = channel.unary_unary(
        f"{SERVICE}/{name}",
        request_serializer=type(message).SerializeToString,  # type: ignore[attr-defined]
    )
    for _ in range(20):
        try:
            call(message, timeout=5)
        except grpc.RpcError as error:
            if error.code() != grpc.StatusCode.UNAVAILABLE:
                return error.code()
            time.sleep(0.1)  # the port may just have been opened
        else:
            return None
    return grpc.StatusCode.UNAVAILABLE
