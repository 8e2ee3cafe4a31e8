"""How the cells of the KV cache are divided among sequences."""

from __future__ import annotations

import pytest

from kserve_llamacpp.engine.llama.layout import Layout, choose_layout
from kserve_llamacpp.engine.llama.library import LoadFailed
from kserve_llamacpp.wire.worker_options import KVCacheLayout


def _choose(
    asked: KVCacheLayout, n_ctx: int, sequences: int, longest: int, pays: bool = True
) -> Layout:
    return choose_layout(asked, n_ctx, sequences, longest, can_move=True, pays_for_others=pays)


@pytest.mark.parametrize(
    ("n_ctx", "sequences", "longest", "is_better_divided", "layout"),
    [
        (16384, 8, 8192, True, Layout("split+pool", 8192, 1024)),
        (32768, 8, 4096, True, Layout("split+pool", 16384, 2048)),
        (65536, 8, 2000, True, Layout("split+pool", 49152, 2048)),  # more could not be used
        (16384, 8, 8192, False, Layout("unified", 16384)),
        (16384, 8, 131072, True, Layout("unified", 16384)),  # a pool would shorten the longest
        (4096, 8, 2048, True, Layout("unified", 4096)),  # 256 tokens each are too few
        (10000, 4, 4096, True, Layout("split+pool", 5904, 1024)),
    ],
)
def test_cells_are_divided_where_nobody_loses(
    n_ctx: int, sequences: int, longest: int, is_better_divided: bool, layout: Layout
) -> None:
    """Left to itself, the cache is divided if no sequence has to be shorter for it."""
    assert _choose("auto", n_ctx, sequences, longest, pays=is_better_divided) == layout


def test_what_is_asked_for_is_done() -> None:
    """A layout that is named is taken, also where another one would be chosen."""
    assert _choose("unified", 16384, 8, 8192) == Layout("unified", 16384)
    assert _choose("split", 16384, 8, 8192) == Layout("split", 16384)
    divided = _choose("split+pool", 16384, 8, 131072, pays=False)
    assert divided == Layout("split+pool", 8192, 1024)


def test_what_cannot_be_divided() -> None:
    """A division that leaves a slot nothing, or a model without cells to move, is refused."""
    with pytest.raises(LoadFailed, match=r"4096 tokens for --max_sequences 8.*raise --n_ctx"):
        _choose("split+pool", 4095, 8, 2048)
    with pytest.raises(LoadFailed, match="choose --kv_cache unified or split"):
        choose_layout("split+pool", 16384, 8, 8192, can_move=False, pays_for_others=True)
    unified = choose_layout("auto", 16384, 8, 8192, can_move=False, pays_for_others=True)
    assert unified == Layout("unified", 16384)
