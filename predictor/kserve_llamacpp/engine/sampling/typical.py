"""Locally typical sampling, on the logits of the whole vocabulary.

Source: Meister et al., https://arxiv.org/abs/2202.00666. llama.cpp's own sorts the vocabulary twice
(5 ms at 49,152 tokens), and finds no entropy where a token was forbidden: 0 times infinity.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt


def typical_ids(logits: npt.NDArray[np.float32], top_k: int, typical_p: float) -> npt.NDArray[Any]:
    """Return, in order, the tokens nearest to the expected surprise that make up `typical_p`.

    Only the `top_k` likeliest are looked at, where that is not 0.
    """
    ids: npt.NDArray[Any] = np.flatnonzero(logits > -np.inf)
    if 0 < top_k < len(ids):
        ids = ids[np.argpartition(logits[ids], len(ids) - top_k)[-top_k:]]
    chosen = logits[ids]
    logprobs = chosen - chosen.max()
    weights = np.exp(logprobs)
    logprobs -= np.log(weights.sum(dtype=np.float64)).astype(np.float32)
    probabilities = np.exp(logprobs)
    entropy = -(probabilities * logprobs).sum()
    order = np.argsort(np.abs(logprobs + entropy))
    reached = np.cumsum(probabilities[order], dtype=np.float64)
    count = int(np.searchsorted(reached, typical_p, side="right")) + 1
    return np.sort(ids[order[:count]])
