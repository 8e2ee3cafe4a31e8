"""Requests made from the API's own description: no 5xx, and no answer that it does not describe."""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

import pytest
from aiohttp import web

from tests.proxy import harness
from tests.proxy.harness import COMPLETION, DONE, StandIn, chunk, start_stream
from tests.proxy.test_api_generate import completion, piece

pytest.importorskip("schemathesis")

CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_schema_conformance",
)
# The same endpoints once more
TWINS = "^/v1/(api|health|metrics|rerank|tokenize|detokenize|$)"
SECONDS = 100


async def respond(request: web.Request) -> web.StreamResponse:
    """Answer as an upstream that has everything."""
    asked: dict[str, Any] = json.loads(await request.read())
    is_chat = request.path == "/v1/chat/completions"
    if request.path not in ("/v1/chat/completions", "/v1/completions"):
        return web.json_response({"data": []})
    if not asked.get("stream"):
        return web.json_response(COMPLETION if is_chat else completion("Hello"))
    response = await start_stream(request)
    await response.write((chunk("Hello") if is_chat else piece("Hello")) + DONE)
    return response


async def test_described_requests(upstream: StandIn) -> None:
    """Whatever the description allows, or nearly allows, is served or refused as it says."""
    upstream.respond = respond
    async with harness.proxy(upstream_url=upstream.url) as proxy:
        fuzzer = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "schemathesis.cli", "run", f"{proxy.url}/openapi.json",
            "--exclude-path-regex", TWINS, "--phases", "fuzzing", "--max-examples", "15",
            "--seed", "1", "--workers", "1",
            "--checks", ",".join(CHECKS), "--no-color",
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
        )  # fmt: skip
        try:
            told, _ = await asyncio.wait_for(fuzzer.communicate(), SECONDS)
        finally:
            if fuzzer.returncode is None:
                fuzzer.kill()
                await fuzzer.wait()
    assert fuzzer.returncode == 0, told.decode()[-6000:]
