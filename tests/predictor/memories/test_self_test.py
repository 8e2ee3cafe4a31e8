"""The self-test at load notices what would make deterministic mode give other bytes."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from kserve_llamacpp.engine.self_test import SelfTest
from tests.predictor.memories.model_run import SLOTS, STEP_TOKENS, Load, RecordingBackend
from tests.predictor.tiny_models import ARCHITECTURES

pytestmark = pytest.mark.model


@pytest.fixture(params=ARCHITECTURES)
def backend(request: pytest.FixtureRequest, load: Load) -> Iterator[RecordingBackend]:
    """A model of each architecture, as deterministic mode loads it; its memory is empty."""
    backend = load(request.param, kv_cache="split", is_exact=True)
    backend.memory.clear()
    yield backend
    backend.memory.clear()


def _failures(backend: RecordingBackend) -> list[str]:
    return SelfTest(backend, SLOTS, STEP_TOKENS).failures()


def test_a_state_that_comes_back_otherwise(
    backend: RecordingBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A state of which some bytes change on the host is noticed, whatever the kind of memory."""
    save = backend.memory.save

    def save_damaged(id: int) -> bytearray | None:
        state = save(id)
        assert state is not None
        # Of an attention's the middle of the last layer's values: the end is cut off.
        end = 1000 if backend.has_window or not backend.can_cut else 20_000
        for at in range(len(state) - end - 1000, len(state) - end, 2):  # the numbers' mantissas
            state[at] ^= 0x60
        return state

    monkeypatch.setattr(backend.memory, "save", save_damaged)

    assert "from the host" in _failures(backend)


@pytest.mark.parametrize("architecture", ["llama", "phi3", "qwen3", "gemma3", "jamba"])
def test_a_kernel_that_depends_on_the_shape(load: Load, architecture: str) -> None:
    """Attention over an F16 cache gives other bits in parts of another size: the mode's reason."""
    backend = load(architecture, kv_cache="split", flash_attn=True)
    backend.memory.clear()

    assert "in small parts" in _failures(backend)


def test_nothing_is_left_behind(load: Load) -> None:
    """The self-test passes with what the mode loads, and leaves an empty memory to a second one."""
    backend = load("llama", kv_cache="split", is_exact=True)
    backend.memory.clear()

    assert _failures(backend) == []
    assert _failures(backend) == []
