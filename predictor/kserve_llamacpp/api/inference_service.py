"""V2 over gRPC, `inference.GRPCInferenceService`: what tells of the server and its models.

What is not listed here is UNIMPLEMENTED: ModelInfer, and the repository's load and unload.
Source: https://github.com/kserve/open-inference-protocol
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc
import structlog
from google.protobuf.message import DecodeError, Message
from kserve.protocol.grpc import grpc_predict_v2_pb2 as pb

from kserve_llamacpp import __version__
from kserve_llamacpp.api.models import Models
from kserve_llamacpp.api.v2 import SERVER_NAME
from openai_protocol.errors import ApiError, InvalidRequest, NotFound, Unavailable

SERVICE = "inference.GRPCInferenceService"
READ_SECONDS = 10.0  # from a call's head to the end of its message

Answer = Callable[[Any], Message]
_CODES = {
    InvalidRequest: grpc.StatusCode.INVALID_ARGUMENT,
    NotFound: grpc.StatusCode.NOT_FOUND,
    Unavailable: grpc.StatusCode.UNAVAILABLE,
}


class InferenceService:
    """The methods; owner: the gRPC server, on the event loop."""

    def __init__(self, models: Models, read_seconds: float = READ_SECONDS) -> None:
        self._models = models
        self._read_seconds = read_seconds
        self._log = structlog.get_logger("grpc")

    def handler(self) -> grpc.GenericRpcHandler:
        """Return all methods that there are."""
        methods: dict[str, tuple[type[Message], Answer]] = {
            "ServerLive": (pb.ServerLiveRequest, self._server_live),
            "ServerReady": (pb.ServerReadyRequest, self._server_ready),
            "ServerMetadata": (pb.ServerMetadataRequest, self._server_metadata),
            "ModelReady": (pb.ModelReadyRequest, self._model_ready),
            "ModelMetadata": (pb.ModelMetadataRequest, self._model_metadata),
        }
        # On the wire a stream of one message is a call with one message: read as a stream, the
        # message has a deadline, and what it holds is decoded here.
        return grpc.method_handlers_generic_handler(
            SERVICE,
            {
                name: grpc.stream_unary_rpc_method_handler(self._served(name, kind, answer))
                for name, (kind, answer) in methods.items()
            },
        )

    def _served(self, name: str, kind: type[Message], answer: Answer) -> Callable[..., Any]:
        async def serve(messages: AsyncIterator[bytes], context: Any) -> bytes:
            try:
                async with asyncio.timeout(self._read_seconds):
                    request = _decoded(kind, await anext(messages, None))
                result: bytes = answer(request).SerializeToString()
            except TimeoutError:
                code, text = grpc.StatusCode.DEADLINE_EXCEEDED, "The message did not come in time."
            except ApiError as error:
                code, text = _CODES.get(type(error), grpc.StatusCode.INTERNAL), error.message
            except Exception:
                self._log.exception("request_failed", method=name)
                code, text = grpc.StatusCode.INTERNAL, "The server had an error."
            else:
                return result
            await context.abort(code, text)
            raise AssertionError("abort returns never")

        return serve

    def _server_live(self, _: Any) -> Message:
        return pb.ServerLiveResponse(live=_is_available(self._models.check_alive))

    def _server_ready(self, _: Any) -> Message:
        return pb.ServerReadyResponse(ready=_is_available(self._models.check_ready))

    def _server_metadata(self, _: Any) -> Message:
        return pb.ServerMetadataResponse(name=SERVER_NAME, version=__version__, extensions=[])

    def _model_ready(self, request: Any) -> Message:
        _refuse_version(request)
        self._models.get(request.name)
        is_ready = _is_available(lambda: self._models.ready(request.name))
        return pb.ModelReadyResponse(ready=is_ready)

    def _model_metadata(self, request: Any) -> Message:
        _refuse_version(request)
        self._models.get(request.name)
        return pb.ModelMetadataResponse(name=request.name, platform="")


def _decoded(kind: type[Message], message: bytes | None) -> Message:
    if message is None:
        raise InvalidRequest(f"The call has no message: send a {kind.__name__}.")
    try:
        return kind.FromString(message)
    except DecodeError:
        raise InvalidRequest(f"The message is no {kind.__name__}.") from None


def _is_available(check: Callable[[], object]) -> bool:
    try:
        check()
    except Unavailable:
        return False
    return True


def _refuse_version(request: Any) -> None:
    if request.version:
        raise NotFound("This server has no versions of models: leave 'version' out.")
