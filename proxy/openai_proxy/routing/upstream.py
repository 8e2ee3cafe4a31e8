"""One upstream and the connections to it; the only module that knows the HTTP client.

Import it late: the client takes longer to import than all the rest of the proxy.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import aiohttp
import structlog
from yarl import URL

from openai_protocol.errors import ApiError, BadGateway, DeadlineExceeded, ErrorCode
from openai_proxy.dialects.base import AnswerHead, Dialect, Headers, UpstreamRequest
from openai_proxy.dialects.openai import GENERIC, broken_stream, invalid_response
from openai_proxy.exchange import Target
from openai_proxy.routing.access import Access
from openai_proxy.routing.endpoints import Endpoint, Endpoints

log = structlog.get_logger("openai_proxy")

MAX_ANSWER_BYTES = 64 * 1024 * 1024
# Below the 5 s after which uvicorn, like many, closes an idle connection: a request sent on a
# connection that is just being closed fails, and cannot always be repeated.
IDLE_CONNECTION_SECONDS = 4.0
FINISH_SECONDS = 0.2


@dataclass(frozen=True, slots=True)
class ClientOptions:
    """How to connect; times in seconds."""

    connect_timeout_seconds: float
    read_timeout_seconds: float
    max_connections: int
    use_env_proxies: bool = False


def open_session(options: ClientOptions) -> aiohttp.ClientSession:
    """Return the one client session: pooled, without cookies; close it at the end."""
    connector = aiohttp.TCPConnector(
        limit=options.max_connections, keepalive_timeout=IDLE_CONNECTION_SECONDS
    )
    return aiohttp.ClientSession(
        connector=connector,
        cookie_jar=aiohttp.DummyCookieJar(),
        auto_decompress=False,
        trust_env=options.use_env_proxies,
        timeout=aiohttp.ClientTimeout(
            total=None,
            sock_connect=options.connect_timeout_seconds,
            sock_read=options.read_timeout_seconds,
        ),
        skip_auto_headers=("User-Agent",),
    )


class Answer:
    """An upstream's answer whose head has come; all failures are ApiErrors."""

    def __init__(self, response: aiohttp.ClientResponse) -> None:
        self._response = response
        self._has_begun = False
        headers = response.headers
        self.head = AnswerHead(
            status=response.status,
            media_type=headers.get("content-type", "").partition(";")[0].strip().lower(),
            encoding=headers.get("content-encoding", "").strip().lower(),
            retry_after=headers.get("retry-after"),
            headers=headers,
        )

    async def body(self) -> bytes:
        """Return the whole body; raises BadGateway where it is cut off or past the size limit."""
        parts = []
        num_bytes = 0
        try:
            while chunk := await self._response.content.readany():
                num_bytes += len(chunk)
                if num_bytes > MAX_ANSWER_BYTES:
                    raise invalid_response()
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
        session: aiohttp.ClientSession,
        side_session: aiohttp.ClientSession,
        base_url: str,
        dialect: Dialect,
        endpoints: Endpoints,
        access: Access | None = None,
    ) -> None:
        self.base_url = base_url.rstrip("/")
        self.dialect = dialect
        self._session = session
        self._side_session = side_session
        self._endpoints = endpoints
        self._access = access or Access()
        has_path = bool(URL(base_url).path.strip("/"))
        self._api = URL(self.base_url if has_path else self.base_url + dialect.base_path)
        # Where a server has its own endpoints beside OpenAI's: above /v1.
        self._root = URL(str(self._api).removesuffix("/v1"))
        self.target = Target(self._api.authority, self._api.host or "", self._api.port)

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
            log.error("upstream_refused_credentials", upstream=self.base_url, status=head.status)
            return BadGateway(GENERIC, code=ErrorCode.UPSTREAM_ERROR)
        return self.dialect.error(head, body)

    @asynccontextmanager
    async def post(
        self,
        endpoint: Endpoint,
        request: UpstreamRequest,
        request_id: str,
        from_client: Headers | None = None,
        trace_headers: Headers | None = None,
    ) -> AsyncIterator[Answer]:
        """Send a request and wait for the answer's head; closes the connection unless all was read.

        `from_client` are all headers of the client. Raises BadGateway or DeadlineExceeded.
        """
        headers = self._access.passed(request.headers, from_client or [])
        headers = [*headers, *(trace_headers or ())]
        sent = _Sent("POST", self._url(endpoint, request.path, request.is_at_root), request.body)
        async with self._shown(self._session, endpoint, sent, headers, request_id) as answer:
            yield answer

    @asynccontextmanager
    async def get(
        self, endpoint: Endpoint, path: str, timeout_seconds: float, request_id: str = ""
    ) -> AsyncIterator[Answer]:
        """As `post`, for what is only read: on connections of its own, so that it never queues.

        `path` is not escaped any more.
        """
        timeout = aiohttp.ClientTimeout(total=timeout_seconds)
        sent = _Sent("GET", self._url(endpoint, path), None, timeout)
        headers = self._access.passed([], [])
        async with self._shown(self._side_session, endpoint, sent, headers, request_id) as answer:
            yield answer

    def _url(self, endpoint: Endpoint, path: str, is_at_root: bool = False) -> URL:
        base = self._root if is_at_root else self._api
        return URL(str(base.with_host(endpoint.host)).rstrip("/") + path, encoded=True)

    @asynccontextmanager
    async def _shown(
        self,
        session: aiohttp.ClientSession,
        endpoint: Endpoint,
        sent: _Sent,
        headers: Headers,
        request_id: str,
    ) -> AsyncIterator[Answer]:
        """Send with the proxy's own credentials, and once more with new ones where they help."""
        shown = await self._access.shown()
        own = [*headers, *self._own_headers(headers, request_id)]
        async with self._exchange(session, endpoint, sent, _with(own, shown)) as answer:
            if answer.head.status != 401 or not self._access.may_try_again(shown):
                yield answer
                return
        shown = await self._access.shown()
        async with self._exchange(session, endpoint, sent, _with(own, shown)) as answer:
            yield answer

    def _own_headers(self, headers: Headers, request_id: str) -> Headers:
        own = [("accept-encoding", "identity")]
        if not any(name == "host" for name, _ in headers):
            own.append(("host", self._api.authority))
        if request_id:
            own.append(("x-request-id", request_id))
        return own

    @asynccontextmanager
    async def _exchange(
        self,
        session: aiohttp.ClientSession,
        endpoint: Endpoint,
        sent: _Sent,
        headers: Headers,
    ) -> AsyncIterator[Answer]:
        endpoint.num_outstanding += 1
        try:
            async with _exchange(session, sent, headers, self._access) as answer:
                yield answer
        except ApiError as error:
            if error.code == ErrorCode.UPSTREAM_CONNECTION_FAILED:
                self._endpoints.avoid(endpoint)
            raise
        finally:
            endpoint.num_outstanding -= 1


@dataclass(frozen=True, slots=True)
class _Sent:
    """A request but for its headers; `timeout` where it is not the session's."""

    method: str
    url: URL
    body: bytes | None
    timeout: aiohttp.ClientTimeout | None = None


def _with(headers: Headers, shown: Headers) -> Headers:
    """Return headers with the proxy's own credentials instead of any of the same name."""
    names = {name for name, _ in shown}
    return [*(pair for pair in headers if pair[0] not in names), *shown]


@asynccontextmanager
async def _exchange(
    session: aiohttp.ClientSession, sent: _Sent, headers: Headers, access: Access
) -> AsyncIterator[Answer]:
    try:
        response = await session.request(
            sent.method,
            sent.url,
            data=sent.body,
            headers=headers,
            allow_redirects=False,
            timeout=sent.timeout or session.timeout,
            ssl=access.context,
            server_hostname=access.server_name,
        )
    except (aiohttp.ClientError, TimeoutError, OSError) as error:
        raise _api_error(error) from error
    except RuntimeError as error:
        if not session.closed:
            raise
        raise _unreachable() from error  # other settings hold by now
    try:
        yield Answer(response)
    finally:
        # Returns the connection to the pool where all was read, closes it otherwise: so the
        # upstream learns at once that nobody listens any more.
        response.close()


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
