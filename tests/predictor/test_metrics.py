"""The predictor's metrics: names that others read, and values that mean what they say."""

from __future__ import annotations

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from kserve_llamacpp.engine_client.observers import EngineState
from kserve_llamacpp.metrics import EngineMetrics
from kserve_llamacpp.wire.frames import Stats
from tests.predictor.fake_process import FACTS


class _Scrape:
    """Metrics of one model, and what a scrape of them says."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.waiting = 0
        self.running = 0
        self.metrics = EngineMetrics(
            "m", lambda: self.waiting, lambda: self.running, registry=self.registry
        )

    def types(self) -> dict[str, str]:
        text = generate_latest(self.registry).decode()
        return {family.name: family.type for family in text_string_to_metric_families(text)}

    def value(self, name: str, **labels: str) -> float | None:
        return self.registry.get_sample_value(name, {"model_name": "m", **labels})


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("vllm:num_requests_waiting", "gauge"),
        ("vllm:num_requests_running", "gauge"),
        ("vllm:kv_cache_usage_perc", "gauge"),
        ("vllm:time_to_first_token_seconds", "histogram"),
        ("vllm:inter_token_latency_seconds", "histogram"),
        ("vllm:e2e_request_latency_seconds", "histogram"),
        ("vllm:request_queue_time_seconds", "histogram"),
        ("vllm:prompt_tokens", "counter"),
        ("vllm:prompt_tokens_cached", "counter"),
        ("vllm:prefix_cache_queries", "counter"),
        ("vllm:prefix_cache_hits", "counter"),
        ("vllm:generation_tokens", "counter"),
        ("vllm:num_preemptions", "counter"),
        ("vllm:request_success", "counter"),
        ("vllm:cache_config_info", "gauge"),
        ("kserve_llamacpp:engine_steps", "counter"),
        ("kserve_llamacpp:engine_deaths", "counter"),
        ("kserve_llamacpp:model_ready", "gauge"),
        ("kserve_llamacpp:model_loaded_fraction", "gauge"),
    ],
)
def test_names_and_types_are_final(name: str, kind: str) -> None:
    """Autoscalers and endpoint pickers read these names; they are there from the start."""
    assert _Scrape().types()[name] == kind


def test_requests_are_counted_when_asked() -> None:
    """The numbers of waiting and running requests are those of the moment of the scrape."""
    scrape = _Scrape()
    scrape.waiting, scrape.running = 3, 2

    assert scrape.value("vllm:num_requests_waiting") == 3
    assert scrape.value("vllm:num_requests_running") == 2
    scrape.waiting = 0
    assert scrape.value("vllm:num_requests_waiting") == 0


@pytest.mark.parametrize(("used", "usage"), [(0, 0.0), (16, 0.25), (64, 1.0)])
def test_cache_usage_is_a_part_of_one(used: int, usage: float) -> None:
    """The used part of the cache is between 0 and 1, whatever `perc` suggests."""
    scrape = _Scrape()
    scrape.metrics.stepped(Stats(running=1, waiting=0, cells_used=used, cells_total=64))

    assert scrape.value("vllm:kv_cache_usage_perc") == usage


def test_a_dead_engine_uses_no_cache() -> None:
    """When an engine dies its cache is gone, and the gauge does not keep the last value."""
    scrape = _Scrape()
    scrape.metrics.stepped(Stats(running=1, waiting=0, cells_used=64, cells_total=64))
    scrape.metrics.engine_hung(30.0)
    scrape.metrics.engine_died(-9)
    scrape.metrics.state_changed(EngineState.RESTARTING)

    assert scrape.value("vllm:kv_cache_usage_perc") == 0
    assert scrape.value("kserve_llamacpp:engine_deaths_total") == 1
    assert scrape.value("kserve_llamacpp:engine_hangs_total") == 1


def test_the_engines_deltas_add_up() -> None:
    """Counters are sums of what each step reports, so they survive an engine's end."""
    scrape = _Scrape()
    for _ in range(2):
        scrape.metrics.stepped(
            Stats(
                running=1,
                waiting=0,
                cells_used=1,
                cells_total=64,
                steps=1,
                prefill_tokens=7,
                decode_tokens=2,
                preemptions=1,
                cache_queries=20,
                cache_hits=9,
                host_cache_hits=4,
                cache_evictions=5,
            )
        )

    assert scrape.value("kserve_llamacpp:engine_steps_total") == 2
    assert scrape.value("kserve_llamacpp:prefill_tokens_total") == 14
    assert scrape.value("vllm:num_preemptions_total") == 2
    assert scrape.value("vllm:prefix_cache_queries_total") == 40
    assert scrape.value("vllm:prefix_cache_hits_total") == 18
    assert scrape.value("kserve_llamacpp:host_cache_hits_total") == 8
    assert scrape.value("kserve_llamacpp:cache_evictions_total") == 10


def test_a_prompt_counts_once() -> None:
    """A prompt's tokens count when its request starts, cached or not, and not as they are computed.

    What is computed again after a preemption is the prompt's no second time.
    """
    scrape = _Scrape()
    scrape.metrics.request_started(0.5, prompt_tokens=10, cached_tokens=4)
    for _ in range(2):
        scrape.metrics.stepped(
            Stats(running=1, waiting=0, cells_used=1, cells_total=64, prefill_tokens=6)
        )

    assert scrape.value("vllm:prompt_tokens_total") == 10
    assert scrape.value("vllm:prompt_tokens_cached_total") == 4
    assert scrape.value("kserve_llamacpp:prefill_tokens_total") == 12


def test_the_caches_contents_are_gauges_that_an_engines_end_empties() -> None:
    """What the caches hold is told as it is now; with the engine's process both tiers are gone."""
    scrape = _Scrape()
    scrape.metrics.stepped(
        Stats(
            running=0, waiting=0, cells_used=0, cells_total=64, cells_cached=48, host_cache_bytes=99
        )
    )
    assert scrape.value("vllm:kv_cache_usage_perc") == 0
    assert scrape.value("kserve_llamacpp:kv_cache_cached_cells") == 48
    assert scrape.value("kserve_llamacpp:host_cache_bytes") == 99

    scrape.metrics.state_changed(EngineState.RESTARTING)

    assert scrape.value("kserve_llamacpp:kv_cache_cached_cells") == 0
    assert scrape.value("kserve_llamacpp:host_cache_bytes") == 0


def test_tokens_and_their_times_are_observed() -> None:
    """The first token goes to one histogram, later ones to another, all to the counter."""
    scrape = _Scrape()
    scrape.metrics.first_token(0.3)
    scrape.metrics.next_token(0.02)
    scrape.metrics.next_token(0.03)

    assert scrape.value("vllm:time_to_first_token_seconds_count") == 1
    assert scrape.value("vllm:time_to_first_token_seconds_sum") == 0.3
    assert scrape.value("vllm:inter_token_latency_seconds_count") == 2
    assert scrape.value("vllm:inter_token_latency_seconds_sum") == pytest.approx(0.05)
    assert scrape.value("vllm:generation_tokens_total") == 3


@pytest.mark.parametrize("reason", ["stop", "length", "abort", "error"])
def test_ends_are_counted_by_reason(reason: str) -> None:
    """Each end counts once, under its reason, with the time of the whole request."""
    scrape = _Scrape()
    scrape.metrics.request_started(0.5, prompt_tokens=3, cached_tokens=0)
    scrape.metrics.request_ended(reason, 2.0)

    assert scrape.value("vllm:request_success_total", finished_reason=reason) == 1
    assert scrape.value("vllm:e2e_request_latency_seconds_sum") == 2.0
    assert scrape.value("vllm:request_queue_time_seconds_sum") == 0.5


def test_refusals_are_counted_by_code() -> None:
    """What overload refuses is told apart by its code."""
    scrape = _Scrape()
    for code in ("queue_full", "queue_full", "queue_timeout"):
        scrape.metrics.request_refused(code)

    assert scrape.value("kserve_llamacpp:requests_refused_total", code="queue_full") == 2
    assert scrape.value("kserve_llamacpp:requests_refused_total", code="queue_timeout") == 1


@pytest.mark.parametrize("state", EngineState)
def test_ready_is_one_only_while_the_model_answers(state: EngineState) -> None:
    """The readiness gauge is 1 in the one state that answers, and 0 in every other."""
    scrape = _Scrape()
    scrape.metrics.state_changed(EngineState.READY)
    scrape.metrics.state_changed(state)

    assert scrape.value("kserve_llamacpp:model_ready") == (state is EngineState.READY)


def test_the_caches_size_is_told() -> None:
    """The size of the cache, in blocks of one token, is there once the model is loaded."""
    scrape = _Scrape()
    scrape.metrics.model_loaded(FACTS)
    scrape.metrics.loading(0.5)

    assert scrape.value("vllm:cache_config_info", block_size="1", num_gpu_blocks="64") == 1
    assert scrape.value("kserve_llamacpp:model_loaded_fraction") == 0.5
