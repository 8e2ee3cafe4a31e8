"""Counters of the prefix cache."""

from __future__ import annotations

from bench.metrics import cache_counters, num_evicting, risen

TEXT = """\
# HELP kserve_llamacpp:prefix_cache_evictions_total Tokens that a tier gave up.
# TYPE kserve_llamacpp:prefix_cache_evictions_total counter
kserve_llamacpp:prefix_cache_evictions_total{model_name="m",tier="device"} 40.0
kserve_llamacpp:prefix_cache_evictions_total{model_name="m",tier="host"} 0.0
kserve_llamacpp:prefix_cache_evictions_created{model_name="m",tier="host"} 1.7e+09
vllm:prefix_cache_hits_total{model_name="m"} 12.0
vllm:prompt_tokens_total{model_name="prefix_cache"} 99.0
"""


def test_every_counter_of_the_cache_is_read() -> None:
    """By its name, labels included; times of creation and other counters are left out."""
    assert cache_counters(TEXT) == {
        'kserve_llamacpp:prefix_cache_evictions_total{model_name="m",tier="device"}': 40.0,
        'kserve_llamacpp:prefix_cache_evictions_total{model_name="m",tier="host"}': 0.0,
        'vllm:prefix_cache_hits_total{model_name="m"}': 12.0,
    }


def test_a_tier_has_evicted_when_its_counter_has_risen() -> None:
    """Hits are no evictions, and a counter at zero has not risen."""
    assert num_evicting(cache_counters(TEXT)) == 1


def test_how_far_counters_rose() -> None:
    """A counter that was not there before began at zero."""
    assert risen({"a": 2.0}, {"a": 5.0, "b": 1.0}) == {"a": 3.0, "b": 1.0}
