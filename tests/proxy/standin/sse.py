"""Writes streams as the servers that stand-ins stand in for do."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

from aiohttp import web


async def write_stream(
    request: web.Request, parts: Iterable[bytes], media_type: str = "text/event-stream"
) -> web.StreamResponse:
    """Answer with a stream, each part in a write of its own."""
    response = web.StreamResponse(headers={"content-type": media_type})
    await response.prepare(request)
    for part in parts:
        await response.write(part)
        await asyncio.sleep(0)
    return response
