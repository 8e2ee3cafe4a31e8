"""The tiny models can tell whether a cache is right."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import pytest

from kserve_llamacpp.engine.frames import (
    FrameReader,
    Hello,
    Output,
    Rejected,
    SamplingParams,
    Step,
    Submit,
    decode_report,
    encode,
)
from kserve_llamacpp.engine.worker_options import WorkerOptions
from tests.predictor.tiny_models import ARCHITECTURES, CONTEXT, write_tiny_model

pytestmark = pytest.mark.model

PROMPT = list(b"the quick brown fox jumps over the lazy dog and on. " * 6)
NUM_TOKENS = 64


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_text_depends_on_the_whole_prompt(
    tiny_models: dict[str, Path], architecture: str
) -> None:
    """Another token or another order far back changes the text; no text is one token for ever."""
    other_token = [ord("T"), *PROMPT[1:]]
    other_order = [*PROMPT[:200], PROMPT[201], PROMPT[200], *PROMPT[202:]]
    assert other_order != PROMPT
    texts = []
    for prompt in (PROMPT, other_token, other_order, PROMPT):
        with worker(tiny_models[architecture]) as ask:  # its own: nothing is in a cache
            texts.append(ask(prompt))
    assert texts[0] == texts[3]
    assert len({tuple(text) for text in texts}) == 3
    assert [len(text) for text in texts] == [NUM_TOKENS] * len(texts)
    assert min(len(set(text)) for text in texts) > 8


def test_a_model_is_written_alike_each_time(tmp_path: Path) -> None:
    """Figures and failures of one run are those of the next."""
    (tmp_path / "again").mkdir()
    for architecture in ARCHITECTURES:
        first = write_tiny_model(tmp_path, architecture).read_bytes()
        assert write_tiny_model(tmp_path / "again", architecture).read_bytes() == first


@contextmanager
def worker(model_path: Path) -> Iterator[Callable[[list[int]], list[int]]]:
    """Run an engine; yield a function that returns the tokens which follow a prompt."""
    options = WorkerOptions(
        model_path=str(model_path),
        n_ctx=CONTEXT,
        n_batch=512,
        n_threads=1,
        n_gpu_layers=0,
        max_sequences=1,
        kv_cache="unified",
        is_deterministic=False,
        host_cache_mib=0,
        target_step_ms=100,
        log_level="error",
        log_format="json",
    )
    ours, theirs = socket.socketpair()
    command = [sys.executable, "-m", "kserve_llamacpp.engine.worker", str(theirs.fileno())]
    process = subprocess.Popen(
        [*command, msgspec.json.encode(options).decode()], pass_fds=[theirs.fileno()]
    )
    theirs.close()
    with ours:
        ours.settimeout(60)
        reader = FrameReader()
        ids = iter(range(1, 100))

        def reports() -> Iterator[object]:
            while data := ours.recv(1 << 16):
                yield from (decode_report(payload) for payload in reader.feed(data))

        def ask(prompt: list[int]) -> list[int]:
            sampling = SamplingParams(temperature=0)
            ours.sendall(encode(Submit(next(ids), "r", prompt, NUM_TOKENS, sampling)))
            tokens: list[int] = []
            for report in reports():
                events = report.events if isinstance(report, Step) else []
                for event in events:
                    assert not isinstance(event, Rejected), event.reason
                    tokens += event.tokens if isinstance(event, Output) else []
                    if isinstance(event, Output) and event.finish_reason:
                        return tokens
            raise AssertionError("the engine ended")

        for report in reports():
            if isinstance(report, Hello):
                break
        yield ask
    assert process.wait(10) == 0
