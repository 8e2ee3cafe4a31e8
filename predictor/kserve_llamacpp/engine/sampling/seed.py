"""Where the randomness of a draw comes from."""

from __future__ import annotations

import hashlib

_NOT_A_SEED = 0xFFFFFFFF  # llama.cpp takes this one for "choose at random"


def draw_seed(seed: int, choice: int, position: int, purpose: str = "") -> int:
    """Return the 32-bit seed of one draw.

    It depends on the request's seed, the choice's index and the token's position alone, so a
    resumed or preempted sequence draws as it would have drawn. `purpose` tells apart the samplers
    that draw at the same place: with one seed for both, what one drew would bend the other.
    """
    key = f"{seed}/{choice}/{position}{purpose}".encode()
    value = int.from_bytes(hashlib.blake2b(key, digest_size=4).digest(), "big")
    return value if value != _NOT_A_SEED else 0
