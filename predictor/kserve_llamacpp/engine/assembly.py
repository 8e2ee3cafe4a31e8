"""An engine, put together for what a model's memory can do and what was asked for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import structlog

from kserve_llamacpp.engine.backend import Backend
from kserve_llamacpp.engine.cache.costs import Costs
from kserve_llamacpp.engine.cache.memory import KVCache
from kserve_llamacpp.engine.cache.radix import RadixCache
from kserve_llamacpp.engine.cache.snapshots import SnapshotCache
from kserve_llamacpp.engine.engine import Engine
from kserve_llamacpp.engine.schedule.fair_queue import FairQueue
from kserve_llamacpp.engine.schedule.scheduler import Scheduler
from kserve_llamacpp.engine.schedule.step_budget import FixedBudget, StepBudget
from kserve_llamacpp.engine.self_test import ExactBackend, SelfTest
from kserve_llamacpp.wire.worker_options import WorkerOptions

_ALONE = (
    "this model does not compute the same bits in any company on this device (see `failed`): "
    "requests are computed one at a time, from an empty cache"
)


class MeasuredBackend(Backend, ExactBackend, Protocol):
    """What an engine is put together from; the real one is `LlamaBackend`."""

    num_cells: int
    own_length: int
    shares_cells: bool
    has_window: bool

    def host_bytes(self) -> int:
        """Return how much host memory may be used for what the KV cache gives up."""
        ...

    def measure(self, clock: Callable[[], float]) -> Costs:
        """Return what a token costs here; forgets all that is in memory."""
        ...


def make_engine(
    backend: MeasuredBackend, options: WorkerOptions, clock: Callable[[], float]
) -> Engine:
    """Put an engine together, with the cache that the model's memory allows.

    Raises DecodeFailed when the model computes nothing.
    """
    log = structlog.get_logger("engine")
    costs = backend.measure(clock)
    if options.is_deterministic:
        failed = SelfTest(backend, options.max_sequences, options.n_batch).failures()
        if failed:
            log.warning("self_test_failed", failed=failed, hint=_ALONE)
            return _one_at_a_time(backend, options, clock)
        log.info("self_test_passed")
    host_bytes = backend.host_bytes()
    if options.host_cache_mib is not None:
        host_bytes = options.host_cache_mib << 20
    cache: KVCache
    if backend.shares_cells:
        can_save_parts = not backend.has_window
        cache = RadixCache(backend.memory, backend.num_cells, costs, host_bytes, can_save_parts)
    else:
        cache = SnapshotCache(
            backend.memory, backend.num_cells, host_bytes, backend.can_cut, backend.has_window
        )
    log.debug(
        "prefix_cache",
        kind=type(cache).__name__,
        host_bytes=host_bytes,
        prefill_token_us=round(costs.prefill_token * 1e6),
        restore_cell_us=round(costs.restore_cell * 1e6, 2),
        parked_cell_ns=round(costs.parked_cell * 1e9, 1),
    )
    budget = StepBudget(
        options.target_step_ms / 1000,
        options.n_batch,
        costs.prefill_token,
        tiled_rows=backend.max_mixed_rows + 1,  # more than a batch has, where there are none
    )
    scheduler = Scheduler(options.max_sequences, cache, FairQueue(), own_length=backend.own_length)
    return Engine(backend, scheduler, budget, clock)


def _one_at_a_time(
    backend: MeasuredBackend, options: WorkerOptions, clock: Callable[[], float]
) -> Engine:
    """Return an engine in which every request is computed in the same way, whatever else comes."""
    cache = SnapshotCache(backend.memory, backend.max_length, 0, backend.can_cut)
    scheduler = Scheduler(1, cache, FairQueue(), is_uniform=True)
    return Engine(backend, scheduler, FixedBudget(options.n_batch), clock)
