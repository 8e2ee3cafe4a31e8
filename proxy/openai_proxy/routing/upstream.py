"""One upstream: what is sent to it, and how its answers come.

Import it late: the client takes longer to import than all the rest of the proxy.
"""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Awaitable, Callable, Sequence
from functools import lru_cache
from types import TracebackType

import aiohttp
import structlog
from yarl import URL

from http_edge.bytes_in_flight import Lease
from openai_protocol.errors import (
    ApiError,
    BadGateway,
    DeadlineExceeded,
    ErrorCode,
    overloaded,
)
from openai_protocol.requests import ChatCompletionRequest, Message
from openai_proxy.dialects.base import (
    AnswerHead,
    Call,
    Dialect,
    Headers,
    UpstreamRequest,
)
from openai_proxy.dialects.openai import GENERIC, broken_stream, invalid_response
from openai_proxy.exchange import Target
from openai_proxy.routing.access import Access
from openai_proxy.routing.connections import Connections
from openai_proxy.routing.endpoints import Endpoint, Endpoints

log = structlog.get_logger("openai_proxy")

# An answer is held in parts, then as a whole.
COST_PER_ANSWER_BYTE = 2
MAX_ANSWER_BYTES = 64 * 1024 * 1024
FINISH_SECONDS = 0.2
# URLs that are kept: making one costs more than all else that is done here for a request.
_KEPT_URLS = 256
# What the HTTP client would add; leaving it out takes time, and is not needed where it is sent.
_NOT_ADDED = ("User-Agent",)

RenderApart = Callable[[list[Message]], Awaitable[str]]


@lru_cache(256)
def _media_type(content_type: str) -> str:
    return content_type.partition(";")[0].strip().lower()


class Answer:
    """An upstream's answer whose head has come; all failures are ApiErrors."""

    def __init__(self, response: aiohttp.ClientResponse) -> None:
        self._response = response
        self._has_begun = False
        headers = response.headers
        self.head = AnswerHead(
            status=response.status,
            media_type=_media_type(headers.get("content-type", "")),
            encoding=headers.get("content-encoding", "").strip().lower(),
            retry_after=headers.get("retry-after"),
            headers=headers,
        )

    async def body(self, lease: Lease | None = None) -> bytes:
        """Return the whole body; raises BadGateway where it is cut off or past the size limit.

        It counts for the lease from when it comes; raises Unavailable where there is no room.
        """
        parts = []
        num_bytes = 0
        content = self._response.content
        try:
            while not content.at_eof() and (chunk := await content.readany()):
                num_bytes += len(chunk)
                if num_bytes > MAX_ANSWER_BYTES:
                    raise invalid_response()
                if lease is not None and not lease.take(COST_PER_ANSWER_BYTE * len(chunk)):
                    raise overloaded("The server has as many bytes in flight as its memory allows")
                parts.append(chunk)
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise _api_error(error) from error
        return b"".join(parts)

    async def chunk(self) -> bytes:
        """Return what has come of a stream, at least one byte, or nothing at its end."""
        try:
            chunk = await self._response.content.readany()
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            if isinstance(error, TimeoutError) and not self._has_begun:
                raise _api_error(error) from error  # slow is not broken: it is not asked twice
            raise broken_stream() from error
        self._has_begun = True
        return chunk

    async def finish(self) -> None:
        """Wait a moment for the end, so that the connection can be used again."""
        if self._response.content.at_eof():
            return
        try:
            async with asyncio.timeout(FINISH_SECONDS):
                while await self._response.content.readany():
                    pass
        except (aiohttp.ClientError, TimeoutError, OSError):
            pass


class Upstream:
    """A base URL, the endpoints behind it and the dialect spoken there; owner of nothing."""

    def __init__(
        self,
        connections: Connections,
        base_url: str,
        dialect: Dialect,
        endpoints: Endpoints,
        access: Access | None = None,
        name: str | None = None,
        dialect_name: str = "openai",
        render: RenderApart | None = None,
    ) -> None:
        """`name` is what logs and traces call it: by default the address of its URL.

        `render` makes a prompt of a chat, where the dialect needs one; it raises ApiError.
        """
        self.dialect = dialect
        self._render = render
        self._connections = connections
        self._endpoints = endpoints
        self._access = access or Access()
        base_url = base_url.rstrip("/")
        has_path = bool(URL(base_url).path.strip("/"))
        self._api = URL(base_url if has_path else base_url + dialect.base_path)
        # Where a server has its own endpoints beside OpenAI's: above /v1.
        self._root = URL(str(self._api).removesuffix("/v1"))
        self._url = lru_cache(_KEPT_URLS)(self._make_url)
        self._own_headers = [("accept-encoding", "identity"), ("host", self._api.authority)]
        self.target = Target(
            name or self._api.authority, self._api.host or "", self._api.port, dialect_name
        )

    async def rendered(self, call: Call) -> Call:
        """Return a chat with its prompt, for a dialect that raised NotRendered; raises ApiError."""
        assert self._render is not None
        assert isinstance(call.asked, ChatCompletionRequest)
        return dataclasses.replace(call, prompt=await self._render(call.asked.messages))

    async def choose(self, failed: Endpoint | None = None) -> Endpoint:
        """Return the endpoint for an attempt, if possible another than the one that failed.

        Raises BadGateway where there is none.
        """
        endpoint = await self._endpoints.choose(failed)
        if endpoint is None:
            raise _unreachable()
        return endpoint

    def error(self, head: AnswerHead, body: bytes) -> ApiError:
        """Translate an answer with an error status.

        Where the proxy shows credentials of its own, their refusal is none of the client's.
        """
        if head.status in (401, 403) and self._access.has_own_key:
            log.error("upstream_refused_credentials", upstream=self.target.name, status=head.status)
            return BadGateway(GENERIC, code=ErrorCode.UPSTREAM_ERROR)
        return self.dialect.error(head, body)

    def post(
        self,
        endpoint: Endpoint,
        request: UpstreamRequest,
        request_id: str,
        from_client: Headers | None = None,
        trace_headers: Sequence[tuple[str, str]] = (),
    ) -> Question:
        """Return a context that sends a request and gives its answer, once that has a head.

        `from_client` are all headers of the client.
        """
        return Question(
            self._connections.requests,
            self._access,
            self._endpoints,
            endpoint,
            "POST",
            self._url(endpoint.host, request.path, request.is_at_root),
            self._headers([*request.headers, *trace_headers], request_id, from_client),
            request.body,
        )

    def get(
        self, endpoint: Endpoint, path: str, timeout_seconds: float, request_id: str = ""
    ) -> Question:
        """As `post`, for what is only read: on connections of its own, so that it never queues.

        `path` is not escaped any more.
        """
        return Question(
            self._connections.side,
            self._access,
            self._endpoints,
            endpoint,
            "GET",
            self._url(endpoint.host, path, False),
            self._headers([], request_id),
            timeout=aiohttp.ClientTimeout(total=timeout_seconds),
        )

    def _make_url(self, host: str, path: str, is_at_root: bool) -> URL:
        base = self._root if is_at_root else self._api
        return URL(str(base.with_host(host)).rstrip("/") + path, encoded=True)

    def _headers(
        self, headers: Headers, request_id: str, from_client: Headers | None = None
    ) -> Headers:
        """Return what is sent of these and of the proxy's own headers, but for credentials."""
        headers += self._own_headers
        if request_id:
            headers.append(("x-request-id", request_id))
        return self._access.passed(headers, from_client or [])


class Question:
    """One request to an endpoint: a context that gives the answer, whose head has come.

    At its end the connection is closed unless all was read. Entering it raises BadGateway or
    DeadlineExceeded.
    """

    __slots__ = (
        *("_access", "_body", "_endpoint", "_endpoints", "_headers", "_method", "_response"),
        *("_session", "_timeout", "_url"),
    )

    def __init__(
        self,
        session: aiohttp.ClientSession,
        access: Access,
        endpoints: Endpoints,
        endpoint: Endpoint,
        method: str,
        url: URL,
        headers: Headers,
        body: bytes | None = None,
        timeout: aiohttp.ClientTimeout | None = None,
    ) -> None:
        """`headers` are all but credentials, `timeout` is given where it is not the session's."""
        self._session = session
        self._access = access
        self._endpoints = endpoints
        self._endpoint = endpoint
        self._method = method
        self._url = url
        self._headers = headers
        self._body = body
        self._timeout = timeout or session.timeout
        self._response: aiohttp.ClientResponse | None = None

    async def __aenter__(self) -> Answer:
        self._endpoint.num_outstanding += 1
        try:
            shown = await self._access.shown()
            answer = await self._answer(shown)
            if answer.head.status == 401 and self._access.may_try_again(shown):
                self._close()
                answer = await self._answer(await self._access.shown())
        except BaseException as error:
            self._end(error)
            raise
        self._body = None  # it may be long, and the answer, too
        return answer

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._end(error)

    async def _answer(self, shown: Headers) -> Answer:
        """Send the request with these credentials, and wait for the answer's head."""
        headers = _with(self._headers, shown) if shown else self._headers
        access = self._access
        has_agent = "user-agent" in [name for name, _ in headers]
        try:
            self._response = await self._session.request(
                self._method,
                self._url,
                data=None if self._body is None else aiohttp.BytesPayload(self._body),
                headers=headers,
                skip_auto_headers=None if has_agent else _NOT_ADDED,
                allow_redirects=False,
                timeout=self._timeout,
                ssl=access.context,
                server_hostname=access.server_name,
            )
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise _api_error(error) from error
        except RuntimeError as error:
            if not self._session.closed:
                raise
            raise _unreachable() from error  # other settings hold by now
        return Answer(self._response)

    def _end(self, error: BaseException | None) -> None:
        if isinstance(error, ApiError) and error.code == ErrorCode.UPSTREAM_CONNECTION_FAILED:
            self._endpoints.avoid(self._endpoint)
        self._close()
        self._endpoint.num_outstanding -= 1

    def _close(self) -> None:
        """Return the connection to the pool where all was read, close it otherwise.

        So the upstream learns at once that nobody listens any more.
        """
        if self._response is not None:
            self._response.close()
            self._response = None


def _with(headers: Headers, shown: Headers) -> Headers:
    """Return headers with the proxy's own credentials instead of any of the same name."""
    names = {name for name, _ in shown}
    return [*(pair for pair in headers if pair[0] not in names), *shown]


def _api_error(error: Exception) -> ApiError:
    connecting = (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError)
    if isinstance(error, connecting):
        return _unreachable()
    if isinstance(error, TimeoutError):
        return DeadlineExceeded("The upstream did not answer in time.")
    if isinstance(error, aiohttp.ClientResponseError | aiohttp.ClientPayloadError):
        return invalid_response()
    return BadGateway(
        "The upstream closed the connection without an answer.",
        code=ErrorCode.UPSTREAM_CONNECTION_FAILED,
    )


def _unreachable() -> BadGateway:
    return BadGateway("The upstream cannot be reached.", code=ErrorCode.UPSTREAM_CONNECTION_FAILED)
