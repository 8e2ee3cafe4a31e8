"""Texts become token ids: short ones at once, others in processes of their own, tenants in turn."""

from __future__ import annotations

import select
from collections.abc import Callable

import structlog

from kserve_llamacpp.engine.prompt_reader import PromptReader
from kserve_llamacpp.engine.text.text_bounds import TextBounds
from kserve_llamacpp.engine.text.text_queue import Failure, Text, TextQueue
from kserve_llamacpp.engine.text.tokenizer_client import Job, TokenizerProcess
from kserve_llamacpp.wire.frames import Rejected, Submit

_MAX_LOST = 2  # processes that may be lost before they begin with a text
_BACKOFF_SECONDS = 0.5
_MAX_BACKOFF_SECONDS = 30.0
_UNREADABLE = (
    "The model's tokenizer cannot read this prompt: it needs too much memory or time for it. "
    "Most likely a run of very many characters of one kind is the cause: "
    "break it up with spaces or lines."
)


class Tokenizer:
    """Turns the texts of requests into token ids; owner: the worker.

    Invariants: a request is with a text that is new, waits or runs, or its result was collected, or
    it was forgotten; a request's choices, which come one after another, share one text.
    """

    def __init__(
        self,
        prompts: PromptReader,
        start: Callable[[], TokenizerProcess],
        clock: Callable[[], float],
    ) -> None:
        """`start` starts the tokenizer's process; it raises OSError."""
        self._prompts = prompts
        self._start = start
        self._now = clock
        self._log = structlog.get_logger("engine.tokenizer")
        self._news = select.epoll()
        self._bounds: TextBounds | None = None
        self._new: list[Text] = []  # until the bounds are known
        self._queue = TextQueue()
        self._running: dict[Job, Text] = {}
        self._texts: dict[int, Text] = {}  # by request
        self._done: list[Submit | Rejected] = []
        self._last: Text | None = None
        self._process: TokenizerProcess | None = None
        self._num_deaths = 0
        self._start_at = clock()
        self._start_process()

    def fileno(self) -> int:
        """Return a descriptor that can be read as soon as there is news (for `poll`)."""
        return self._news.fileno()

    @property
    def is_busy(self) -> bool:
        """Whether a result is still to come or to be collected."""
        return bool(self._texts or self._done)

    def put(self, request: Submit) -> None:
        """Take a request whose prompt is a text."""
        assert isinstance(request.prompt, str)
        text = self._last
        if text is None or not text.is_of(request):
            text = self._last = Text.of(request)
            self._texts[request.id] = text
            self._sort(text)
            self._start_texts()
        elif text.result is not None:
            self._done.append(self._answer(request, text.result))
        else:
            text.requests.append(request)
            self._texts[request.id] = text

    def forget(self, id: int) -> None:
        """Drop a request; its result will not be collected."""
        text = self._texts.pop(id, None)
        if text is None:
            self._done = [result for result in self._done if result.id != id]
            return
        text.requests = [request for request in text.requests if request.id != id]
        if not text.requests:
            self._drop(text)

    def collect(self) -> list[Submit | Rejected]:
        """Return what is done and was not forgotten; does not wait."""
        ready = {fd for fd, _ in self._news.poll(0)}
        for job, text in list(self._running.items()):
            if job.fileno() in ready and (result := job.result()) is not None:
                self._end(job)
                self._take(text, result)
        if self._process is None:
            self._start_process()
        elif self._process.fileno() in ready:
            self._hear(self._process)
        self._start_texts()
        done, self._done = self._done, []
        return done

    def close(self) -> None:
        """End the process and what it works on."""
        for job in list(self._running):
            self._end(job)
        if self._process is not None:
            self._process.close()
        self._news.close()

    # -- texts ---------------------------------------------------------------------------------

    def _sort(self, text: Text) -> None:
        """Find out what a text needs: nothing, a moment, or a process of its own."""
        if self._bounds is None:
            self._new.append(text)
        elif self._bounds.least_tokens(text.data) > self._prompts.max_length:
            self._finish(text, Failure.TOO_LONG)
        elif self._bounds.is_short(text.data):
            self._finish(text, self._prompts.read_short(text.prompt, text.add_special))
        else:
            self._queue.put(text)

    def _start_texts(self) -> None:
        if self._process is None or self._now() < self._start_at:
            return
        while (text := self._queue.next()) is not None:
            try:
                job = self._process.start(
                    text.data, text.add_special, self._prompts.max_length, text.is_long
                )
            except OSError as error:
                self._log.warning("tokenizer_start_failed", error=str(error))
                self._start_at = self._now() + _BACKOFF_SECONDS
                self._queue.ended(text)
                self._take(text, Failure.LOST)
                return
            self._running[job] = text
            self._news.register(job, select.EPOLLIN)

    def _end(self, job: Job) -> None:
        self._news.unregister(job)
        self._queue.ended(self._running.pop(job))
        job.close()

    def _take(self, text: Text, result: list[int] | Failure) -> None:
        if result is Failure.LOST:
            text.num_lost += 1
            if text.num_lost <= _MAX_LOST:
                self._queue.put(text)
                return
        if result is Failure.UNREADABLE:
            self._log.warning("prompt_unreadable", num_bytes=len(text.data))
        self._finish(text, result)

    def _finish(self, text: Text, result: list[int] | Failure) -> None:
        text.result = result
        for request in text.requests:
            del self._texts[request.id]
            self._done.append(self._answer(request, result))
        text.requests = []

    def _answer(self, request: Submit, result: list[int] | Failure) -> Submit | Rejected:
        match result:
            case Failure.TOO_LONG:
                return self._prompts.too_long(request)
            case Failure.UNREADABLE:
                return Rejected(request.id, "unreadable_prompt", _UNREADABLE)
            case Failure.LOST:
                return Rejected(request.id, "failed", "the tokenizer failed")
            case tokens:
                return self._prompts.with_tokens(request, tokens)

    def _drop(self, text: Text) -> None:
        if text in self._new:
            self._new.remove(text)
        self._queue.drop(text)
        for job in [job for job, running in self._running.items() if running is text]:
            self._end(job)
        if text is self._last:
            self._last = None
        self._start_texts()

    # -- the process ---------------------------------------------------------------------------

    def _hear(self, process: TokenizerProcess) -> None:
        """Take note of what the process told, or of its end."""
        if process.is_alive():
            self._num_deaths = 0
            self._bounds = process.bounds
            new, self._new = self._new, []
            for text in new:
                self._sort(text)
            return
        self._news.unregister(process)
        process.close()
        self._process = None
        self._died("tokenizer_died")

    def _start_process(self) -> None:
        if self._now() < self._start_at:
            return
        try:
            self._process = self._start()
        except OSError as error:
            self._died("tokenizer_start_failed", error=str(error))
            return
        self._news.register(self._process, select.EPOLLIN)

    def _died(self, event: str, **fields: str) -> None:
        delay = min(_BACKOFF_SECONDS * 2.0**self._num_deaths, _MAX_BACKOFF_SECONDS)
        self._num_deaths = min(self._num_deaths + 1, 16)
        self._start_at = self._now() + delay
        self._log.warning(event, next_start_seconds=delay, **fields)
