"""The tokenizer's process: each text is tokenized in a process forked for it, which it may end.

llama.cpp's tokenizers recurse once a character, end the process where they meet what they did not
expect, and take the square of some texts' lengths: a text can end or stop whoever tokenizes it.
Here that is a fork with limits of its own (stack, memory, processor time), and nobody else notices.

Started as `python -m kserve_llamacpp.engine.text.tokenizer_process FD MODEL_PATH`: FD is its end of
a socket pair (SOCK_SEQPACKET). It has one thread, and leaves when the engine's end closes; so does
a fork whose answer nobody waits for any more.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import gc
import os
import resource
import signal
import socket
import struct
import sys
import threading
import time
from array import array
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Protocol

import msgspec

from http_edge import cgroup
from kserve_llamacpp.engine.text.special_tokens import SpecialTokens
from kserve_llamacpp.engine.text.text_bounds import PromptTooLong, TextBounds

REQUEST = struct.Struct("<??QQ")  # add_special, is_long, the most tokens, bytes of text
TAKEN = b"\x01"  # a process was forked for the text
ANSWER = struct.Struct("<?Q")  # whether it fits, and its tokens: they lie in the memory file
_PR_SET_PDEATHSIG = 1
_MEASURED = struct.Struct("<d")
ARRAY_TYPE = "i"  # array's name for llama.cpp's type

_FORK_TRIES = 8
_FORK_PAUSE_SECONDS = 0.25
_BASE_SECONDS = 10  # of processor time
_SECONDS_PER_KIB = 0.003
_MAX_MEMORY = 1 << 30  # bytes beside what is loaded
_SHARE_OF_MEMORY = 4  # or so much of what is left: a tenant may have three of them at a time
_MAX_STACK = 256 << 20  # bytes: a run of 900,000 characters, each of which takes 290
_LONG_NICENESS = 10  # long texts are not worth anybody's decode steps

# So many bytes are a short text, if each of `_PROBES` in that length is done in so long with a
# quarter of the stack that an engine has at least.
_SHORT_BYTES = (4096, 1024, 256)
_SHORT_SECONDS = 0.02
_SHORT_STACK = 2 << 20
_PROBE_SPECIALS = 64
_PROBES = (
    *("A", "a", "é", "ア", "가", "1", "²", " ", "\n", "\r\n", "\t", "\u00a0", ".", "$", "_", "/"),
    *("😀", "\u0301", "\u200d", "\x00", "\x7f", "\ufffd", "\uffff", "\U0010ffff", "a\u0301"),
    *("a ", "1 ", " 1", "'s", "_a", "aA", "a\n", "\n ", "".join(map(chr, range(1, 256)))),
)


class Vocabulary(Protocol):
    """As much of a model's vocabulary as tokenizes."""

    specials: SpecialTokens

    @property
    def is_plain(self) -> bool:
        """Whether no short text harms."""
        ...

    def longest_tokens(self) -> list[int]:
        """Return for each byte how long a token that may stand for it can be; 0: not known."""
        ...

    def tokenize(self, text: bytes, add_special: bool, longest: int) -> list[int]:
        """Return a text's token ids; raises PromptTooLong."""
        ...


def serve(sock: socket.socket, vocabulary: Vocabulary) -> None:
    """Fork for each text that comes, until the other end closes; first tell the `TextBounds`."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the forks
    gc.freeze()
    sock.send(msgspec.msgpack.encode(bounds(vocabulary)))
    while True:
        request, fds, _, _ = socket.recv_fds(sock, REQUEST.size, 2)
        if not request:
            return
        if _fork() == 0:
            try:
                sock.close()
                _tokenize(vocabulary, request, *fds)
            finally:  # also where nobody waits for it any more
                os._exit(1)
        for fd in fds:
            os.close(fd)


def _fork() -> int | None:
    """Fork; None where there is no memory or no process left for a while."""
    for _ in range(_FORK_TRIES):
        try:
            return os.fork()
        except OSError:
            time.sleep(_FORK_PAUSE_SECONDS)
    return None


def _tokenize(vocabulary: Vocabulary, request: bytes, text_fd: int, answer_fd: int) -> None:
    """Tokenize one text in this fork, and leave if it could be."""
    add_special, is_long, longest, size = REQUEST.unpack(request)
    answers = socket.socket(fileno=answer_fd)
    answers.send(TAKEN)
    _leave_with(answers)
    if is_long:
        os.nice(_LONG_NICENESS)
    stack = _limit(size)

    def run() -> None:
        text = os.pread(text_fd, size, 0)
        try:
            tokens = array(ARRAY_TYPE, vocabulary.tokenize(text, add_special, longest))
        except PromptTooLong:
            answers.send(ANSWER.pack(False, 0))
        else:
            os.ftruncate(text_fd, 0)
            os.pwrite(text_fd, tokens.tobytes(), 0)
            answers.send(ANSWER.pack(True, len(tokens)))
        os._exit(0)

    _run_with_stack(stack, run)


def _run_with_stack(stack: int, run: Callable[[], None]) -> None:
    threading.stack_size(stack)
    thread = threading.Thread(target=run)
    thread.start()
    thread.join()


def _leave_with(answers: socket.socket) -> None:
    """Let the kernel end this process as soon as nobody waits for its answer."""
    fcntl.fcntl(answers, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(answers, fcntl.F_SETFL, fcntl.fcntl(answers, fcntl.F_GETFL) | os.O_ASYNC)
    with contextlib.suppress(BlockingIOError):
        if answers.recv(1, socket.MSG_DONTWAIT) == b"":  # it closed before
            os._exit(0)


def _limit(size: int) -> int:
    """Bound what this process may take for a text of so many bytes; return its stack's size."""
    _be_quiet()
    with contextlib.suppress(OSError):  # the first to go when the container's memory ends
        Path("/proc/self/oom_score_adj").write_text("1000")
    seconds = _BASE_SECONDS + int(size / 1024 * _SECONDS_PER_KIB)
    _bound(resource.RLIMIT_CPU, seconds)
    available = cgroup.available_memory()
    memory = _MAX_MEMORY if available is None else min(_MAX_MEMORY, available // _SHARE_OF_MEMORY)
    taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    _bound(resource.RLIMIT_AS, taken + memory)
    return min(_MAX_STACK, max(_SHORT_STACK, memory // 2)) // 4096 * 4096


def _bound(limit: int, value: int) -> None:
    """Set a limit of this process; one that is lower already stays."""
    _, hard = resource.getrlimit(limit)
    if hard != resource.RLIM_INFINITY:
        value = min(value, hard)
    resource.setrlimit(limit, (value, value))


def _end_with_parent() -> None:
    """Let the kernel end this process with the thread that started it."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _be_quiet() -> None:
    """Leave neither lines nor files behind when a text ends this process."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    null = os.open(os.devnull, os.O_RDWR)
    for fd in (1, 2):
        os.dup2(null, fd)


def bounds(vocabulary: Vocabulary) -> TextBounds:
    """Measure what texts take, in forks."""
    short_bytes, short_specials = _measure(vocabulary) if vocabulary.is_plain else (0, 0)
    starts, longest = vocabulary.specials.starts, vocabulary.longest_tokens()
    return TextBounds(short_bytes, short_specials, starts, longest)


def _measure(vocabulary: Vocabulary) -> tuple[int, int]:
    """Return how many bytes a short text may have, and how many special tokens."""
    for size in _SHORT_BYTES:
        slowest = _in_fork(partial(_slowest, vocabulary, size))
        if slowest is not None and slowest <= _SHORT_SECONDS:
            return size, _short_specials(vocabulary)
    return 0, 0


def _short_specials(vocabulary: Vocabulary) -> int:
    """Return how many special tokens a short text may have."""
    if not (special := vocabulary.specials.example):
        return 0
    text = (special + b"a") * _PROBE_SPECIALS
    seconds = _in_fork(partial(_seconds, vocabulary, text))
    if seconds is None:
        return 0
    return min(_PROBE_SPECIALS, int(_PROBE_SPECIALS * _SHORT_SECONDS / 4 / seconds))


def _slowest(vocabulary: Vocabulary, size: int) -> float:
    """Return the processor time of the slowest probe in this length."""
    texts = ((probe * size).encode()[:size] for probe in _PROBES)
    return max(_seconds(vocabulary, text) for text in texts)


def _seconds(vocabulary: Vocabulary, text: bytes) -> float:
    began = time.thread_time()
    vocabulary.tokenize(text, True, 8 * len(text))
    return time.thread_time() - began


def _in_fork(measure: Callable[[], float]) -> float | None:
    """Return what is measured in a fork with a short text's stack; None where it dies."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        _end_with_parent()
        os.nice(19)  # the model is being loaded
        _be_quiet()
        _bound(resource.RLIMIT_CPU, _BASE_SECONDS)

        def run() -> None:
            os.write(writer, _MEASURED.pack(measure()))

        _run_with_stack(_SHORT_STACK, run)
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        told = pipe.read()
    return float(_MEASURED.unpack(told)[0]) if told else None


def main(argv: list[str]) -> int:
    """Load the vocabulary and serve; return the exit status."""
    for number in (signal.SIGINT, signal.SIGTERM):  # it ends with the engine
        signal.signal(number, signal.SIG_IGN)
    sock = socket.socket(fileno=int(argv[1]))
    _end_with_parent()
    from kserve_llamacpp.engine.llama import LoadFailed
    from kserve_llamacpp.engine.llama.vocabulary_file import VocabularyFile

    try:
        vocabulary = VocabularyFile(Path(argv[2]), on_log=lambda level, line: None)
    except LoadFailed:  # the engine says why
        return 1
    serve(sock, vocabulary)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv))
