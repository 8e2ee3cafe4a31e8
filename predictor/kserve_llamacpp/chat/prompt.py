"""From a checked request to what the engine is asked: prompt, sampling, limits."""

from __future__ import annotations

import secrets
from typing import TypeVar

from kserve_llamacpp.chat.template import ChatTemplate
from kserve_llamacpp.engine.frames import ModelFacts, SamplingParams
from kserve_llamacpp.engine.generation import Request
from openai_protocol.errors import ErrorCode, InvalidRequest
from openai_protocol.requests import ChatCompletionRequest, CompletionRequest, GenerationRequest

# Small and quantised models have a long tail of nonsense; llama.cpp's own server cuts it off, too.
DEFAULT_MIN_P = 0.05

_MAX_TOKEN_DIGITS = 10

Number = TypeVar("Number", int, float)

# OpenAI's parameters that change nothing here when they have these values
_NEUTRAL: dict[str, tuple[object, ...]] = {
    "best_of": (1,),
    "echo": (False,),
    "function_call": ("none",),
    "functions": ([],),
    "logprobs": (False, 0),
    "modalities": (["text"],),
    "parallel_tool_calls": (True, False),
    "response_format": ({"type": "text"},),
    "suffix": ("",),
    "tool_choice": ("none", "auto"),
    "tools": ([],),
    "top_logprobs": (0,),
    "verbosity": ("medium",),
}
# OpenAI's parameters about storage and accounting: they never change an answer
_WITHOUT_EFFECT = frozenset(
    {
        "metadata",
        "prompt_cache_key",
        "safety_identifier",
        "service_tier",
        "store",
    }
)


def chat_request(
    body: ChatCompletionRequest, template: ChatTemplate | None, facts: ModelFacts, request_id: str
) -> Request:
    """Return what the engine is asked for a chat; raises InvalidRequest."""
    refuse_unsupported(body)
    if template is None:
        raise InvalidRequest(
            "This model has no chat template; use /v1/completions.",
            param="messages",
            code=ErrorCode.NO_CHAT_TEMPLATE,
        )
    prompt = template.render(body.messages)
    # most templates write the first token themselves; the tokenizer would add a second one
    has_bos = bool(facts.bos_token) and prompt.startswith(facts.bos_token)
    return _request(body, prompt, facts, request_id, "messages", add_special=not has_bos)


def completion_requests(
    body: CompletionRequest, facts: ModelFacts, request_id: str
) -> list[Request]:
    """Return what the engine is asked for each prompt of a text completion.

    Raises InvalidRequest.
    """
    refuse_unsupported(body)
    return [
        _request(body, prompt, facts, request_id, "prompt", add_special=True)
        for prompt in body.prompts()
    ]


def refuse_unsupported(body: GenerationRequest) -> None:
    """Raise InvalidRequest for a parameter that would be silently ignored."""
    if body.n not in (None, 1):
        raise _unsupported("n", "only one choice for a request is supported")
    given = dict(body.model_extra or {})
    if isinstance(body, CompletionRequest) and body.echo:
        given["echo"] = True
    for name, value in given.items():
        if value is None or name in _WITHOUT_EFFECT:
            continue
        if name not in _NEUTRAL:
            raise InvalidRequest(
                f"Unknown parameter: '{name[:64]}'.",
                param=name[:64],
                code=ErrorCode.UNKNOWN_PARAMETER,
            )
        if not any(value == neutral for neutral in _NEUTRAL[name]):
            raise _unsupported(name, "this model server does not support it")


def _unsupported(name: str, why: str) -> InvalidRequest:
    return InvalidRequest(
        f"Unsupported parameter: '{name}': {why}.",
        param=name,
        code=ErrorCode.UNSUPPORTED_PARAMETER,
    )


def _request(
    body: GenerationRequest,
    prompt: str | list[int],
    facts: ModelFacts,
    request_id: str,
    field: str,
    add_special: bool,
) -> Request:
    return Request(
        request_id=request_id,
        prompt=prompt,
        max_tokens=body.token_limit,
        sampling=_sampling(body, facts),
        stops=body.stop_strings(),
        add_special=add_special,
        field=field,
    )


def _sampling(body: GenerationRequest, facts: ModelFacts) -> SamplingParams:
    return SamplingParams(
        temperature=_or(body.temperature, 1.0),
        top_k=max(0, _or(body.top_k, 0)),
        top_p=_or(body.top_p, 1.0),
        min_p=_or(body.min_p, DEFAULT_MIN_P),
        repetition_penalty=_or(body.repetition_penalty, 1.0),
        presence_penalty=_or(body.presence_penalty, 0.0),
        frequency_penalty=_or(body.frequency_penalty, 0.0),
        logit_bias=_logit_bias(body, facts),
        ignore_eos=bool(body.ignore_eos),
        seed=body.seed if body.seed is not None else secrets.randbits(63),
    )


def _or(value: Number | None, default: Number) -> Number:
    return default if value is None else value


def _logit_bias(body: GenerationRequest, facts: ModelFacts) -> dict[int, float]:
    biases = {}
    for key, bias in (body.logit_bias or {}).items():
        # a number of thousands of digits cannot even be read
        if not key.isdecimal() or len(key) > _MAX_TOKEN_DIGITS or int(key) >= facts.n_vocab:
            raise InvalidRequest(
                f"Invalid 'logit_bias': '{key[:64]}' is not a token id below {facts.n_vocab}.",
                param="logit_bias",
            )
        biases[int(key)] = bias
    return biases
