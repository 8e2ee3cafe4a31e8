"""Chat templates of strangers: neither their compilation nor a chat holds up the others."""

from __future__ import annotations

import asyncio
import signal
import time
from pathlib import Path

import httpx2
import pytest

from tests.processes import Predictor

pytestmark = pytest.mark.model

HOSTILE = "{{ 9**(9**8) }}"
CUBIC = (
    "{% for a in messages %}{% for b in messages %}{% for c in messages %}"
    "{% endfor %}{% endfor %}{% endfor %}{{ messages[0].content }}"
)


def test_a_template_that_never_compiles_leaves_the_rest(model_path: Path, tmp_path: Path) -> None:
    """The model is ready, completions are answered, and the server ends when it is asked to."""
    file = tmp_path / "hostile.jinja"
    file.write_text(HOSTILE, encoding="utf-8")
    with Predictor(model_path, "--chat_template", str(file)) as server:
        server.ready()
        answer = httpx2.post(
            f"{server.url}/v1/completions", json={"prompt": "One", "max_tokens": 1}, timeout=30
        )
        assert answer.status_code == 200
        began = time.monotonic()
        server.signal(signal.SIGTERM)
        assert server.exit_status() == 0
        assert time.monotonic() - began < 8  # the template's time alone is longer


async def test_a_chat_that_takes_long_holds_up_nobody(model_path: Path, tmp_path: Path) -> None:
    """While a chat of 4,096 messages is rendered, one of a single message is answered."""
    file = tmp_path / "cubic.jinja"
    file.write_text(CUBIC, encoding="utf-8")
    with Predictor(model_path, "--chat_template", str(file)) as server:
        server.ready()
        async with httpx2.AsyncClient(base_url=server.url, timeout=60) as http:
            many = {"messages": [{"role": "user", "content": "x"}] * 4096}
            large = asyncio.create_task(http.post("/v1/chat/completions", json=many))
            await asyncio.sleep(0.5)
            few = {"messages": [{"role": "user", "content": "One"}], "max_tokens": 1}
            answer = await http.post("/v1/chat/completions", json=few)
            assert answer.status_code == 200
            assert not large.done()
            large.cancel()
