"""gRPC with a real client: what is served, in which time and size, and with which certificate."""

from __future__ import annotations

import asyncio
import gzip
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from kserve.protocol.grpc import grpc_predict_v2_pb2 as pb

from kserve_llamacpp.api import inference_service
from kserve_llamacpp.api.inference_service import InferenceService
from kserve_llamacpp.certificate import CertificateFiles
from kserve_llamacpp.errors import PortTakenError
from kserve_llamacpp.grpc_server import MAX_CALLS, GrpcServer, GrpcSettings
from kserve_llamacpp.listener import bind
from tests.predictor.fake_repository import Repository
from tests.proxy.certificates import Authority

SERVED = {"ServerLive", "ServerReady", "ServerMetadata", "ModelReady", "ModelMetadata"}
# What the SDK's service has besides. Decide what is new: serve it, or name it here.
GONE = {"ModelInfer", "RepositoryModelLoad", "RepositoryModelUnload"}


class Run:
    """A running server, and calls to it."""

    def __init__(self, port: int, repository: Repository, server: GrpcServer) -> None:
        self.address = f"127.0.0.1:{port}"
        self.port = port
        self.repository = repository
        self.server = server
        self.channel = grpc.aio.insecure_channel(
            self.address, [("grpc.max_receive_message_length", -1)]
        )

    async def call(self, method: str, message: Any = b"", seconds: float = 5.0) -> bytes:
        """Return a method's answer, as bytes; raises AioRpcError."""
        body = message if isinstance(message, bytes) else message.SerializeToString()
        name = f"/{inference_service.SERVICE}/{method}"
        return await self.channel.unary_unary(name)(body, timeout=seconds)  # type: ignore[no-any-return]  # bytes

    async def refusal(self, method: str, message: Any = b"") -> tuple[grpc.StatusCode, str]:
        """Return the status and the text of a call that fails."""
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await self.call(method, message)
        return error.value.code(), error.value.details() or ""


@asynccontextmanager
async def running(
    certificate: CertificateFiles | None = None, read_seconds: float = 10.0
) -> AsyncIterator[Run]:
    repository = Repository()
    service = InferenceService(repository.models, read_seconds)
    settings = GrpcSettings("127.0.0.1", 0, 1 << 20, 1 << 16, certificate)
    server = GrpcServer(settings, service.handler())
    run = Run(await server.start(), repository, server)
    try:
        yield run
    finally:
        await run.channel.close()
        await server.stop(0)


def test_every_method_of_the_sdk_is_decided() -> None:
    """Each method of the SDK's service is either served by us or known to be gone."""
    service = pb.DESCRIPTOR.services_by_name["GRPCInferenceService"]

    assert service.full_name == inference_service.SERVICE
    assert {method.name for method in service.methods} == SERVED | GONE


async def test_all_methods() -> None:
    """The methods of the list answer; those that would change anything, or infer, are unknown."""
    async with running() as run:
        for method in SERVED:
            name = pb.ModelReadyRequest(name="m") if method.startswith("Model") else b""
            await run.call(method, name)
        for method in [*GONE, "Other"]:
            assert (await run.refusal(method))[0] == grpc.StatusCode.UNIMPLEMENTED


@pytest.mark.parametrize("service", ["grpc.reflection.v1.ServerReflection", "inference.Other"])
async def test_no_other_service(service: str) -> None:
    """There is no other service: neither reflection nor the SDK's next one."""
    async with running() as run:
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await run.channel.unary_unary(f"/{service}/ServerLive")(b"")

        assert error.value.code() == grpc.StatusCode.UNIMPLEMENTED


async def test_ready() -> None:
    """Server and model are ready only while the model answers and the server does not drain."""
    model = pb.ModelReadyRequest(name="m")
    async with running() as run:

        async def ready() -> tuple[bool, bool]:
            server = pb.ServerReadyResponse.FromString(await run.call("ServerReady"))
            found = pb.ModelReadyResponse.FromString(await run.call("ModelReady", model))
            return server.ready, found.ready

        assert await ready() == (True, True)
        run.repository.content["m"].is_ready = False
        assert await ready() == (False, False)
        run.repository.content["m"].is_ready = True
        run.repository.is_draining = True
        assert await ready() == (False, False)


async def test_live() -> None:
    """The server is alive while its model is not ready, and not where a new process is needed."""
    async with running() as run:

        async def live() -> bool:
            found: bool = pb.ServerLiveResponse.FromString(await run.call("ServerLive")).live
            return found

        run.repository.content["m"].is_ready = False
        assert await live()
        run.repository.content["m"].is_alive = False
        assert not await live()


async def test_ready_asks_the_repository() -> None:
    """Without its model the server is not ready, and the model not there."""
    async with running() as run:
        run.repository.content.clear()

        assert not pb.ServerReadyResponse.FromString(await run.call("ServerReady")).ready
        assert (await run.refusal("ModelReady", pb.ModelReadyRequest(name="m")))[0] == (
            grpc.StatusCode.NOT_FOUND
        )


async def test_metadata_claims_no_extension() -> None:
    """The server's metadata does not offer the repository that it has not."""
    async with running() as run:
        found = pb.ServerMetadataResponse.FromString(await run.call("ServerMetadata"))

        assert (found.name, list(found.extensions)) == ("kserve-llamacpp", [])


@pytest.mark.parametrize(
    ("message", "code", "words"),
    [
        (b"\xff\xff", "INVALID_ARGUMENT", "no ModelReadyRequest"),
        (pb.ModelReadyRequest(name="x" * 60_000), "NOT_FOUND", "does not exist"),
        (pb.ModelReadyRequest(name="m", version="1"), "NOT_FOUND", "'version'"),
        (b"", "NOT_FOUND", "does not exist"),
        (b"\0" * (1 << 17), "RESOURCE_EXHAUSTED", "larger than max"),
    ],
)
async def test_bad_message(message: Any, code: str, words: str) -> None:
    """A bad message gets a status that fits it and one short sentence, and the next call works."""
    async with running() as run:
        found, text = await run.refusal("ModelReady", message)

        assert (found.name, words in text, len(text) < 400) == (code, True, True)
        await run.call("ServerLive")


async def test_a_bomb_is_too_large() -> None:
    """A message's bound is that of its decompressed bytes."""
    async with running() as run:
        assert len(gzip.compress(b"\0" * (1 << 20))) < 1 << 16
        method = run.channel.unary_unary(f"/{inference_service.SERVICE}/ModelReady")
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await method(b"\0" * (1 << 20), compression=grpc.Compression.Gzip)

        assert error.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED


async def test_an_error_inside_is_not_told() -> None:
    """What goes wrong inside is INTERNAL with one sentence, without a traceback."""
    async with running() as run:
        run.repository.content["m"] = 5
        code, text = await run.refusal("ModelReady", pb.ModelReadyRequest(name="m"))

        assert (code, text) == (grpc.StatusCode.INTERNAL, "The server had an error.")


async def test_calls_without_a_message_end() -> None:
    """Calls whose message does not come are ended, and give their places back to others."""
    async with running(read_seconds=0.3) as run:
        method = run.channel.stream_unary(f"/{inference_service.SERVICE}/ServerLive")

        async def never() -> AsyncIterator[bytes]:
            await asyncio.sleep(30)
            yield b""

        silent = [method(never()) for _ in range(MAX_CALLS)]
        codes = [await call.code() for call in silent]
        await run.call("ServerLive")

        assert set(codes) == {grpc.StatusCode.DEADLINE_EXCEEDED}


async def test_port_taken() -> None:
    """A port that another process listens on stops the start, and the message names the flag."""
    taken = bind("127.0.0.1", 0)
    port = taken.getsockname()[1]
    server = GrpcServer(
        GrpcSettings("127.0.0.1", port, 1024, 1024), InferenceService(Repository().models).handler()
    )
    with pytest.raises(PortTakenError, match=f"--grpc_port: another .* on port {port}"):
        await server.start()
    taken.close()
    await server.stop(0)


async def test_listens_on_its_address_alone() -> None:
    """Another address of the machine does not answer."""
    async with running() as run:
        with pytest.raises(OSError):  # noqa: PT011 - refused, or no IPv6 here
            await asyncio.open_connection("::1", run.port)
        with pytest.raises(OSError):  # noqa: PT011 - refused
            await asyncio.open_connection("127.0.0.2", run.port)


async def test_tls(tmp_path: Path) -> None:
    """With a certificate there is no clear text; a new one is used from the next connection."""
    first, second = Authority("first"), Authority("second")
    files = CertificateFiles(*map(str, first.issue().write(tmp_path)))

    async def live(authority: Authority) -> bool:
        credentials = grpc.ssl_channel_credentials(authority.pem)
        async with grpc.aio.secure_channel(run.address, credentials) as channel:
            call = channel.unary_unary(f"/{inference_service.SERVICE}/ServerLive")
            try:
                return pb.ServerLiveResponse.FromString(await call(b"", timeout=5)).live  # type: ignore[no-any-return]  # bool
            except grpc.aio.AioRpcError:
                return False

    async with running(files) as run:
        assert await live(first)
        assert not await live(second)
        assert (await run.refusal("ServerLive"))[0] == grpc.StatusCode.UNAVAILABLE
        (tmp_path / "tls.crt").write_bytes(second.issue().cert)  # half of a pair
        assert await live(first)
        second.issue().write(tmp_path)
        assert await live(second)
        assert not await live(first)
