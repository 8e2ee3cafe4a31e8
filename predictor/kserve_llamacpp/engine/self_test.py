"""Whether a model computes the same bits in any company: deterministic mode's self-test.

llama.cpp chooses its kernels by shape. What could differ is tried on the real model and device: a
context of over 512 tokens, prefilled in large parts, in small ones, in rows of its own, beside
others, in batches of 64 and more rows, with another sequence evicted meanwhile, and brought back
from the host.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Protocol

from kserve_llamacpp.engine.backend import Row
from kserve_llamacpp.engine.cache.memory import Memory

_NUM_TOKENS = 576
_NUM_DECODED = 3
_SMALL_PART = 37
_LARGE_PART = 70  # over 64 rows together with the others'
_TAIL = 2 * _LARGE_PART


class ExactBackend(Protocol):
    """What the self-test asks of a model; the real one is `LlamaBackend`."""

    n_vocab: int
    max_length: int
    can_cut: bool

    @property
    def memory(self) -> Memory:
        """The cells of its sequences."""
        ...

    def decode(self, rows: list[Row]) -> None:
        """Compute a batch; raises KVCacheFull or DecodeFailed."""
        ...

    def logits(self, row: int) -> bytes:
        """Return the logits of an output row of the batch computed last."""
        ...


class SelfTest:
    """Compares a sequence's logits between ways to compute it; owner: who starts the engine.

    Nothing may be in memory before, and nothing is afterwards.
    """

    def __init__(self, backend: ExactBackend, num_slots: int, step_tokens: int) -> None:
        self._backend = backend
        self._others = list(range(2, min(num_slots, 4)))
        self._step_tokens = step_tokens
        count = min(_NUM_TOKENS, backend.max_length - _NUM_DECODED)
        self._tokens = [(at * (7 * at + 13) + 5) % backend.n_vocab for at in range(count)]
        self._second = min(1, num_slots - 1)  # the slot of those that are compared

    def failures(self) -> list[str]:
        """Return what gave other bits than the sequence alone in large parts; empty: nothing.

        Raises DecodeFailed or KVCacheFull.
        """
        state, expected = self._reference()
        ways: dict[str, Callable[[], list[bytes]]] = {
            "in small parts": self._in_small_parts,
            "from the host": lambda: self._from_host(state, expected[0]),
            "beside others": lambda: self._beside_others(state),
        }
        failed = [name for name, way in ways.items() if way() != expected]
        self._drop_all()
        return failed

    def _reference(self) -> tuple[bytearray | None, list[bytes]]:
        """Compute the sequence alone in large parts; also return its state before decode."""
        self._prefill(0, 0, self._step_tokens)
        last = self._backend.logits(self._last_row)
        state = self._backend.memory.save(0)
        return state, [last, *self._decode(0)]

    def _in_small_parts(self) -> list[bytes]:
        self._drop_all()
        split = len(self._tokens) - 5
        for start in range(0, split, _SMALL_PART):
            self._run(self._rows(self._second, start, min(split, start + _SMALL_PART)))
        for at in range(split, len(self._tokens)):
            self._run(self._rows(self._second, at, at + 1))
        return [self._backend.logits(self._last_row), *self._decode(self._second)]

    def _from_host(self, state: bytearray | None, last: bytes) -> list[bytes]:
        """Bring the sequence back and go on; `last` are its last token's logits."""
        self._drop_all()
        memory, can_cut = self._backend.memory, self._backend.can_cut
        if state is not None and not can_cut and memory.restore(self._second, state):
            return [last, *self._decode(self._second)]
        start = self._restore(state, _TAIL) or self._restore(state, 1)
        self._prefill(self._second, start, self._step_tokens)
        return [self._backend.logits(self._last_row), *self._decode(self._second)]

    def _beside_others(self, state: bytearray | None) -> list[bytes]:
        self._drop_all()
        start = self._restore(state, _TAIL)
        company = self._company()
        for part, at in enumerate(range(start, len(self._tokens), _LARGE_PART)):
            if part == 1 and self._others:
                self._backend.memory.drop(self._others[0])
                company = self._company()
            end = min(len(self._tokens), at + _LARGE_PART)
            self._run([*next(company), *self._rows(self._second, at, end)])
        return [self._backend.logits(self._last_row), *self._decode(self._second, company)]

    def _company(self) -> Iterator[list[Row]]:
        """Yield rows of other sequences: first the beginnings of their prompts, then one each."""
        held = dict.fromkeys(self._others, 0)
        for slot in self._others:
            self._backend.memory.drop(slot)
        while True:
            rows = []
            for slot in self._others:
                count = 5 + slot if held[slot] == 0 else 1
                rows += self._rows(slot, held[slot], held[slot] + count, is_output=False)
                held[slot] += count
            yield rows

    def _restore(self, state: bytearray | None, num_cut: int) -> int:
        """Bring the sequence back without its end; return from where to go on, 0 if impossible."""
        if state is None or not self._backend.can_cut:
            return 0
        memory = self._backend.memory
        start = max(0, len(self._tokens) - num_cut)
        if not memory.restore(self._second, state):
            memory.drop(self._second)
            return 0
        memory.cut(self._second, start)
        if not memory.holds(self._second, start):
            memory.drop(self._second)
            return 0
        return start

    def _prefill(self, slot: int, start: int, size: int) -> None:
        for at in range(start, len(self._tokens), size):
            self._run(self._rows(slot, at, min(len(self._tokens), at + size)))

    def _decode(self, slot: int, company: Iterator[list[Row]] | None = None) -> list[bytes]:
        """Decode a few fixed tokens; return the logits of each."""
        logits = []
        for at in range(_NUM_DECODED):
            row = Row(at % self._backend.n_vocab, len(self._tokens) + at, slot, True)
            self._run([*(next(company) if company is not None else []), row])
            logits.append(self._backend.logits(self._last_row))
        return logits

    def _rows(self, slot: int, start: int, end: int, is_output: bool = True) -> list[Row]:
        return [
            Row(self._tokens[at % len(self._tokens)], at, slot, is_output and at == end - 1)
            for at in range(start, end)
        ]

    def _run(self, rows: list[Row]) -> None:
        self._backend.decode(rows)
        self._last_row = len(rows) - 1

    def _drop_all(self) -> None:
        for slot in {0, self._second, *self._others}:
            self._backend.memory.drop(slot)
