"""Deterministic mode on a model whose bits depend on company: one request at a time."""

from __future__ import annotations

import pytest

from kserve_llamacpp.wire.frames import SamplingParams
from tests.predictor.memories.model_run import Answer, Load, ModelRun, RecordingBackend, words

pytestmark = pytest.mark.model

_PROMPTS = [words(1, 640), [*words(1, 640)[:600], *words(2, 50)], words(3, 130), words(4, 30)]
_NUM_TOKENS = 24
_GREEDY = SamplingParams(temperature=0)


@pytest.fixture
def backend(load: Load) -> RecordingBackend:
    """A model with a KV cache whose kernels depend on the shape of the batch."""
    return load("llama", kv_cache="split", flash_attn=True)


def _alone(backend: RecordingBackend) -> list[Answer]:
    answers = []
    for prompt in _PROMPTS:
        run = ModelRun(backend, is_deterministic=True)
        answers.append(run.ask(prompt, _NUM_TOKENS))
    return answers


def test_it_is_told(backend: RecordingBackend) -> None:
    """The log says what differed, and how requests are served for that reason."""
    run = ModelRun(backend, is_deterministic=True)

    (warning,) = run.logs
    assert (warning["event"], warning["log_level"]) == ("self_test_failed", "warning")
    assert "in small parts" in warning["failed"]
    assert "one at a time, from an empty cache" in warning["hint"]


def test_the_same_bytes_whatever_else_comes(backend: RecordingBackend) -> None:
    """All that come at once are answered, each with what it gets alone, to the last bit."""
    run = ModelRun(backend, is_deterministic=True)
    order = [2, 0, 1, 3, 0, 2, 3, 1]
    answers = [run.submit(_PROMPTS[at], _NUM_TOKENS, tenant="ab"[at % 2]) for at in order]
    run.finish()

    assert max(stats.running for stats in run.stats) == 1
    assert run.total("cache_hits") == 0
    assert all(len(set(batch)) == 1 for batch in backend.batches)
    alone = _alone(backend)
    assert [answer.content for answer in answers] == [alone[at].content for at in order]


def test_after_a_preemption_or_a_failed_batch(backend: RecordingBackend) -> None:
    """Who begins again computes the same parts again, and goes on with the same bytes."""
    run = ModelRun(backend, is_deterministic=True)
    answers = [run.submit(prompt, _NUM_TOKENS) for prompt in _PROMPTS]
    run.steps(8)
    running = run.scheduler._running[0]
    run.scheduler._preempt(running)
    run.steps(4)
    backend.faults.append(0)
    run.finish()

    assert run.total("preemptions") >= 1
    assert [answer.content for answer in answers] == [each.content for each in _alone(backend)]


@pytest.mark.parametrize("cut", [1, 10, _NUM_TOKENS - 1])
def test_resume(backend: RecordingBackend, cut: int) -> None:
    """Tokens of an earlier engine are computed one by one, as that one did; the rest is its own."""
    alone = _alone(backend)
    run = ModelRun(backend, is_deterministic=True)
    rests = [
        run.submit(prompt, _NUM_TOKENS, _GREEDY, resume=whole.tokens[:cut])
        for prompt, whole in zip(_PROMPTS, alone, strict=True)
    ]
    run.finish()

    assert [rest.logprobs for rest in rests] == [whole.logprobs[cut:] for whole in alone]


def test_parts_of_other_sizes_would_differ(backend: RecordingBackend) -> None:
    """Without the mode, the same prompts in company get other bits: the tests above can fail."""
    run = ModelRun(backend)
    answers = [run.submit(prompt, _NUM_TOKENS) for prompt in _PROMPTS]
    run.finish()

    assert [answer.content for answer in answers] != [each.content for each in _alone(backend)]
