"""Prompts that llama.cpp's own tokenizer does not survive; the engine does."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from tests.processes import Predictor

pytestmark = pytest.mark.model

KEY = b"tokenizer.ggml.pre"
RUN = "A" * 30_000


@pytest.fixture(scope="module")
def server(model_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Predictor]:
    """A predictor whose model has the pre-tokenizer of Mistral's newer models."""
    data = model_path.read_bytes()
    start = data.index(KEY) + len(KEY)
    value = data.index(b"smollm", start)
    assert value < start + 20
    path = tmp_path_factory.mktemp("model") / "tekken.gguf"
    path.write_bytes(data[:value] + b"tekken" + data[value + 6 :])
    with Predictor(path, "--n_ctx=2048", "--max_sequences=2") as server:
        yield server.ready()


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/completions", {"prompt": RUN}),
        ("/v1/completions", {"prompt": RUN, "n": 3, "stream": True}),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": RUN}]}),
        ("/v1/models/smollm2:predict", {"instances": [RUN]}),
    ],
)
def test_a_run_of_letters_ends_no_engine(server: Predictor, path: str, body: Any) -> None:
    """30,000 letters A are refused by their tokens, and the same engine answers the next."""
    pid = server.engine().pid
    with httpx2.Client(base_url=server.url, timeout=60) as http:
        refused = http.post(path, json=body)
        answered = http.post("/v1/completions", json={"prompt": "A" * 3000, "max_tokens": 1})
    assert refused.status_code == 400, refused.text
    assert refused.json()["error"]["code"] == "context_length_exceeded"
    assert "your prompt has" in refused.json()["error"]["message"]
    assert answered.status_code == 200, answered.text
    assert server.engine().pid == pid
