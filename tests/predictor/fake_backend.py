"""A model with known answers: it counts cells, keeps its batches, and checks what it is fed."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Collection

from kserve_llamacpp.engine.backend import KVCacheFull, LogitsNotFinite, Row
from kserve_llamacpp.engine.sampling.seed import draw_seed
from kserve_llamacpp.wire.frames import Logprobs, SamplingParams, TokenLogprob
from tests.predictor.fake_memory import FakeMemory

# The tokens are the 256 bytes, one that ends a text, and one that begins it.
END = 256
BEGIN = 257
N_VOCAB = 258

Answer = Callable[[tuple[int, ...], int], int]


def letters(prompt: tuple[int, ...], position: int) -> int:
    """Answer with letters without an end: a pure function of the prompt and the position."""
    return ord("a") + draw_seed(hash(prompt), 0, position) % 26


def letters_after(prompt: str, count: int) -> str:
    """Return the first letters of the answer to a prompt."""
    tokens = tuple(prompt.encode())
    return "".join(chr(letters(tokens, at)) for at in range(count))


def says(answer: str | bytes) -> Answer:
    """Return a model that answers every prompt with these bytes, then with the end token."""
    data = answer.encode() if isinstance(answer, str) else answer
    return lambda _prompt, position: data[position] if position < len(data) else END


class FakeBackend:
    """A `Backend` whose next token is a pure function of the prompt and the position.

    It fails the test when a row does not follow the cells of its slot, or when a token is drawn
    from other rows than the prompt's and the answer's. `num_cells` is what it really has;
    `not_finite` holds prompts for which it computes no finite logits.
    """

    n_vocab = N_VOCAB

    def __init__(
        self,
        answer: Answer = letters,
        num_cells: int = 64,
        max_length: int | None = None,
        not_finite: Collection[str] = (),
        max_mixed_rows: int = 1 << 20,
        memory: FakeMemory | None = None,
    ) -> None:
        """Without a `memory` it has one of slots that share nothing."""
        self.max_length = num_cells if max_length is None else max_length
        self.max_mixed_rows = max_mixed_rows
        self.memory = memory or FakeMemory(num_cells, num_slots=256)
        self.batches: list[list[Row]] = []
        self.faults: deque[Exception] = deque()
        self.leave_behind = 0  # rows of a batch that are computed before it fails
        self.num_open_samplers = 0
        self._answer = answer
        self._num_cells = num_cells
        self._not_finite = [tuple(prompt.encode()) for prompt in not_finite]
        self._outputs: dict[int, tuple[int, ...]] = {}

    @property
    def drops(self) -> Counter[int]:
        """How often each slot's cells were dropped."""
        return self.memory.drops

    @property
    def num_cells_used(self) -> int:
        """How many cells hold a token."""
        return self.memory.num_used

    def tokenize(self, text: str, add_special: bool) -> list[int]:
        """Return the text's bytes, after the begin token where it is wanted."""
        return [*([BEGIN] if add_special else []), *text.encode()]

    def piece(self, token: int) -> bytes:
        """Return the byte; nothing for the first token, a text for the end that nobody may see."""
        return bytes([token]) if token < END else {END: b"<end>", BEGIN: b""}[token]

    def special_piece(self, token: int) -> bytes:
        """Return the byte, or the text of a token that is otherwise not seen."""
        return {END: b"<end>", BEGIN: b"<begin>"}.get(token) or self.piece(token)

    def is_end(self, token: int) -> bool:
        """Whether it is the end token."""
        return token == END

    def decode(self, rows: list[Row]) -> None:
        """Put the rows into their slots' cells; raises the next fault, or KVCacheFull."""
        assert rows, "an empty batch"
        if self.faults:
            for row in rows[: self.leave_behind]:
                self.memory.write(row.slot, row.position, row.token)
            raise self.faults.popleft()
        num_new = sum(not self.memory.is_own(row.slot) for row in rows)
        if self.memory.num_shared_used + num_new > self._num_cells:
            raise KVCacheFull
        self.batches.append(rows)
        self._outputs = {}
        for at, row in enumerate(rows):
            self.memory.write(row.slot, row.position, row.token)
            if row.is_output:
                self._outputs[at] = tuple(self.memory.tokens(row.slot))

    def sampler(self, params: SamplingParams, prompt: list[int]) -> FakeSampler:
        """Make a sampler that draws from the batch computed last."""
        self.num_open_samplers += 1
        return FakeSampler(self, tuple(prompt))

    def draw(self, row: int, prompt: tuple[int, ...], drawn: list[int]) -> int:
        """Return the next token after what row `row` has seen, which must be prompt and answer."""
        assert self._outputs[row] == (*prompt, *drawn), "logits of other tokens"
        if any(prompt[-len(text) :] == text for text in self._not_finite):
            raise LogitsNotFinite
        return self._answer(prompt, len(drawn))


class FakeSampler:
    """Draws what the model answers; owner: its sequence."""

    def __init__(self, backend: FakeBackend, prompt: tuple[int, ...]) -> None:
        self._backend: FakeBackend | None = backend
        self._prompt = prompt
        self._drawn: list[int] = []

    def sample(self, row: int, position: int) -> int:
        """Draw from the logits of batch row `row`."""
        assert self._backend is not None, "a draw from a sampler that was closed"
        assert position == len(self._drawn), "a draw for another position"
        token = self._backend.draw(row, self._prompt, self._drawn)
        self._drawn.append(token)
        return token

    def accept(self, token: int) -> None:
        """Take note of a token that was drawn before."""
        self._drawn.append(token)

    def logprobs(self, row: int, token: int, num_top: int) -> Logprobs:
        """Find every draw as likely as its position and its token say, and `num_top` others."""
        drawn = _logprob(token, -float(len(self._drawn)))
        return Logprobs(drawn, [_logprob(other, -float(other)) for other in range(num_top)])

    def close(self) -> None:
        """Take note that the sampler was freed, once."""
        assert self._backend is not None, "a sampler that is closed twice"
        self._backend.num_open_samplers -= 1
        self._backend = None


def _logprob(token: int, logprob: float) -> TokenLogprob:
    return TokenLogprob(token, logprob, bytes([token]) if token < END else b"")
