"""The engine's process: reads commands, runs the loop, writes reports.

Started as `python -m kserve_llamacpp.engine.worker FD OPTIONS`: FD is its end of a socket pair,
OPTIONS a JSON object (`WorkerOptions`). It ignores SIGINT and SIGTERM, for the server decides when
it ends: it leaves at once when the other end of the socket closes.
"""

from __future__ import annotations

import logging
import os
import select
import signal
import socket
import sys
import threading
import time
from pathlib import Path

import msgspec
import structlog

from http_edge import cgroup
from kserve_llamacpp.engine.assembly import make_engine
from kserve_llamacpp.engine.backend import DecodeFailed
from kserve_llamacpp.engine.engine import Engine
from kserve_llamacpp.engine.text.shared_texts import SharedTexts
from kserve_llamacpp.engine.text.tokenizer import Tokenizer
from kserve_llamacpp.engine.text.tokenizer_client import TokenizerStarter, tokenizer_command
from kserve_llamacpp.logging import configure_logging
from kserve_llamacpp.wire.frames import (
    Cancel,
    Command,
    Event,
    Fatal,
    FrameReader,
    Hello,
    Loading,
    Output,
    Prompts,
    Rejected,
    Report,
    SharePrompts,
    Step,
    Submit,
    decode_command,
    encode,
)
from kserve_llamacpp.wire.worker_options import WorkerOptions

_READ_BYTES = 1 << 20
_READS_A_STEP = 4  # while there is work, so that commands hold up no step for long
_HEARTBEAT_SECONDS = 1.0  # while a long text is tokenized, so that silence means a hang
EXIT_DECODE_FAILED = 70


class Channel:
    """The engine's end of the socket; owner: the main thread.

    Reports are written whole before the loop goes on, so nothing piles up here: a server that
    does not read makes the engine wait.
    """

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._reader = FrameReader()
        self._poll = select.poll()  # not select(): the descriptor may be over 1023
        self._poll.register(sock, select.POLLIN)

    def wake_by(self, source: Tokenizer) -> None:
        """Let `receive` also return when this has something to collect."""
        self._poll.register(source, select.POLLIN)

    def send(self, report: Report) -> None:
        """Write a report; the process ends when nobody is there to read it."""
        try:
            self._sock.sendall(encode(report))
        except OSError:
            os._exit(0)

    def receive(self, wait_seconds: float | None) -> list[Command]:
        """Return some of the commands that have come; sleep that long for something to happen."""
        commands: list[Command] = []
        own = self._sock.fileno()
        ready = self._poll.poll(None if wait_seconds is None else wait_seconds * 1000)
        for _ in range(_READS_A_STEP):
            if all(descriptor != own for descriptor, _ in ready):
                break
            data = self._sock.recv(_READ_BYTES)
            if not data:
                os._exit(0)
            commands += [decode_command(payload) for payload in self._reader.feed(data)]
            ready = self._poll.poll(0)
        return commands


class Worker:
    """The loop around the engine; owner: the main thread."""

    def __init__(self, channel: Channel, engine: Engine, tokenizer: Tokenizer) -> None:
        self._channel = channel
        self._engine = engine
        self._tokenizer = tokenizer
        self._prompts = Prompts()
        self._shared: SharedTexts | None = None
        channel.wake_by(tokenizer)
        self._log = structlog.get_logger("engine")
        self._request_ids: dict[int, str] = {}

    def run(self) -> None:
        """Serve until the socket closes; raises DecodeFailed when the model is lost."""
        while True:
            for command in self._channel.receive(self._wait_seconds()):
                self._apply(command)
            for result in self._tokenizer.collect():
                self._take(result)
            began = time.monotonic()
            step = self._engine.step()
            seconds = time.monotonic() - began
            stats = msgspec.structs.replace(step.stats, step_seconds=seconds)
            for event in step.events:
                self._note_end(event)
            self._channel.send(Step(step.events, stats))

    def _wait_seconds(self) -> float | None:
        if self._engine.has_work:
            return 0.0
        return _HEARTBEAT_SECONDS if self._tokenizer.is_busy else None

    def _apply(self, command: Command) -> None:
        match command:
            case Submit():
                self._request_ids[command.id] = command.request_id
                self._log.debug(
                    "sequence_submitted",
                    request_id=command.request_id,
                    replayed_tokens=len(command.resume),
                )
                command = self._prompts.whole(command)
                if isinstance(command.prompt, str):
                    self._tokenizer.put(command)
                else:
                    self._engine.submit(command)
            case SharePrompts():
                self._shared = SharedTexts(command)
                for request in self._shared.requests:
                    self._tokenizer.put(request)
                if not self._shared.requests:
                    self._share(self._shared)
            case Cancel():
                self._tokenizer.forget(command.id)
                self._engine.cancel(command.id)
                self._note(command.id, "cancelled")

    def _take(self, request: Submit | Rejected) -> None:
        if request.id < 0:
            if self._shared is not None and self._shared.take(request):
                self._share(self._shared)
        elif isinstance(request, Submit):
            self._engine.submit(request)
        else:
            self._engine.reject(request)

    def _share(self, texts: SharedTexts) -> None:
        tokens = self._engine.share_prompts(texts.command, texts.tokens)
        self._log.info("prompts_shared", tokens=tokens)
        self._shared = None

    def _note_end(self, event: Event) -> None:
        match event:
            case Output(finish_reason=str(reason)):
                self._note(event.id, reason)
            case Rejected(reason=reason):
                self._note(event.id, f"rejected: {reason}")

    def _note(self, id: int, end: str) -> None:
        request_id = self._request_ids.pop(id, None)
        if request_id is not None:
            self._log.debug("sequence_ended", request_id=request_id, end=end)


def main(argv: list[str]) -> int:
    """Load the model and serve; return the exit status."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    sock = socket.socket(fileno=int(argv[1]))
    options = msgspec.json.decode(argv[2], type=WorkerOptions)
    # llama.cpp says why it is about to abort
    configure_logging(options.log_level, options.log_format, urgent=logging.ERROR)
    log = structlog.get_logger("engine")
    _leave_with(sock)
    channel = Channel(sock)
    try:
        from kserve_llamacpp.engine.llama import LlamaBackend, LoadFailed, LoadOptions
    # AttributeError: a library of another version, which lacks a function.
    except (AttributeError, ImportError, OSError, RuntimeError) as error:
        hint = "install llama-cpp-python for this machine, or correct LLAMA_CPP_LIB_PATH"
        channel.send(Fatal("configuration", f"llama.cpp cannot be loaded: {error}; {hint}"))
        return 1
    tokenizers = TokenizerStarter(tokenizer_command(options.model_path))
    try:
        backend = LlamaBackend(
            LoadOptions(
                model_path=Path(options.model_path),
                n_ctx=options.n_ctx,
                n_batch=options.n_batch,
                n_threads=options.n_threads,
                n_gpu_layers=options.n_gpu_layers,
                max_sequences=options.max_sequences,
                kv_cache=options.kv_cache,
                flash_attn=options.flash_attn,
                is_deterministic=options.is_deterministic,
            ),
            on_progress=lambda fraction: channel.send(Loading(fraction)),
            on_log=lambda level, line: getattr(log, level)("llama_cpp", line=line),
        )
    except LoadFailed as error:
        channel.send(Fatal(reason=error.reason, message=str(error)))
        return 1
    try:
        host_cache_mib = bounded(options.host_cache_mib, cgroup.available_memory())
        options = msgspec.structs.replace(options, host_cache_mib=host_cache_mib)
        engine = make_engine(backend, options, time.monotonic)
        channel.send(Hello(backend.facts()))
        Worker(channel, engine, Tokenizer(engine.prompts, tokenizers, time.monotonic)).run()
    except DecodeFailed as error:
        log.error("decode_failed", error=str(error))
        return EXIT_DECODE_FAILED
    return 0


def bounded(asked_mib: int | None, available: int | None) -> int | None:
    """Return as much host memory, in MiB, as was asked for, or as is left beside the loaded model.

    Too little is no reason to stop: an engine that is started again may find less than the first.
    """
    if asked_mib is None or available is None or asked_mib <= available >> 20:
        return asked_mib
    left = available >> 20
    structlog.get_logger("engine").warning("host_cache_bounded", asked_mib=asked_mib, left_mib=left)
    return left


def _leave_with(sock: socket.socket) -> None:
    """End the process as soon as the other end closes, also in the middle of a step."""

    def watch() -> None:
        poll = select.poll()
        poll.register(sock, select.POLLRDHUP)
        poll.poll()
        os._exit(0)

    threading.Thread(target=watch, name="leave-with-server", daemon=True).start()


if __name__ == "__main__":
    sys.exit(main(sys.argv))
