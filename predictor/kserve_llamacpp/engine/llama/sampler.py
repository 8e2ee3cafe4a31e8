"""From a row of logits to a token: parameters first, then a draw that depends on its place alone.

The order is llama.cpp's: bias, penalties, DRY, top-k, typical, top-p, min-p, XTC, temperature,
draw. What changes single logits does so in a copy of the row; what shapes the distribution is
llama.cpp's, on candidates beside which nothing could have been drawn: 49,152 tokens in its arrays
cost more than the draw.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from kserve_llamacpp.engine.backend import LogitsNotFinite
from kserve_llamacpp.engine.llama.candidates import Candidates
from kserve_llamacpp.engine.llama.library import llama
from kserve_llamacpp.engine.llama.vocabulary import Vocabulary
from kserve_llamacpp.engine.sampling.dry import Dry
from kserve_llamacpp.engine.sampling.penalties import Penalties
from kserve_llamacpp.engine.sampling.seed import draw_seed
from kserve_llamacpp.engine.sampling.typical import typical_ids
from kserve_llamacpp.wire.frames import Logprobs, SamplingParams, TokenLogprob

Logits = npt.NDArray[np.float32]
Ids = npt.NDArray[Any]  # of an integer type

_LEAST_LOGPROB = -9999.0  # OpenAI's for what is as good as impossible; JSON has no infinity
_ROUNDING = 1e-3  # of a logit: nothing that llama.cpp would keep is left out
_GREEDY_BELOW = 1e-5  # a temperature; divided by less, logits would become infinite
_NEAR_THE_BEST = 8.0  # logits; among the tokens this near there are mostly more than enough


class Samplers:
    """Makes samplers over a backend's batches; owner: the backend."""

    def __init__(
        self, logits: Callable[[int], Any], vocabulary: Vocabulary, max_length: int
    ) -> None:
        """`logits` gives a pointer to those of a row of the batch computed last."""
        self._pointer_to = logits
        self._vocabulary = vocabulary
        self.candidates = Candidates(vocabulary.size)
        self._max_length = max_length
        self.all_ids: Ids = np.arange(vocabulary.size, dtype=np.int32)
        self._shape = (vocabulary.size,)
        self._ends = vocabulary.end_tokens  # now: to find them takes a while

    def make(self, params: SamplingParams, prompt: list[int]) -> LlamaSampler:
        """Return a sampler for a sequence that begins with this prompt."""
        biases = dict(params.logit_bias)
        # what the model's file says must never be written: parts of other modalities
        biases |= dict.fromkeys(self._vocabulary.suppressed_tokens, -math.inf)
        ends = self._ends
        if params.ignore_eos:
            forbidden = set(ends) - set(params.stop_token_ids)
            biases |= dict.fromkeys(forbidden, -math.inf)
        early = [*ends, *params.stop_token_ids] if params.min_tokens else []
        dry = None
        if params.dry_multiplier > 0 and params.dry_penalty_last_n != 0:
            dry = Dry(params, self._max_length, prompt, self._vocabulary.piece)
        return LlamaSampler(self, params, biases, early, Penalties(params, prompt), dry)

    def logits(self, row: int) -> Logits:
        """Return the logits of a row of the batch computed last: llama.cpp's own, not a copy."""
        logits: Logits = np.ctypeslib.as_array(self._pointer_to(row), shape=self._shape)
        return logits

    def describe(self, token: int, logprob: float) -> TokenLogprob:
        """Return a token with its text."""
        text = self._vocabulary.text(token, special=True)
        return TokenLogprob(token, max(logprob, _LEAST_LOGPROB), text)


class LlamaSampler:
    """Draws the tokens of one sequence; owner: the sequence."""

    def __init__(
        self,
        samplers: Samplers,
        params: SamplingParams,
        biases: dict[int, float],
        early: list[int],
        penalties: Penalties,
        dry: Dry | None,
    ) -> None:
        """`early` are the tokens that may not come before `min_tokens`."""
        self._samplers = samplers
        self._params = params
        self._is_greedy = params.temperature < _GREEDY_BELOW
        self._biased = np.array(list(biases), np.int64)
        self._biases = np.array(list(biases.values()), np.float32)
        self._early = np.array(early, np.int64)
        self._penalties = penalties
        self._dry = dry
        self._is_raw = not biases and penalties.is_neutral and dry is None
        self._shapers = _Shapers(samplers.candidates, params)

    def sample(self, row: int, position: int) -> int:
        """Draw from the logits of batch row `row`; raises LogitsNotFinite."""
        logits = self._adjusted(self._samplers.logits(row), position)
        if self._is_greedy:
            token = int(logits.argmax())
            _check(float(logits[token]))
        else:
            token = self._draw(logits, position)
        self.accept(token)
        return token

    def accept(self, token: int) -> None:
        """Take note of a token that was drawn before (a replay)."""
        self._penalties.accept(token)
        if self._dry is not None:
            self._dry.accept(token)

    def logprobs(self, row: int, token: int, num_top: int) -> Logprobs:
        """Return what the model itself, untouched by parameters, thought of a row's token."""
        logits = self._samplers.logits(row)
        best = float(logits.max())
        total = best + math.log(float(np.exp(logits - np.float32(best)).sum(dtype=np.float64)))
        top: list[int] = []
        if num_top > 0:
            count = min(num_top, len(logits))
            top = np.argpartition(logits, len(logits) - count)[-count:].tolist()
            top.sort(key=lambda token: (-logits[token], token))
        describe = self._samplers.describe
        return Logprobs(
            describe(token, float(logits[token]) - total),
            [describe(other, float(logits[other]) - total) for other in top],
        )

    def close(self) -> None:
        """Free what llama.cpp holds for this sequence."""
        self._shapers.close()

    def _adjusted(self, logits: Logits, position: int) -> Logits:
        is_early = position < self._params.min_tokens
        if self._is_raw and not is_early:
            return logits
        _check(float(logits.max()))  # of all, also those that are forbidden below
        logits = logits.copy()
        logits[self._biased] += self._biases
        if is_early:
            logits[self._early] = -np.inf
        self._penalties.apply(logits)
        if self._dry is not None:
            self._dry.apply(logits)
        return logits

    def _draw(self, logits: Logits, position: int) -> int:
        best = float(logits.max())
        _check(best)
        ids, top_p = self._choose(logits, best)
        self._samplers.candidates.fill(ids, logits[ids] if len(ids) < len(logits) else logits)
        return self._shapers.draw(top_p, position)

    def _choose(self, logits: Logits, best: float) -> tuple[Ids, float]:
        """Return the candidates, and what top-p is among them."""
        params = self._params
        if params.typical_p < 1:
            return typical_ids(logits, params.top_k, params.typical_p), params.top_p
        everything = self._samplers.all_ids
        near = best - _NEAR_THE_BEST
        if params.top_k > 0:
            ids = _above(logits, near)
            return (ids if len(ids) >= params.top_k else everything), params.top_p
        least = best + math.log(params.min_p) - _ROUNDING if params.min_p > 0 else -math.inf
        if params.top_p >= 1:
            return (_above(logits, least) if params.min_p > 0 else everything), 1.0
        # Top-p is a part of the whole distribution: where candidates are left out, it is a larger
        # part of what they make up.
        ids = _above(logits, max(least, near))
        weights = np.exp(logits - np.float32(best))
        chosen = float(weights[ids].sum(dtype=np.float64))
        part = params.top_p * float(weights.sum(dtype=np.float64)) / chosen
        if part < 1 or least >= near:
            return ids, min(part, 1.0)
        return everything, params.top_p


class _Shapers:
    """llama.cpp's samplers that shape the distribution, in its usual order; owner: a sampler."""

    def __init__(self, candidates: Candidates, params: SamplingParams) -> None:
        self._candidates = candidates
        self._params = params
        self._first: list[Any] = []
        self._last: Any = None
        self._min_p: Any = None
        if params.temperature < _GREEDY_BELOW:
            return
        if params.top_k > 0:
            self._first.append(llama.llama_sampler_init_top_k(params.top_k))
        if params.min_p > 0:
            self._min_p = llama.llama_sampler_init_min_p(params.min_p, 1)
        self._last = llama.llama_sampler_init_temp(params.temperature)

    def draw(self, top_p: float, position: int) -> int:
        """Draw one of the candidates."""
        params = self._params
        for sampler in self._first:
            self._candidates.apply(sampler)
        if top_p < 1:
            self._apply_once(llama.llama_sampler_init_top_p(top_p, 1))
        if self._min_p is not None:
            self._candidates.apply(self._min_p)
        if params.xtc_probability > 0:
            seed = draw_seed(params.seed, params.choice, position, "xtc")
            self._apply_once(
                llama.llama_sampler_init_xtc(params.xtc_probability, params.xtc_threshold, 1, seed)
            )
        self._candidates.apply(self._last)
        seed = draw_seed(params.seed, params.choice, position)
        self._apply_once(llama.llama_sampler_init_dist(seed))
        return self._candidates.selected()

    def close(self) -> None:
        """Free the samplers."""
        for sampler in (*self._first, self._min_p, self._last):
            if sampler is not None:
                llama.llama_sampler_free(sampler)
        self._first, self._min_p, self._last = [], None, None

    def _apply_once(self, sampler: Any) -> None:
        self._candidates.apply(sampler)
        llama.llama_sampler_free(sampler)


def _above(logits: Logits, least: float) -> Ids:
    """Return the tokens whose logits are at least so high, in order."""
    return np.flatnonzero(logits >= np.float32(least))


def _check(best: float) -> None:
    """Raise unless the best logit is a number: numpy finds NaN greater than any."""
    if not math.isfinite(best):
        raise LogitsNotFinite
