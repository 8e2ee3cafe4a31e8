"""The process that renders: `python -m chat_rendering.child`, frames on its standard input.

It ends with its input. It imports Jinja and nothing heavier, and has bounds of its own: memory,
and the CPU time of each frame, for who started it may be gone.
"""

from __future__ import annotations

import contextlib
import math
import resource
import signal
import sys
from pathlib import Path
from typing import Any, BinaryIO

from chat_rendering.frames import LENGTH, Reason, decode, encode
from openai_protocol.message_template import (
    MessageTemplate,
    OutputTooLong,
    TemplateError,
    TemplateRefusal,
    environment,
)
from openai_protocol.template_cost import is_plain


def main() -> None:
    """Answer frame by frame until the input ends."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # the server decides
    with contextlib.suppress(OSError):  # before any other process of the container
        Path("/proc/self/oom_score_adj").write_text("1000", encoding="ascii")
    source, answers = sys.stdin.buffer, sys.stdout.buffer
    load = _read(source)
    if load is None:
        return
    resource.setrlimit(resource.RLIMIT_AS, (load["max_memory_bytes"],) * 2)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _bound_cpu(load["load_seconds"])
    template: MessageTemplate | None = None
    try:
        template = MessageTemplate(load["source"], load["bos_token"], load["eos_token"])
        tree = environment().parse(load["source"])
        answer: Any = {"is_plain": is_plain(load["source"], tree)}
    except MemoryError:
        answer = _no("invalid", "the chat template takes too much memory to compile")
    except TemplateError as error:
        answer = _no("invalid", str(error)[:2048])
    _write(answers, answer)
    while template is not None:
        try:
            messages = _read(source)
            if messages is None:
                return
            _bound_cpu(load["render_seconds"])
            frame = encode(_rendered(template, messages, load["max_characters"]))
        except MemoryError:  # also to read the chat, or to write its prompt
            messages = None  # or its memory would be kept
            frame = encode(_no("memory"))
        answers.write(frame)
        answers.flush()


def _rendered(template: MessageTemplate, messages: Any, max_characters: int) -> Any:
    try:
        return {"prompt": template.render(messages, max_characters)}
    except TemplateRefusal as error:
        return _no("refused", str(error))
    except OutputTooLong:
        return _no("too_long")
    except MemoryError:
        return _no("memory")
    except TemplateError as error:
        return _no("memory" if isinstance(error.__cause__, MemoryError) else "failed")


def _no(reason: Reason, text: str = "") -> Any:
    return {"reason": reason, "text": text}


def _bound_cpu(seconds: float) -> None:
    """Let the kernel end this process after so much more CPU time, rounded up to a second."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    most = math.ceil(used.ru_utime + used.ru_stime + seconds)
    resource.setrlimit(resource.RLIMIT_CPU, (most, resource.RLIM_INFINITY))


def _read(source: BinaryIO) -> Any:
    head = source.read(LENGTH.size)
    if len(head) < LENGTH.size:
        return None
    (length,) = LENGTH.unpack(head)
    payload = source.read(length)
    return decode(payload) if len(payload) == length else None


def _write(answers: BinaryIO, answer: Any) -> None:
    answers.write(encode(answer))
    answers.flush()


if __name__ == "__main__":
    with contextlib.suppress(BrokenPipeError):
        main()
