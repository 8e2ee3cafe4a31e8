"""A tokenizer over vocabularies alone, and an engine that does no more than ask for tokens."""

from __future__ import annotations

import select
import time
from pathlib import Path

from kserve_llamacpp.engine.llama.vocabulary_file import VocabularyFile
from kserve_llamacpp.engine.prompt_reader import PromptReader
from kserve_llamacpp.engine.text.tokenizer import Tokenizer
from kserve_llamacpp.engine.text.tokenizer_client import TokenizerProcess, tokenizer_command
from kserve_llamacpp.wire.frames import Rejected, SamplingParams, Submit

SECONDS = 60.0


def submit(id: int, prompt: str, tenant: str = "", request_id: str = "") -> Submit:
    """Return a request with a text."""
    return Submit(id, request_id or f"r{id}", prompt, None, SamplingParams(), tenant=tenant)


class ShortTexts:
    """A vocabulary of a model with a long context; notes the texts that are short."""

    n_vocab = 1 << 30

    def __init__(self, vocabulary: VocabularyFile | None = None, max_length: int = 1 << 20) -> None:
        self.max_length = max_length
        self.short: list[str] = []
        self._vocabulary = vocabulary

    def tokenize(self, text: str, add_special: bool) -> list[int]:
        """Tokenize a text here."""
        self.short.append(text)
        if self._vocabulary is None:
            return [len(text)]
        return self._vocabulary.tokenize(text.encode(), add_special, self.max_length)


def tokenizer_of(path: Path, texts: ShortTexts) -> Tokenizer:
    """Return a tokenizer with a process of its own for a model's file."""
    command = tokenizer_command(str(path))
    return Tokenizer(PromptReader(texts), lambda: TokenizerProcess(command), time.monotonic)


def results_of(tokenizer: Tokenizer, count: int) -> dict[int, Submit | Rejected]:
    """Wait as the worker does until so many results have come."""
    poll = select.poll()
    poll.register(tokenizer, select.POLLIN)
    results: dict[int, Submit | Rejected] = {}
    deadline = time.monotonic() + SECONDS
    while len(results) < count:
        assert time.monotonic() < deadline, f"no result but {list(results)}"
        results |= {result.id: result for result in tokenizer.collect()}
        if len(results) < count:
            poll.poll(200)
    return results
