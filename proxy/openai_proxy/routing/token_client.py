"""Fetches tokens with the HTTP client; import it late, as `upstream`."""

from __future__ import annotations

import aiohttp

from openai_proxy.routing.client_tls import ClientTLS, ClientTLSContext
from openai_proxy.routing.oauth2 import PostForm

TIMEOUT_SECONDS = 10.0
MAX_ANSWER_BYTES = 256 * 1024


def form_poster(session: aiohttp.ClientSession, tls: ClientTLS | None = None) -> PostForm:
    """Return a function that posts forms on a session, through its proxies if it has some.

    `tls` is the token server's: with one, its authorities and certificate are used.
    """
    context = None
    if tls is not None and tls != ClientTLS():
        context = ClientTLSContext(tls, "token server")

    async def post(url: str, form: dict[str, str], headers: dict[str, str]) -> tuple[int, bytes]:
        try:
            async with session.post(
                url,
                data=form,
                headers={"accept-encoding": "identity", **headers},
                skip_auto_headers=("User-Agent",),
                allow_redirects=False,  # a secret goes where the settings say, and nowhere else
                timeout=aiohttp.ClientTimeout(total=TIMEOUT_SECONDS),
                ssl=True if context is None else context.current(),
                server_hostname=None if context is None else context.server_name,
            ) as response:
                return response.status, await _read(response)
        except aiohttp.ClientError as error:
            # Not `from`: such an error may quote the request.
            raise ConnectionError(type(error).__name__) from None

    return post


async def _read(response: aiohttp.ClientResponse) -> bytes:
    body = b""
    while chunk := await response.content.readany():
        body += chunk
        if len(body) > MAX_ANSWER_BYTES:
            raise ConnectionError("the answer is too long")
    return body
