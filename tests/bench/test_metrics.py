"""What a server tells of its prefix cache."""

from __future__ import annotations

import pytest

from bench.metrics import cache_samples, has_evicted, risen, total

TEXT = """\
# HELP kserve_llamacpp:cache_evictions_total Tokens that the cache gave up.
# TYPE kserve_llamacpp:cache_evictions_total counter
kserve_llamacpp:cache_evictions_total{model_name="m"} 40.0
kserve_llamacpp:cache_evictions_created{model_name="m"} 1.7e+09
kserve_llamacpp:host_cache_bytes{model_name="m"} 1024.0
vllm:cache_config_info{block_size="1",model_name="m"} 1.0
vllm:prefix_cache_hits_total{model_name="m"} 12.0
vllm:prompt_tokens_total{model_name="cache"} 99.0
"""


def test_every_sample_of_the_cache_is_read() -> None:
    """By its name, labels included; times of creation and other metrics are left out."""
    assert cache_samples(TEXT) == {
        'kserve_llamacpp:cache_evictions_total{model_name="m"}': 40.0,
        'kserve_llamacpp:host_cache_bytes{model_name="m"}': 1024.0,
        'vllm:prefix_cache_hits_total{model_name="m"}': 12.0,
    }


def test_how_far_counters_rose() -> None:
    """A counter that was not there before began at zero; a gauge does not rise."""
    after = {"a_total": 5.0, "b_total{x}": 1.0, "c_bytes": 7.0}
    assert risen({"a_total": 2.0}, after) == {"a_total": 3.0, "b_total{x}": 1.0}


def test_labels_are_added_up() -> None:
    """A model's samples count together, and the labels' text does not count."""
    assert total({'x_total{m="a"}': 1.0, 'x_total{m="b"}': 2.0, 'y{m="x_total"}': 4.0}, "x_t") == 3


@pytest.mark.parametrize(
    ("evictions", "host_bytes", "expected"),
    [
        ([0, 0, 0, 0, 0, 0], [0, 0, 0, 0, 0, 0], False),
        ([0, 9, 18, 27, 36, 45], [0, 90, 180, 270, 360, 450], False),
        ([9, 18, 27, 36, 45, 54], [700, 1000, 990, 1010, 1000, 1005], True),
        ([9, 18, 27, 36, 45, 54], [0, 0, 0, 0, 0, 0], True),
        ([0, 9, 18, 27], [1000, 1000, 1000, 1000], False),
    ],
    ids=["nothing evicted", "the host fills", "the host is full", "no host tier", "too early"],
)
def test_when_both_tiers_evict(
    evictions: list[float], host_bytes: list[float], expected: bool
) -> None:
    """The device gives up tokens, and the host, which takes them, does not grow any more."""
    history = [
        {"k:cache_evictions_total": tokens, "k:host_cache_bytes": size}
        for tokens, size in zip(evictions, host_bytes, strict=True)
    ]
    assert has_evicted(history) is expected
