"""The tiny models can tell whether a cache is right."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from bench.bare_engine import bare_engine, engine_options
from kserve_llamacpp.wire.frames import Output, Rejected, SamplingParams, Submit
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
        with engine(tiny_models[architecture]) as ask:  # its own: nothing is in a cache
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
def engine(model_path: Path) -> Iterator[Callable[[list[int]], list[int]]]:
    """Run an engine; yield a function that returns the tokens which follow a prompt."""
    sizes = (f"--n_ctx={CONTEXT}", "--n_threads=1", "--max_sequences=1", "--host_cache_mib=0")
    ids = iter(range(1, 100))
    with bare_engine(engine_options(model_path, *sizes)) as running:

        def ask(prompt: list[int]) -> list[int]:
            sampling = SamplingParams(temperature=0)
            running.send(Submit(next(ids), "r", prompt, NUM_TOKENS, sampling))
            tokens: list[int] = []
            while True:
                for event in running.next_step().events:
                    assert not isinstance(event, Rejected), event.reason
                    tokens += event.tokens if isinstance(event, Output) else []
                    if isinstance(event, Output) and event.finish_reason:
                        return tokens

        yield ask
    assert running.exit_status == 0
