"""What the predictor measures, for Prometheus; the only module that knows it.

Names and buckets are vLLM's where it has the metric, for autoscalers and endpoint pickers read
those; the rest begins with `kserve_llamacpp:`.
"""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import Counter, Gauge, Histogram
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import REGISTRY, CollectorRegistry

from kserve_llamacpp.engine_client.observers import EngineState
from kserve_llamacpp.wire.frames import ModelFacts, Stats

_TTFT_BUCKETS = (
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75,
    1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0, 160.0, 640.0, 2560.0,
)  # fmt: skip
_ITL_BUCKETS = (
    0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75,
    1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0,
)  # fmt: skip
_REQUEST_BUCKETS = (
    0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0,
    120.0, 240.0, 480.0, 960.0, 1920.0, 7680.0,
)  # fmt: skip
_LABELS = ("model_name",)


def exposition(accept: str, registry: CollectorRegistry = REGISTRY) -> tuple[bytes, str]:
    """Return all metrics and their content type, in the format that an Accept header asks for."""
    encode, content_type = choose_encoder(accept)
    return encode(registry), content_type


class EngineMetrics:
    """Turns the engine's events into metrics of one model; owner: the model."""

    def __init__(
        self,
        model_name: str,
        num_waiting: Callable[[], int],
        num_running: Callable[[], int],
        registry: CollectorRegistry = REGISTRY,
    ) -> None:
        """`num_waiting` and `num_running` are asked at every scrape."""

        def gauge(name: str, text: str) -> Gauge:
            return Gauge(name, text, _LABELS, registry=registry).labels(model_name)

        def counter(name: str, text: str) -> Counter:
            return Counter(name, text, _LABELS, registry=registry).labels(model_name)

        def histogram(name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
            return Histogram(name, text, _LABELS, buckets=buckets, registry=registry).labels(
                model_name
            )

        gauge("vllm:num_requests_waiting", "Requests that have not started.").set_function(
            num_waiting
        )
        gauge("vllm:num_requests_running", "Requests that are computed now.").set_function(
            num_running
        )
        self._kv_usage = gauge(
            "vllm:kv_cache_usage_perc",
            "Part of the KV cache that running requests hold, 0 to 1; what is only cached is free.",
        )
        self._ttft = histogram(
            "vllm:time_to_first_token_seconds", "From arrival to the first token.", _TTFT_BUCKETS
        )
        self._itl = histogram(
            "vllm:inter_token_latency_seconds", "Between two tokens of a request.", _ITL_BUCKETS
        )
        self._queue_time = histogram(
            "vllm:request_queue_time_seconds", "From arrival to the start.", _REQUEST_BUCKETS
        )
        self._latency = histogram(
            "vllm:e2e_request_latency_seconds", "From arrival to the end.", _REQUEST_BUCKETS
        )
        self._prompt_tokens = counter(
            "vllm:prompt_tokens", "Tokens of the prompts of requests that started, each once."
        )
        self._cached_tokens = counter(
            "vllm:prompt_tokens_cached", "Those of them that a cache had when the request started."
        )
        self._prefill_tokens = counter(
            "kserve_llamacpp:prefill_tokens",
            "Tokens that were computed before a request's next one, after a preemption again.",
        )
        self._generation_tokens = counter("vllm:generation_tokens", "Tokens that were generated.")
        self._preemptions = counter("vllm:num_preemptions", "Sequences that gave up their cells.")
        self._cache = _CacheMetrics(counter, gauge)
        self._ended = Counter(
            "vllm:request_success",
            "Requests that ended, by finish reason (stop, length, abort, error).",
            (*_LABELS, "finished_reason"),
            registry=registry,
        )
        self._refused = Counter(
            "kserve_llamacpp:requests_refused",
            "Requests that were not started, by code (queue_full, queue_timeout, model_not_ready).",
            (*_LABELS, "code"),
            registry=registry,
        )
        self._steps = counter("kserve_llamacpp:engine_steps", "Steps of the engine.")
        self._restarts = counter("kserve_llamacpp:engine_deaths", "Engine processes that died.")
        self._hangs = counter(
            "kserve_llamacpp:engine_hangs", "Those of them that were killed since they hung."
        )
        self._not_started = counter(
            "kserve_llamacpp:engine_start_failures",
            "Engines that could not be started, or could not load the model again.",
        )
        self._guilty = counter(
            "kserve_llamacpp:guilty_requests",
            "Requests that failed since engines died under them, the last one while alone.",
        )
        self._ready = gauge(
            "kserve_llamacpp:model_ready", "1 while the model answers; 0 during a restart, too."
        )
        self._loaded = gauge("kserve_llamacpp:model_loaded_fraction", "Loaded part, 0 to 1.")
        self._cache_info = Gauge(
            "vllm:cache_config_info",
            "The KV cache, in cells of one token.",
            (*_LABELS, "block_size", "num_gpu_blocks"),
            registry=registry,
        )
        self._model_name = model_name

    def model_loaded(self, facts: ModelFacts) -> None:
        """The size of the KV cache is known."""
        self._cache_info.labels(self._model_name, "1", str(facts.n_ctx)).set(1)

    def state_changed(self, state: EngineState) -> None:
        """The engine's process has changed its state."""
        self._ready.set(state is EngineState.READY)
        if state is EngineState.RESTARTING:
            self._kv_usage.set(0)
            self._cache.lost()

    def loading(self, fraction: float) -> None:
        """So much of the model is loaded, 0 to 1."""
        self._loaded.set(fraction)

    def engine_hung(self, silent_seconds: float) -> None:
        """The engine's process is killed, since it told nothing for so long."""
        self._hangs.inc()

    def engine_died(self, exit_status: int | None) -> None:
        """The engine's process ended by itself."""
        self._restarts.inc()

    def engine_not_started(self) -> None:
        """No engine could be started, or it could not load the model."""
        self._not_started.inc()

    def request_guilty(self, request_id: str, num_deaths: int) -> None:
        """Engines died under a request, the last one with nothing else running."""
        self._guilty.inc()

    def stepped(self, stats: Stats) -> None:
        """The engine finished a step."""
        self._kv_usage.set(stats.cells_used / stats.cells_total)
        self._steps.inc(stats.steps)
        self._prefill_tokens.inc(stats.prefill_tokens)
        self._preemptions.inc(stats.preemptions)
        self._cache.stepped(stats)

    def request_refused(self, code: str) -> None:
        """A request was not taken, or has waited in vain."""
        self._refused.labels(self._model_name, code).inc()

    def request_started(self, queue_seconds: float, prompt_tokens: int, cached_tokens: int) -> None:
        """A request left the queue, for the first time."""
        self._queue_time.observe(queue_seconds)
        self._prompt_tokens.inc(prompt_tokens)
        self._cached_tokens.inc(cached_tokens)

    def first_token(self, seconds: float) -> None:
        """A request got its first token."""
        self._ttft.observe(seconds)
        self._generation_tokens.inc()

    def next_token(self, seconds: float) -> None:
        """A request got a later token."""
        self._itl.observe(seconds)
        self._generation_tokens.inc()

    def request_ended(self, reason: str, seconds: float) -> None:
        """A request ended."""
        self._latency.observe(seconds)
        self._ended.labels(self._model_name, reason).inc()


class _CacheMetrics:
    """The prefix cache's part of the metrics; owner: EngineMetrics."""

    def __init__(
        self, counter: Callable[[str, str], Counter], gauge: Callable[[str, str], Gauge]
    ) -> None:
        self._queries = counter("vllm:prefix_cache_queries", "Tokens that the cache was asked for.")
        self._hits = counter("vllm:prefix_cache_hits", "Tokens that it had.")
        self._host_hits = counter(
            "kserve_llamacpp:host_cache_hits", "Those of them that came back from host memory."
        )
        self._evictions = counter(
            "kserve_llamacpp:cache_evictions", "Tokens that the cache gave up for others."
        )
        self._cells = gauge(
            "kserve_llamacpp:kv_cache_cached_cells", "Cells of the KV cache that only it holds."
        )
        self._host_bytes = gauge(
            "kserve_llamacpp:host_cache_bytes", "Size of the part that is in host memory."
        )

    def stepped(self, stats: Stats) -> None:
        """The engine finished a step."""
        self._queries.inc(stats.cache_queries)
        self._hits.inc(stats.cache_hits)
        self._host_hits.inc(stats.host_cache_hits)
        self._evictions.inc(stats.cache_evictions)
        self._cells.set(stats.cells_cached)
        self._host_bytes.set(stats.host_cache_bytes)

    def lost(self) -> None:
        """The engine's process has ended, and its caches with it."""
        self._cells.set(0)
        self._host_bytes.set(0)
