"""No text ends an engine through its tokenizer, and the token ids are llama.cpp's own."""

from __future__ import annotations

import contextlib
import os
import random
import resource
import subprocess
import sys
import time
import unicodedata
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from kserve_llamacpp.engine.llama.vocabulary_file import VocabularyFile
from kserve_llamacpp.engine.text.text_bounds import TextBounds
from kserve_llamacpp.engine.text.tokenizer import Tokenizer
from kserve_llamacpp.wire.frames import Rejected, Submit
from tests.predictor.engine.text.tokenizing import (
    SECONDS,
    ShortTexts,
    results_of,
    submit,
    tokenizer_of,
)
from tests.predictor.tiny_models import write_vocabulary

# One name for each list of patterns of llama.cpp, but "whitespace", which aborts at two spaces.
PRE_TOKENIZERS = (
    *("afmoe", "bailingmoe", "bloom", "chameleon", "chatglm-bpe", "cohere2moe", "command-r"),
    *("deepseek-coder", "deepseek-llm", "deepseek-v3", "default", "exaone-moe", "falcon", "gpt-2"),
    *("gpt-4o", "granite-embed-multi-97m", "grok-2", "jais-2", "kimi-k2", "laguna", "llama-bpe"),
    *("minicpm5", "qwen2", "qwen35", "sarvam-moe", "seed-coder", "smollm", "spark2_5"),
    *("superbpe", "tekken", "ufakzeka", "viking", "youtu"),
)
VOCABULARIES = os.environ.get("LLAMA_CPP_VOCABULARIES")  # a folder: llama.cpp's own `models`
RUN = 100
MIX = 800


def adversarial_texts(specials: list[str]) -> list[bytes]:
    """Return runs of a character of each category, and mixes of them with special tokens."""
    rng = random.Random(13)
    by_category: dict[str, list[str]] = {}
    for code in range(0x20000):
        by_category.setdefault(unicodedata.category(chr(code)), []).append(chr(code))
    del by_category["Cs"]  # no text has them
    chars = [rng.choice(chars) for chars in by_category.values()]
    chars += [
        *"Aa1 .$_/<\n\r\t\0",
        "\u0301",
        "\u200d",
        "😀",
        "가",
        "アー",
        "'s",
        "\ufffd",
        "\U0010ffff",
    ]
    texts = [char * RUN for char in chars]
    texts += ["".join(rng.choices(chars, k=MIX)), "".join(rng.choices("ab \n1.", k=MIX))]
    texts += ["".join(rng.choices([*specials, "a", " ", "\n", "<|"], k=400))] if specials else []
    invalid = [b"\xff\xfe" * 20, b"a\xe2\x82 b", b"\xc3", b"\xed\xa0\x80"]
    return [*(text.encode() for text in texts), *invalid]


def whole(vocabulary: VocabularyFile, text: bytes) -> list[int]:
    """Return what llama.cpp itself makes of a text, in one go."""
    return vocabulary._vocabulary.tokenize(text, True)


@pytest.mark.parametrize("pre", PRE_TOKENIZERS)
def test_the_token_ids_are_llama_cpps(tmp_path: Path, pre: str) -> None:
    """For each of its pre-tokenizers, and runs, mixes, special tokens and broken characters."""
    path = write_vocabulary(tmp_path / "vocabulary.gguf", pre)
    vocabulary = VocabularyFile(path, lambda level, line: None)
    for text in adversarial_texts(["<|im_start|>", "<|im_end|>"]):
        tokens = whole(vocabulary, text)
        assert vocabulary.tokenize(text, True, 10_000) == tokens, text[:20]


@pytest.mark.skipif(not VOCABULARIES, reason="LLAMA_CPP_VOCABULARIES names no folder")
def test_the_token_ids_of_all_vocabularies_are_llama_cpps() -> None:
    """The same for the vocabularies that come with llama.cpp's source, where they are at hand."""
    for path in sorted(Path(VOCABULARIES or "").glob("ggml-vocab-*.gguf")):
        vocabulary = VocabularyFile(path, lambda level, line: None)
        specials = [vocabulary.specials.example.decode()] if vocabulary.specials.example else []
        for text in adversarial_texts(specials):
            tokens = whole(vocabulary, text)
            assert vocabulary.tokenize(text, True, 10_000) == tokens, (path, text[:20])
            if all(byte < 0x80 for byte in text):
                bounds_are_kept = least_tokens(vocabulary, text) <= len(tokens)
                assert bounds_are_kept, (path, text[:20])


def least_tokens(vocabulary: VocabularyFile, text: bytes) -> int:
    """Return how many tokens a text is said to have at least."""
    return TextBounds(0, 0, b"", vocabulary.longest_tokens()).least_tokens(text)


@dataclass
class Run:
    """A tokenizer of a tiny vocabulary that is ready, and its process."""

    tokenizer: Tokenizer
    texts: ShortTexts
    process: psutil.Process

    def put(self, *texts: str) -> None:
        """Put texts in, as requests 1, 2, ..."""
        for number, text in enumerate(texts, 1):
            self.tokenizer.put(submit(number, text))

    def results(self, count: int) -> list[Submit | Rejected]:
        """Return as many results, by request."""
        results = results_of(self.tokenizer, count)
        return [results[number] for number in sorted(results)]


@pytest.fixture
def begin(tmp_path: Path) -> Iterator[Callable[[str], Run]]:
    """Return what starts a tokenizer for a pre-tokenizer."""
    with contextlib.ExitStack() as stack:

        def start(pre: str) -> Run:
            path = write_vocabulary(tmp_path / "vocabulary.gguf", pre)
            texts = ShortTexts(VocabularyFile(path, lambda level, line: None))
            before = set(psutil.Process().children())
            tokenizer = tokenizer_of(path, texts)
            stack.callback(tokenizer.close)
            (process,) = set(psutil.Process().children()) - before
            tokenizer.put(submit(0, "hi"))
            results_of(tokenizer, 1)
            return Run(tokenizer, texts, process)

        yield start


def test_a_run_that_ended_engines_is_answered(begin: Callable[[str], Run]) -> None:
    """30,000 letters A, with the pre-tokenizer of Mistral's newer models: every token is there.

    A short text beside it is read by the engine itself.
    """
    run = begin("tekken")
    run.put("A" * 30_000, "A" * 300)
    long, short = run.results(2)
    assert isinstance(long, Submit)
    assert isinstance(short, Submit)
    assert isinstance(short.prompt, list)
    assert long.prompt == short.prompt * 100
    assert run.texts.short == ["hi", "A" * 300]


def test_a_text_that_ends_its_process_ends_nothing_else(begin: Callable[[str], Run]) -> None:
    """It is refused, and the tokenizer's process goes on; no text is short for such a vocabulary.

    llama.cpp aborts at two spaces with this pre-tokenizer.
    """
    run = begin("whitespace")
    run.put("a  b", "ab")
    refused, answered = run.results(2)
    assert isinstance(refused, Rejected)
    assert refused.reason == "unreadable_prompt"
    assert isinstance(answered, Submit)
    assert run.texts.short == []
    assert run.process.is_running()


def test_a_killed_process_is_replaced(begin: Callable[[str], Run]) -> None:
    """A text that comes after the tokenizer's process was killed is tokenized by the next."""
    run = begin("tekken")
    run.process.kill()
    run.put("A" * 10_000)
    (result,) = run.results(1)
    assert isinstance(result, Submit)


def test_what_nobody_waits_for_ends(begin: Callable[[str], Run]) -> None:
    """A cancelled text's process ends at once, one of many seconds too."""
    run = begin("superbpe")
    run.put("1" * 60_000)  # takes the square of its length
    deadline = time.monotonic() + SECONDS
    while not run.process.children():
        assert time.monotonic() < deadline
    run.tokenizer.forget(1)
    while run.process.children():
        assert time.monotonic() < deadline
    assert run.process.is_running()
    assert not run.tokenizer.is_busy


def test_it_ends_with_its_engine(tmp_path: Path) -> None:
    """An engine that is killed leaves no tokenizer behind, nor what tokenizes a text just now."""
    path = write_vocabulary(tmp_path / "vocabulary.gguf", "superbpe")
    command = [sys.executable, "-c", _ENGINE, str(path)]
    with subprocess.Popen(command, cwd=Path(__file__).parents[4]) as engine:
        deadline = time.monotonic() + SECONDS
        while len(left := psutil.Process(engine.pid).children(recursive=True)) < 2:
            assert time.monotonic() < deadline
        engine.kill()
    assert psutil.wait_procs(left, timeout=10)[1] == []


_ENGINE = """
import sys
from pathlib import Path
from tests.predictor.engine.text.tokenizing import ShortTexts, results_of, submit, tokenizer_of

tokenizer = tokenizer_of(Path(sys.argv[1]), ShortTexts())
tokenizer.put(submit(0, "hi"))
results_of(tokenizer, 1)
tokenizer.put(submit(1, "1" * 60_000))
results_of(tokenizer, 1)
"""


def test_a_request_that_leaves_at_once_leaves_no_lines_behind(
    begin: Callable[[str], Run], capfd: pytest.CaptureFixture[str]
) -> None:
    """A fork that finds nobody there ends without a word, and the process goes on."""
    run = begin("gpt-2")
    forked = psutil.Process().children(recursive=True)
    run.process.suspend()
    run.put("a long text " * 1000)
    run.tokenizer.forget(1)
    run.process.resume()
    run.put("another long text " * 1000)
    assert isinstance(run.results(1)[0], Submit)
    deadline = time.monotonic() + SECONDS
    while set(psutil.Process().children(recursive=True)) - set(forked):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert capfd.readouterr().err == ""


def test_limits_that_the_container_has_set_lower_hold(begin: Callable[[str], Run]) -> None:
    """They cannot be raised: a text is tokenized within them, and is not refused for that."""
    run = begin("gpt-2")
    resource.prlimit(run.process.pid, resource.RLIMIT_CPU, (5, 5))
    run.put("a long text " * 1000)
    assert isinstance(run.results(1)[0], Submit)
