"""A model as the server offers it: its engine, its chat template, its metrics."""

from __future__ import annotations

import functools
import time

import msgspec
import structlog

from kserve_llamacpp.chat.prompt import chat_requests, completion_requests
from kserve_llamacpp.config import Config
from kserve_llamacpp.engine_client.admission import QueueLimits
from kserve_llamacpp.engine_client.client import EngineClient
from kserve_llamacpp.engine_client.generation import Generation, Request
from kserve_llamacpp.engine_client.observers import EngineState
from kserve_llamacpp.engine_client.process import EngineProcess, worker_command
from kserve_llamacpp.engine_client.restarts import RestartPolicy, Restarts
from kserve_llamacpp.engine_client.watchdog import Watchdog
from kserve_llamacpp.errors import (
    ConfigurationError,
    EngineLostError,
    MemoryExceededError,
    ModelFileError,
    StartupError,
)
from kserve_llamacpp.logging import resolve_format
from kserve_llamacpp.metrics import EngineMetrics
from kserve_llamacpp.model_template import ModelTemplate
from kserve_llamacpp.resume import Resumable
from kserve_llamacpp.shared_prompts import PromptSharing
from kserve_llamacpp.tenant import NO_TENANT, Tenant, of_tenant
from kserve_llamacpp.wire.frames import ModelFacts
from kserve_llamacpp.wire.worker_options import WorkerOptions
from openai_protocol.errors import InvalidRequest, Unavailable
from openai_protocol.requests import (
    ChatCompletionRequest,
    CompletionRequest,
    GenerationRequest,
)

_STARTUP_ERRORS: dict[str, type[StartupError]] = {
    "model_file": ModelFileError,
    "out_of_memory": MemoryExceededError,
    "configuration": ConfigurationError,
}


class ServedModel:
    """Owns the engine's client and what is known of the model; owner: the server's event loop."""

    def __init__(self, config: Config) -> None:
        self.name = config.model_name
        self.created = int(time.time())
        self.limits = config.request_limits
        self._config = config
        self._log = structlog.get_logger("model")
        self._template = ModelTemplate(self.name, config.chat_template)
        self._why_lost = ""
        self._metrics = EngineMetrics(
            self.name, lambda: self.engine.num_waiting, lambda: self.engine.num_running
        )
        self.engine = EngineClient(
            process=EngineProcess(worker_command(worker_options(config))),
            restarts=Restarts(RestartPolicy(max_restarts=config.max_engine_restarts)),
            limits=QueueLimits(
                max_waiting=config.max_waiting,
                max_waiting_tokens=config.max_waiting_tokens,
                timeout_seconds=config.queue_timeout_seconds,
            ),
            watchdog=Watchdog(config.watchdog_seconds, max_step_tokens=config.n_batch),
            observer=self,
            requests=self._metrics,
        )
        self._sharing = PromptSharing(
            config.shared_prompts, self._template.render, self.engine.share_prompts
        )

    @property
    def is_ready(self) -> bool:
        """Whether a request would be answered now."""
        return self.engine.is_ready

    @property
    def facts(self) -> ModelFacts:
        """What is known of the model; raises Unavailable until it was loaded."""
        if self.engine.facts is None:
            raise Unavailable(
                "The model is still loading. Please try again later.", retry_after_seconds=5.0
            )
        return self.engine.facts

    async def load(self) -> None:
        """Start the engine and wait until the model answers; raises StartupError."""
        self._log.info(
            "model_loading",
            model=self.name,
            file=str(self._config.model_path),
            threads=self._config.n_threads,
        )
        self.engine.start()
        await self.engine.settled()
        if self.engine.state is EngineState.FAILED and not self._why_lost:
            fatal = self.engine.fatal
            if fatal is None:
                raise StartupError("the engine died several times while it loaded the model")
            raise _STARTUP_ERRORS.get(fatal.reason, StartupError)(fatal.message)

    @property
    def is_alive(self) -> bool:
        """Whether the engine is still looked after; otherwise only a new server can help."""
        return self.engine.is_alive

    async def lost(self) -> EngineLostError:
        """Wait until only a new server can help; return why."""
        await self.engine.lost()
        return EngineLostError(f"only a new server can start another engine: {self._why_lost}")

    async def idle(self) -> None:
        """Wait until no chat is rendered and no request runs or waits."""
        await self.engine.idle()
        while self._template.num_rendering:
            await self._template.idle()
            await self.engine.idle()  # what was rendered is submitted at once

    async def stop(self) -> None:
        """End the engine; requests that still run fail."""
        await self._sharing.stop()
        await self._template.stop()
        await self.engine.stop()

    async def chat(
        self,
        body: ChatCompletionRequest,
        request_id: str,
        tenant: Tenant = NO_TENANT,
        resumable: Resumable | None = None,
    ) -> list[Generation]:
        """Submit a chat, one generation a choice; raises as `complete` does."""
        self._check_count(body.num_generated_choices, "n")
        self._sharing.refresh()
        render = functools.partial(self._template.render, tenant=tenant.name)
        requests = await chat_requests(body, render, self.facts, request_id)
        return self._submit(requests, body, tenant, resumable)

    def complete(
        self,
        body: CompletionRequest,
        request_id: str,
        tenant: Tenant = NO_TENANT,
        resumable: Resumable | None = None,
    ) -> list[Generation]:
        """Submit a text completion: the choices of the first prompt, then those of the next.

        Raises ApiError; submits all or none. Whoever calls must cancel what is left of them,
        whatever happens.
        """
        self._check_count(len(body.prompts()) * body.num_generated_choices, "prompt")
        requests = completion_requests(body, self.facts, request_id)
        return self._submit(requests, body, tenant, resumable)

    def _submit(
        self,
        requests: list[Request],
        body: GenerationRequest,
        tenant: Tenant,
        resumable: Resumable | None,
    ) -> list[Generation]:
        if resumable is not None:
            requests = resumable.requests(requests, self.facts, self._config.deterministic)
        return self.engine.submit([self._of_tenant(r, body, tenant) for r in requests])

    def _check_count(self, num_answers: int, param: str) -> None:
        """Raise InvalidRequest for more answers than the queue could ever take, made of nothing."""
        most = self._config.max_waiting + self.facts.max_sequences
        if num_answers > most:
            raise InvalidRequest(
                f"The request asks for {num_answers} answers at once; this model server takes "
                f"{most} at most: lower 'n' or 'best_of', or send fewer prompts.",
                param=param,
            )

    def cancel(self, generations: list[Generation]) -> None:
        """Drop those that still run."""
        for generation in generations:
            self.engine.cancel(generation)

    def _of_tenant(self, request: Request, body: GenerationRequest, tenant: Tenant) -> Request:
        return of_tenant(request, body, tenant, self._config.prefix_sharing)

    # -- EngineObserver ------------------------------------------------------------------------

    def state_changed(self, state: EngineState) -> None:
        """Log it; when the model has been loaded, take its template."""
        self._metrics.state_changed(state)
        if state is EngineState.READY and self.engine.facts is not None:
            facts = self.engine.facts
            self._metrics.model_loaded(facts)
            self._template.take(facts)
            self._sharing.engine_ready(facts.bos_token, self._template.has_date)
            self._log.info(
                "model_ready",
                model=self.name,
                description=facts.description,
                n_ctx=facts.n_ctx,
                max_sequences=facts.max_sequences,
                engine_pid=self.engine.pid,
            )
        else:
            self._log.info("engine_state_changed", model=self.name, state=state.value)

    def loading(self, fraction: float) -> None:
        """Log the progress."""
        self._metrics.loading(fraction)
        self._log.info("model_loading", model=self.name, percent=round(fraction * 100))

    def engine_hung(self, silent_seconds: float) -> None:
        """Log it; the client kills it and starts another engine."""
        self._metrics.engine_hung(silent_seconds)
        self._log.error("engine_hung", model=self.name, silent_seconds=round(silent_seconds, 1))

    def engine_died(self, exit_status: int | None) -> None:
        """Log it; the client starts another engine."""
        self._metrics.engine_died(exit_status)
        self._log.error("engine_died", model=self.name, exit_status=exit_status)

    def engine_not_started(self, why: str) -> None:
        """Log it; the client tries again."""
        self._metrics.engine_not_started()
        self._log.error("engine_not_started", model=self.name, error=why)

    def engine_lost(self, why: str) -> None:
        """Log it; liveness fails, and the server ends."""
        self._why_lost = why
        self._log.critical("engine_lost", model=self.name, error=why)


def worker_options(config: Config) -> str:
    """Return what the engine's process is told at its start, as JSON."""
    options = WorkerOptions(
        model_path=str(config.model_path),
        n_ctx=config.n_ctx,
        n_batch=config.n_batch,
        n_threads=config.n_threads,
        n_gpu_layers=config.n_gpu_layers,
        max_sequences=config.max_sequences,
        kv_cache=config.kv_cache,
        flash_attn=config.flash_attn,
        is_deterministic=config.deterministic,
        host_cache_mib=config.host_cache_mib if config.host_cache_mib >= 0 else None,
        target_step_ms=config.target_step_ms,
        log_level=config.log_level,
        log_format=resolve_format(config.log_format),
    )
    return msgspec.json.encode(options).decode()
