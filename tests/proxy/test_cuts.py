"""Streams of all dialects, in whatever pieces a network delivers them, and as far as they come."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from openai_protocol.errors import ApiError
from openai_proxy.dialects.base import Call, Dialect
from openai_proxy.dialects.kserve_v1 import KServeV1Dialect
from openai_proxy.dialects.kserve_v2 import KServeV2Dialect
from openai_proxy.dialects.ollama import OllamaDialect
from openai_proxy.dialects.openai import OpenAIDialect
from openai_proxy.dialects.registry import _DIALECTS
from openai_proxy.dialects.sglang import SglangDialect
from openai_proxy.dialects.shimmy import ShimmyDialect
from openai_proxy.dialects.tgi import TgiDialect
from openai_proxy.dialects.triton import TritonDialect
from tests.proxy.harness import chunk
from tests.proxy.standin import shimmy_server, tgi_server
from tests.proxy.translating import CUTS, USAGE, chat, ends, fed, pieces, render, said, text

TEXT = "Hé \U0001f600,\n\nyou"
# In the middle of a character, of a surrogate pair's two, of a newline's escape
WORDS = ("Hé", " \U0001f600", ",\n", "\nyou")
DONE = b"data: [DONE]\n\n"
CALL = chat(**USAGE)


def event(value: Any, space: str = " ") -> bytes:
    """An event as most servers write it: characters are not escaped."""
    return f"data:{space}{json.dumps(value, ensure_ascii=False)}\n\n".encode()


def openai() -> bytes:
    return b"".join(chunk(word) for word in WORDS) + b": note\n\n" + DONE


def ollama() -> bytes:
    lines = [{"message": {"role": "assistant", "content": word}, "done": False} for word in WORDS]
    lines[1]["message"] |= {"thinking": "Hm é"}
    last = {"message": {"content": ""}, "done": True, "done_reason": "stop"}
    last |= {"prompt_eval_count": 3, "eval_count": 4}
    return b"".join(json.dumps(x, ensure_ascii=False).encode() + b"\n" for x in [*lines, last])


def tgi() -> bytes:
    made = [tgi_server.token(word) for word in WORDS]
    details = {"finish_reason": "eos_token", "generated_tokens": 4, "input_length": 3}
    made[-1] |= {"generated_text": TEXT, "details": details}
    return tgi_server.KEEP_ALIVE + b"".join(event(value, space="") for value in made)


def sglang() -> bytes:
    whole = b""
    for n in range(1, len(WORDS) + 1):
        reason = {"type": "stop", "matched": 2} if n == len(WORDS) else None
        meta = {"finish_reason": reason, "prompt_tokens": 3, "completion_tokens": n}
        whole += event({"text": "".join(WORDS[:n]), "meta_info": meta})
    return whole + DONE


def sglang_incremental() -> bytes:
    whole = b""
    for n, word in enumerate(WORDS, 1):
        reason = {"type": "stop", "matched": 2} if n == len(WORDS) else None
        meta = {"finish_reason": reason, "prompt_tokens": 3, "completion_tokens": n}
        whole += event({"text": word, "meta_info": meta})
    return whole + DONE


def shimmy_chunks() -> bytes:
    made = [shimmy_server.chunk({"role": None, "content": word}) for word in WORDS]
    return b"".join(made) + shimmy_server.chunk({"role": None, "content": None}, "stop") + DONE


def shimmy_text() -> bytes:
    return b"".join(map(shimmy_server.raw_event, WORDS)) + DONE


def generated() -> bytes:
    return b"".join(
        event({"text_output": word, "details": {"finish_reason": reason}})
        for word, reason in zip(WORDS, (None, None, None, "eos_token"), strict=True)
    )


def triton() -> bytes:
    return b"".join(
        event({"text_output": word, "finish_reason": reason, "num_output_tokens": 1})
        for word, reason in zip(WORDS, ("None", "None", "None", "stop"), strict=True)
    )


def infer() -> bytes:
    output = {"name": "o", "shape": [1], "datatype": "BYTES", "data": [TEXT]}
    return json.dumps({"outputs": [output]}, ensure_ascii=False).encode()


def predict() -> bytes:
    return json.dumps({"predictions": [{"text": TEXT}]}, ensure_ascii=False).encode()


STREAMS: list[tuple[str, Dialect, Call, Callable[[], bytes]]] = [
    ("openai", OpenAIDialect(), CALL, openai),
    ("ollama", OllamaDialect(), CALL, ollama),
    ("tgi", TgiDialect(render), CALL, tgi),
    ("sglang", SglangDialect(render), CALL, sglang),
    ("sglang", SglangDialect(render, stream_output=True), CALL, sglang_incremental),
    ("shimmy", ShimmyDialect(), CALL, shimmy_chunks),
    ("shimmy", ShimmyDialect("/api/generate"), CALL, shimmy_text),
    ("kserve-v2", KServeV2Dialect(render, api="generate"), CALL, generated),
    ("kserve-v2", KServeV2Dialect(render), CALL, infer),
    ("kserve-v1", KServeV1Dialect(), CALL, predict),
    ("triton", TritonDialect(render, backend="vllm"), CALL, triton),
    ("triton", TritonDialect(), text(**USAGE), triton),
]
EACH = pytest.mark.parametrize(
    ("dialect", "call", "whole"),
    [pytest.param(dialect, call, make(), id=make.__name__) for _, dialect, call, make in STREAMS],
)


def seen(dialect: Dialect, call: Call, *chunks: bytes) -> tuple[list[Any], str | None]:
    """What a client gets of a stream: its events, and the code of the error at its end."""
    events, error = fed(dialect.stream(call), *chunks)
    return events, None if error is None else str(error.code)


def test_every_dialect_is_here() -> None:
    """A dialect whose streams nobody cuts would be missed."""
    assert {name for name, *_ in STREAMS} == set(_DIALECTS)


@EACH
@given(cuts=CUTS)
def test_any_cut_gives_the_same_events(
    dialect: Dialect, call: Call, whole: bytes, cuts: list[int]
) -> None:
    """However the network cuts a stream, inside characters too, the same events come out."""
    found = seen(dialect, call, *pieces(whole, cuts))
    assert found == seen(dialect, call, whole)
    assert (said(found[0]), found[0][-1], found[1]) == (TEXT, "[DONE]", None)
    assert ends(found[0]) == ([] if isinstance(dialect, OpenAIDialect) else ["stop"])


@EACH
def test_byte_by_byte(dialect: Dialect, call: Call, whole: bytes) -> None:
    """A stream that comes a byte at a time gives the same events."""
    assert seen(dialect, call, *(whole[at : at + 1] for at in range(len(whole)))) == seen(
        dialect, call, whole
    )


@EACH
@given(cuts=CUTS)
def test_lines_that_end_as_windows_has_them(
    dialect: Dialect, call: Call, whole: bytes, cuts: list[int]
) -> None:
    """Lines may end with a carriage return and a newline, cut between the two or not."""
    found = seen(dialect, call, *pieces(whole.replace(b"\n", b"\r\n"), cuts))
    assert found == seen(dialect, call, whole)


@EACH
@given(data=st.data(), cuts=CUTS)
def test_a_stream_that_breaks_off(
    dialect: Dialect, call: Call, whole: bytes, data: st.DataObject, cuts: list[int]
) -> None:
    """Of a stream that breaks off its beginning shows, however it was cut; no end is made up."""
    begun = whole[: data.draw(st.integers(0, len(whole) - 1))]
    events, code = seen(dialect, call, *pieces(begun, cuts))
    assert (events, code) == seen(dialect, call, begun)
    assert TEXT.startswith(said(events))
    assert (code is None) == (said(events) == TEXT and events[-1] == "[DONE]")


@EACH
@given(garbage=st.binary(max_size=40), data=st.data(), cuts=CUTS)
def test_garbage_in_a_stream(
    dialect: Dialect,
    call: Call,
    whole: bytes,
    garbage: bytes,
    data: st.DataObject,
    cuts: list[int],
) -> None:
    """Whatever stands in a stream, events come out, or an error of ours; nothing else is raised."""
    at = data.draw(st.integers(0, len(whole)))
    parser = dialect.stream(call)
    for one in pieces(whole[:at] + garbage + whole[at:], cuts):
        if not parser.is_complete:
            parser.feed(one)
    with contextlib.suppress(ApiError):
        parser.finish()
