"""Tokens' probabilities of upstreams that tell them, in OpenAI's form, as answers and streams."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiohttp import web
from hypothesis import given
from hypothesis import strategies as st
from openai import AsyncOpenAI
from openai.types.chat import ChatCompletion
from openai.types.completion import Completion

from openai_proxy.dialects.base import Call, Dialect
from openai_proxy.dialects.logprobs import UNLIKELY, Draw, HeldDraws, Token, draws_of, token
from openai_proxy.dialects.ollama import OllamaDialect
from openai_proxy.dialects.sglang import SglangDialect
from openai_proxy.dialects.tgi import TgiDialect
from openai_proxy.dialects.triton import TritonDialect
from tests.proxy.harness import Proxy
from tests.proxy.standin import ollama_server, sglang_server, tgi_server, triton_server
from tests.proxy.standin.served import MODEL, proxy_for
from tests.proxy.translating import (
    CUTS,
    answered,
    chat,
    choices,
    fed,
    pieces,
    proxied,
    refusal,
    render,
    said,
    sent,
    text,
)

TGI, SGLANG, OLLAMA = TgiDialect(render), SglangDialect(render), OllamaDialect()
VLLM = TritonDialect(render, backend="vllm")
BOTH = {"logprobs": True, "top_logprobs": 2}


def draws(*texts: str) -> list[Draw]:
    """Tokens that were drawn, each as likely as the next."""
    return [Draw(token(text, -0.5)) for text in texts]


def tokens(found: list[Any]) -> list[str]:
    """The texts of a chat's tokens, from all logprobs of its choice."""
    listed = [choice["logprobs"]["content"] for choice in found if choice["logprobs"]]
    return [entry["token"] for content in listed for entry in content]


# what is asked


@pytest.mark.parametrize(
    ("dialect", "call", "asked"),
    [
        (TGI, chat(**BOTH), {"top_n_tokens": 2}),
        (TGI, chat(logprobs=True), {}),
        (TGI, text(logprobs=3), {"top_n_tokens": 3}),
        (OLLAMA, chat(**BOTH), {"logprobs": True, "top_logprobs": 2}),
        (OLLAMA, chat(logprobs=True, top_logprobs=0), {"logprobs": True}),
        (OLLAMA, text(logprobs=0), {"logprobs": True}),
        (SGLANG, chat(**BOTH), {"return_logprob": True, "top_logprobs_num": 2}),
        (SGLANG, text(logprobs=0), {"return_logprob": True, "top_logprobs_num": 0}),
        (SGLANG, text(), {}),
        (VLLM, chat(**BOTH), {"return_logprobs": True, "logprobs": 2}),
        (VLLM, text(logprobs=0), {"return_logprobs": True, "logprobs": 0}),
        (VLLM, text(), {}),
    ],
)
def test_what_is_asked(dialect: Dialect, call: Call, asked: dict[str, Any]) -> None:
    """Each upstream is asked for tokens by its own names, and only where its client asks."""
    body = sent(dialect, call)
    names = {"top_n_tokens", "logprobs", "top_logprobs", "return_logprob", "top_logprobs_num"}
    names.add("return_logprobs")
    found = {**body, **body.get("parameters", {})}
    found |= json.loads(found.get("sampling_parameters", "{}"))
    assert {name: value for name, value in found.items() if name in names} == asked


@pytest.mark.parametrize("dialect", [TGI, OLLAMA, SGLANG, VLLM])
@pytest.mark.parametrize("call", [chat(top_logprobs=2), text(logprobs=1, top_logprobs=2)])
def test_alternatives_of_nothing_are_refused(dialect: Dialect, call: Call) -> None:
    """`top_logprobs` belongs to a chat with `logprobs`: alone it is a mistake that is named."""
    assert refusal(dialect, call) == ("top_logprobs", "invalid_value")


@pytest.mark.parametrize(
    ("call", "param"),
    [(chat(logprobs=True, top_logprobs=6), "top_logprobs"), (text(logprobs=6), "logprobs")],
)
def test_more_alternatives_than_tgi_tells(call: Call, param: str) -> None:
    """TGI tells five alternatives at most, unless it is set to tell more."""
    assert refusal(TGI, call) == (param, "integer_above_max_value")
    dialect = TgiDialect(render, max_top_logprobs="6")
    assert sent(dialect, call)["parameters"]["top_n_tokens"] == 6


# what is told


def test_tokens_of_tgi() -> None:
    """A chat's tokens have bytes and alternatives, not more than asked for, no special ones."""
    told = [{"id": 1, "text": "Hé", "logprob": -0.5, "special": False}]
    told += [{"id": 2, "text": "</s>", "logprob": -0.1, "special": True}]
    tops = [{"text": word, "logprob": score} for word, score in (("a", -1), ("b", None), ("c", -2))]
    details = {"finish_reason": "eos_token", "tokens": told, "top_tokens": [tops, []]}
    value = answered(TGI, chat(**BOTH), {"generated_text": "Hé", "details": details})
    assert value["choices"][0]["logprobs"]["content"] == [
        {
            "token": "Hé",
            "logprob": -0.5,
            "bytes": [72, 195, 169],
            "top_logprobs": [
                {"token": "a", "logprob": -1.0, "bytes": [97]},
                {"token": "b", "logprob": UNLIKELY, "bytes": [98]},
            ],
        }
    ]
    ChatCompletion.model_validate(value, strict=True)


def test_nobody_gets_tokens_unasked() -> None:
    """TGI tells tokens with all details: who did not ask for them gets none."""
    told = [{"id": 1, "text": "a", "logprob": -0.5, "special": False}]
    details = {"finish_reason": "length", "tokens": told}
    value = answered(TGI, chat(), {"generated_text": "a", "details": details})
    assert value["choices"][0]["logprobs"] is None


def test_tokens_of_a_text() -> None:
    """A text completion has the old form, with the place where each token begins."""
    told = [{"token": word, "logprob": -0.5, "bytes": list(word.encode())} for word in ("é", "b")]
    told[1]["top_logprobs"] = [{"token": "c", "logprob": -1.5}]
    value = answered(OLLAMA, text(logprobs=1), {"response": "éb", "done": True, "logprobs": told})
    assert value["choices"][0]["logprobs"] == {
        "tokens": ["é", "b"],
        "token_logprobs": [-0.5, -0.5],
        "top_logprobs": [{"é": -0.5}, {"c": -1.5, "b": -0.5}],
        "text_offset": [0, 1],
    }
    Completion.model_validate(value | {"usage": None}, strict=True)


def test_parts_of_a_character() -> None:
    """Parts of a character are written out where their bytes are told, else these are not known."""
    told = [{"token": "\ufffd", "logprob": -0.5, "bytes": [one]} for one in "é".encode()]
    value = answered(OLLAMA, chat(**BOTH), {"message": {}, "done": True, "logprobs": told})
    content = value["choices"][0]["logprobs"]["content"]
    assert [(one["token"], one["bytes"]) for one in content] == [("\\xc3", [195]), ("\\xa9", [169])]
    meta = {"finish_reason": None, "output_token_logprobs": [[-0.5, 7, "\ufffd"], [-1, 8, None]]}
    value = answered(SGLANG, chat(**BOTH), {"text": "é", "meta_info": {**meta, **ENDED}})
    content = value["choices"][0]["logprobs"]["content"]
    assert [(one["token"], one["bytes"]) for one in content] == [
        ("\ufffd", None),
        ("token_id:8", None),
    ]


ENDED = {"finish_reason": {"type": "length", "length": 2}}


@pytest.mark.parametrize("logprob", [None, -float("inf"), float("nan"), "x", True, -(10**400)])
def test_a_probability_that_is_no_number(logprob: Any) -> None:
    """What is infinitely unlikely is a number all the same: JSON has no other."""
    found = token("a", logprob)
    assert found.logprob == UNLIKELY
    json.dumps(found.logprob, allow_nan=False)


@pytest.mark.parametrize(
    ("reason", "keep", "expected"),
    [
        ({"type": "stop", "matched": 9}, False, ["a", " b"]),
        ({"type": "stop", "matched": "</s>"}, False, ["a", " b"]),
        ({"type": "stop", "matched": 9}, True, ["a", " b", "</s>"]),
        ({"type": "length", "length": 3}, False, ["a", " b", "</s>"]),
    ],
)
def test_the_end_of_a_text_of_sglang(reason: Any, keep: bool, expected: list[str]) -> None:
    """SGLang also tells the tokens that it has cut off: they are no part of the text."""
    told = [[-0.5, 1, "a"], [-0.5, 2, " b"], [-0.5, 9, "</s>"]]
    meta = {"finish_reason": reason, "output_token_logprobs": told, "output_top_logprobs": [None]}
    call = chat(logprobs=True, include_stop_str_in_output=keep)
    value = answered(SGLANG, call, {"text": "a b", "meta_info": meta})
    assert tokens(value["choices"]) == expected


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_tokens_of_vllm(rank: int) -> None:
    """vLLM tells the drawn token first, whatever its rank, and its rank with the likeliest."""
    place = {"7": {"logprob": -0.5, "rank": rank, "decoded_token": "a"}}
    others = {"8": 2, "9": 1}
    place |= {
        name: {"logprob": -other, "rank": other, "decoded_token": f"#{other}"}
        for name, other in others.items()
        if other != rank
    }
    end = {"2": {"logprob": 0, "rank": 1, "decoded_token": "</s>"}}
    told = {"finish_reason": "stop", "logprobs": json.dumps([place, end])}
    value = answered(VLLM, chat(**BOTH), {"text_output": "a", **told})
    (entry,) = value["choices"][0]["logprobs"]["content"]
    assert (entry["token"], len(entry["top_logprobs"])) == ("a", 2)
    likeliest = ["a" if other == rank else f"#{other}" for other in (1, 2)]
    assert [one["token"] for one in entry["top_logprobs"]] == likeliest


def test_an_upstream_that_tells_none() -> None:
    """An older release that knows no logprobs answers without them, and so do we."""
    value = answered(OLLAMA, chat(**BOTH), {"message": {"content": "a"}, "done": True})
    assert value["choices"][0]["logprobs"] is None


@pytest.mark.parametrize("told", [7, "x", [7], [None], [[]], [{"token": 1}], [{}], {"a": 1}])
def test_tokens_that_are_none(told: Any) -> None:
    """Whatever stands where tokens should, an answer is made of the rest."""
    details = {"finish_reason": "length", "tokens": told, "top_tokens": told}
    answered(TGI, chat(**BOTH), {"generated_text": "a", "details": details})
    meta = {**ENDED, "output_token_logprobs": told, "output_top_logprobs": told}
    answered(SGLANG, chat(**BOTH), {"text": "a", "meta_info": meta})
    value = {"message": {"content": "a"}, "done": True, "logprobs": told}
    answered(OLLAMA, chat(**BOTH), value)
    answered(VLLM, chat(**BOTH), {"text_output": "a", "logprobs": told})
    answered(VLLM, chat(**BOTH), {"text_output": "a", "logprobs": json.dumps(told)})


# streams


def tgi_stream(*words: str, reason: str = "eos_token") -> bytes:
    """A whole stream of TGI's."""
    told = {"finish_reason": reason, "generated_tokens": len(words), "input_length": 9}
    made = [tgi_server.token(word, num_top=1) for word in words]
    made[-1] |= {"generated_text": "".join(words), "details": told}
    return b"".join(map(tgi_server.event, made))


@given(CUTS)
def test_tokens_come_with_their_text(cuts: list[int]) -> None:
    """A token comes with the piece of text in which it begins, half characters with the next."""
    whole = tgi_stream("a", "", "é", " E", "N", "</s>")
    call = chat(stream=True, stop="END", **BOTH)
    events, error = fed(TGI.stream(call), *pieces(whole, cuts))
    assert error is None
    found = [
        (choice["delta"].get("content"), tokens([choice]))
        for choice in choices(events)
        if choice["delta"].get("content")
    ]
    assert found == [("a", ["a"]), ("é", ["", "é"]), (" ", [" E"]), ("EN", ["N"])]


def test_tokens_of_a_stop_string_do_not_show() -> None:
    """Where a stop string is cut off, so are its tokens; one that began before it stays."""
    call = text(stream=True, stop="END", logprobs=0)
    whole = tgi_stream("a", " E", "N", "D", reason="stop_sequence")
    events, _ = fed(TGI.stream(call), whole)
    listed = [choice["logprobs"] for choice in choices(events) if choice["logprobs"]]
    assert said(events) == "a "
    assert [told["tokens"] for told in listed] == [["a"], [" E"]]
    assert [told["text_offset"] for told in listed] == [[0], [1]]


def sglang_stream(*words: str, is_incremental: bool = False) -> bytes:
    """A whole stream of SGLang's, told again and again, or only what is new."""
    events = b""
    for n in range(1, len(words) + 1):
        first = n - 1 if is_incremental else 0
        meta = {
            "finish_reason": {"type": "stop", "matched": 9} if n == len(words) else None,
            "completion_tokens": n,
            "output_token_logprobs": [[-0.5, at, words[at]] for at in range(first, n)],
            "output_top_logprobs": [[[-1.5, 7, f"#{at}"]] for at in range(first, n)],
        }
        events += sglang_server.event({"text": "".join(words[first:n]), "meta_info": meta})
    return events + b"data: [DONE]\n\n"


@given(CUTS, st.booleans())
def test_tokens_of_sglang_come_once(cuts: list[int], is_incremental: bool) -> None:
    """SGLang tells all tokens again and again, or only new ones: each comes once, with its top."""
    dialect = SglangDialect(render, stream_output=is_incremental)
    whole = sglang_stream("a", "b", " c", is_incremental=is_incremental)
    events, error = fed(dialect.stream(chat(stream=True, **BOTH)), *pieces(whole, cuts))
    assert error is None
    listed = [choice["logprobs"]["content"] for choice in choices(events) if choice["logprobs"]]
    found = [
        (one["token"], one["top_logprobs"][0]["token"]) for content in listed for one in content
    ]
    assert found == [("a", "#0"), ("b", "#1"), (" c", "#2")]


def test_a_line_of_tokens_alone() -> None:
    """Ollama tells the tokens of what it parses in lines without text: they come all the same."""
    told = [{"token": "<think>", "logprob": -0.5}]
    lines = [
        {"message": {"content": ""}, "done": False, "logprobs": told},
        {"message": {"content": "a"}, "done": True, "logprobs": [{"token": "a", "logprob": -1}]},
    ]
    whole = b"".join(json.dumps(line).encode() + b"\r\n" for line in lines)
    events, error = fed(OLLAMA.stream(chat(stream=True, **BOTH)), whole)
    assert error is None
    assert (said(events), tokens(choices(events))) == ("a", ["<think>", "a"])


# what they are made with


WORDS = st.lists(st.text(st.sampled_from("aé€ "), max_size=3), max_size=6)


@given(WORDS, st.data())
def test_each_token_comes_once_and_not_late(words: list[str], data: st.DataObject) -> None:
    """However text and tokens come, each token comes once, in order, not behind its text."""
    held, whole = HeldDraws(), "".join(words)
    ends = data.draw(st.lists(st.integers(0, len(whole)), max_size=5).map(sorted))
    held.add(draws(*words))
    came, last = [], 0
    for end in [*ends, len(whole)]:
        came += held.shown(whole[last:end])
        last = end
        begun = sum(len(one.drawn.text.decode()) for one in came)
        assert begun >= end
    assert came + held.rest() == draws(*words)


def test_tokens_of_what_was_cut_off() -> None:
    """Of a text that was cut off, the tokens that begin behind its end are left out."""
    assert draws_of("ab", draws("a", "bE", "ND", ""), is_cut=True) == draws("a", "bE")
    assert draws_of("ab", draws("a", "b", ""), is_cut=False) == draws("a", "b", "")


def test_raw_bytes_that_are_none() -> None:
    """Bytes are taken only where they are bytes."""
    assert token("a", -1, [97]) == Token(b"a", -1.0)
    assert token("a", -1, [256]) == token("a", -1, None) == Token(b"a", -1.0)
    assert token("\ufffd", -1, list("\ufffd".encode())) == Token("\ufffd", -1.0)


# over the wire


def tgi_app() -> tuple[Dialect, web.Application, str]:
    return TGI, tgi_server.TgiServer().app(), tgi_server.MODEL


def ollama_app() -> tuple[Dialect, web.Application, str]:
    return OLLAMA, ollama_server.OllamaServer().app(), ollama_server.MODEL


def sglang_app() -> tuple[Dialect, web.Application, str]:
    return SGLANG, sglang_server.SglangServer().app(), sglang_server.MODEL


@asynccontextmanager
async def triton_proxy(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[tuple[Proxy, str]]:
    async with (
        triton_server.triton_server() as server,
        proxy_for(VLLM, server.url, monkeypatch) as proxy,
    ):
        yield proxy, MODEL


@asynccontextmanager
async def proxy_of(make: Any, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[tuple[Proxy, str]]:
    dialect, app, model = make()
    async with proxied(monkeypatch, dialect, app) as proxy:
        yield proxy, model


@pytest.mark.parametrize("make", [tgi_app, ollama_app, sglang_app, None])
async def test_the_official_client(monkeypatch: pytest.MonkeyPatch, make: Any) -> None:
    """OpenAI's own client gets the same tokens whole and streamed, of chats and of texts."""
    started = proxy_of(make, monkeypatch) if make else triton_proxy(monkeypatch)
    async with (
        started as (proxy, model),
        AsyncOpenAI(base_url=f"{proxy.url}/v1", api_key="x", max_retries=0) as client,
    ):
        ask: Any = client.chat.completions.create
        asked: Any = {"model": model, "messages": [{"role": "user", "content": "hi"}], **BOTH}
        answer = await ask(**asked)
        whole = answer.choices[0].logprobs.content
        assert len(whole) > 1
        assert {len(one.top_logprobs) for one in whole} == {2}
        stream = await ask(**asked, stream=True)
        found = [choice async for chunk in stream for choice in chunk.choices]
        assert [one for choice in found if choice.logprobs for one in choice.logprobs.content] == (
            whole
        )

        complete: Any = client.completions.create
        answer = await complete(model=model, prompt="x", logprobs=1)
        told = answer.choices[0].logprobs
        assert len(told.tokens) > 1
        assert make is None or told.tokens == [one.token for one in whole]
        stream = await complete(model=model, prompt="x", logprobs=1, stream=True)
        found = [choice async for chunk in stream for choice in chunk.choices]
        offsets = [choice.logprobs.text_offset for choice in found if choice.logprobs]
        assert [one for some in offsets for one in some] == told.text_offset
