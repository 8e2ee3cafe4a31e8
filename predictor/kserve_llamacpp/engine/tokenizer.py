"""Long prompts, tokenized beside the loop, so that nobody's decoding waits for them."""

from __future__ import annotations

import os
import queue
import threading
from collections.abc import Callable

import msgspec

from kserve_llamacpp.engine.frames import Rejected, Submit

Tokenize = Callable[[Submit], Submit | Rejected]


class TokenizeOnce:
    """Tokenizes a text that comes several times in a row once: a request's choices share theirs.

    Owner: one thread.
    """

    def __init__(self, tokenize: Tokenize) -> None:
        self._tokenize = tokenize
        self._last: tuple[str, bool] | None = None
        self._tokens: list[int] = []

    def __call__(self, request: Submit) -> Submit | Rejected:
        """Return the request with token ids for its text, or why it cannot be served."""
        assert isinstance(request.prompt, str)
        text = (request.prompt, request.add_special)
        if text == self._last:
            return self._tokenize(msgspec.structs.replace(request, prompt=self._tokens))
        result = self._tokenize(request)
        if isinstance(result, Submit):
            assert not isinstance(result.prompt, str)
            self._last, self._tokens = text, result.prompt
        return result


class BackgroundTokenizer:
    """One thread that turns texts into token ids, in order; owner: the worker.

    Invariant: a request is either in `_pending`, or its result was collected, or it was forgotten.
    The thread touches nothing but its two queues and the model's vocabulary, which never changes.
    """

    def __init__(self, tokenize: Tokenize) -> None:
        """`tokenize` is called in the thread."""
        self._tokenize = TokenizeOnce(tokenize)
        self._todo: queue.SimpleQueue[Submit] = queue.SimpleQueue()
        self._done: queue.SimpleQueue[Submit | Rejected] = queue.SimpleQueue()
        self._pending: set[int] = set()
        self._wake_reader, self._wake_writer = os.pipe()
        threading.Thread(target=self._run, name="tokenizer", daemon=True).start()

    def fileno(self) -> int:
        """Return a descriptor that can be read as soon as there is a result (for `poll`)."""
        return self._wake_reader

    @property
    def is_busy(self) -> bool:
        """Whether a result is still to come."""
        return bool(self._pending)

    def put(self, request: Submit) -> None:
        """Take a request whose prompt is a text."""
        self._pending.add(request.id)
        self._todo.put(request)

    def forget(self, id: int) -> None:
        """Drop a request; its result will not be collected."""
        self._pending.discard(id)

    def collect(self) -> list[Submit | Rejected]:
        """Return what is done and was not forgotten, in order; does not wait."""
        results = []
        while not self._done.empty():
            os.read(self._wake_reader, 1)  # written before the result was put
            result = self._done.get()
            if result.id in self._pending:
                self._pending.discard(result.id)
                results.append(result)
        return results

    def _run(self) -> None:
        while True:
            request = self._todo.get()
            result = self._tokenize(request)
            os.write(self._wake_writer, b"\0")
            self._done.put(result)
