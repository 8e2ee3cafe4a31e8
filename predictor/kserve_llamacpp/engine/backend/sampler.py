"""llama.cpp's sampler chain, closed by a draw that depends on its place alone."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from kserve_llamacpp.engine.backend.library import llama
from kserve_llamacpp.engine.engine import LogitsNotFinite
from kserve_llamacpp.engine.frames import SamplingParams
from kserve_llamacpp.engine.sampling import draw_seed


class LlamaSampler:
    """A chain of llama.cpp's samplers that ends in a draw seeded for its place alone."""

    def __init__(
        self,
        context: Any,
        n_vocab: int,
        memory: int,
        params: SamplingParams,
        biases: dict[int, float],
        prompt: list[int],
    ) -> None:
        self._context = context
        self._n_vocab = n_vocab
        self._seed = params.seed
        self._is_greedy = params.temperature <= 0
        chain_params = llama.llama_sampler_chain_default_params()
        chain_params.no_perf = True
        self._chain = llama.llama_sampler_chain_init(chain_params)
        for sampler in _samplers(n_vocab, memory, params, biases, prompt):
            llama.llama_sampler_chain_add(self._chain, sampler)
        if self._is_greedy:
            llama.llama_sampler_chain_add(self._chain, llama.llama_sampler_init_greedy())
        self._draw_at = llama.llama_sampler_chain_n(self._chain)

    def sample(self, row: int, position: int) -> int:
        """Draw from the logits of batch row `row`; raises LogitsNotFinite."""
        logits = llama.llama_get_logits_ith(self._context, row)
        view = np.ctypeslib.as_array(logits, shape=(self._n_vocab,))
        if not math.isfinite(float(view.sum())):
            raise LogitsNotFinite
        if self._is_greedy:
            return int(llama.llama_sampler_sample(self._chain, self._context, row))
        draw = llama.llama_sampler_init_dist(draw_seed(self._seed, 0, position))
        llama.llama_sampler_chain_add(self._chain, draw)
        token = int(llama.llama_sampler_sample(self._chain, self._context, row))
        llama.llama_sampler_free(llama.llama_sampler_chain_remove(self._chain, self._draw_at))
        return token

    def accept(self, token: int) -> None:
        """Take note of a token that was drawn before (a replay)."""
        llama.llama_sampler_accept(self._chain, token)

    def close(self) -> None:
        """Free the chain."""
        if self._chain is not None:
            llama.llama_sampler_free(self._chain)
            self._chain = None


def _samplers(
    n_vocab: int, memory: int, params: SamplingParams, biases: dict[int, float], prompt: list[int]
) -> list[Any]:
    """Return the samplers that reshape the distribution, in llama.cpp's usual order."""
    samplers = []
    if biases:
        array = (llama.llama_logit_bias * len(biases))(
            *(llama.llama_logit_bias(token, bias) for token, bias in biases.items())
        )
        samplers.append(llama.llama_sampler_init_logit_bias(n_vocab, len(array), array))
    if params.repetition_penalty != 1:
        repetition = llama.llama_sampler_init_penalties(
            n_vocab, memory, params.repetition_penalty, 0.0, 0.0
        )
        for token in prompt:  # this penalty counts the prompt, too; the other two do not
            llama.llama_sampler_accept(repetition, token)
        samplers.append(repetition)
    if params.frequency_penalty or params.presence_penalty:
        samplers.append(
            llama.llama_sampler_init_penalties(
                n_vocab, memory, 1.0, params.frequency_penalty, params.presence_penalty
            )
        )
    if params.temperature <= 0:
        return samplers
    if params.top_k > 0:
        samplers.append(llama.llama_sampler_init_top_k(params.top_k))
    if params.top_p < 1:
        samplers.append(llama.llama_sampler_init_top_p(params.top_p, 1))
    if params.min_p > 0:
        samplers.append(llama.llama_sampler_init_min_p(params.min_p, 1))
    samplers.append(llama.llama_sampler_init_temp(params.temperature))
    return samplers
