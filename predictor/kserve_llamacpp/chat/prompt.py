"""From a checked request to what the engine is asked: prompt, sampling, limits."""

from __future__ import annotations

import dataclasses
import secrets
from collections.abc import Awaitable, Callable
from typing import TypeVar

import msgspec

from kserve_llamacpp.engine_client.generation import Request
from kserve_llamacpp.wire.frames import ModelFacts, SamplingParams
from openai_protocol.errors import ErrorCode, InvalidRequest
from openai_protocol.requests import (
    ChatCompletionRequest,
    CompletionRequest,
    GenerationRequest,
    Message,
)

# Small and quantised models have a long tail of nonsense; llama.cpp's own server cuts it off, too.
DEFAULT_MIN_P = 0.05

# Prompts that an answer repeats, once for each of their choices.
MAX_ECHOED_CHARACTERS = 8 * 1024 * 1024

_MAX_TOKEN_DIGITS = 10

Render = Callable[[list[Message]], Awaitable[str]]
Number = TypeVar("Number", int, float)

# OpenAI's parameters that change nothing here when they have these values
_NEUTRAL: dict[str, tuple[object, ...]] = {
    "function_call": ("none",),
    "functions": ([],),
    "modalities": (["text"],),
    "parallel_tool_calls": (True, False),
    "response_format": ({"type": "text"},),
    "suffix": ("",),
    "tool_choice": ("none", "auto"),
    "tools": ([],),
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


async def chat_requests(
    body: ChatCompletionRequest, render: Render, facts: ModelFacts, request_id: str
) -> list[Request]:
    """Return what the engine is asked for each choice of a chat; raises ApiError.

    `render` is the model's chat template. It comes last, for it may cost much.
    """
    refuse_unsupported(body)
    if body.top_logprobs and not body.logprobs:
        raise _conflict("top_logprobs", "it needs 'logprobs': true")
    request = _request(body, facts, request_id, "messages")
    prompt = await render(body.messages)
    # most templates write the first token themselves; the tokenizer would add a second one
    has_bos = bool(facts.bos_token) and prompt.startswith(facts.bos_token)
    return _choices(dataclasses.replace(request, prompt=prompt, add_special=not has_bos), body)


def completion_requests(
    body: CompletionRequest, facts: ModelFacts, request_id: str
) -> list[Request]:
    """Return what the engine is asked for the choices of the first prompt, then of the next.

    Raises InvalidRequest.
    """
    refuse_unsupported(body)
    prompts = body.prompts()
    if body.num_generated_choices < body.num_choices:
        raise _conflict("best_of", "it cannot be below 'n'")
    if body.num_generated_choices > body.num_choices and body.stream:
        raise _conflict(
            "best_of", "a stream cannot wait for the best: leave it out or equal to 'n'"
        )
    if body.echo and body.logprobs is not None:
        raise unsupported("echo", "this model server has no logprobs of prompts")
    if body.echo:
        _check_echo(body, prompts)
    request = _request(body, facts, request_id, "prompt")
    return [
        choice
        for prompt in prompts
        for choice in _choices(dataclasses.replace(request, prompt=prompt), body)
    ]


def _check_echo(body: CompletionRequest, prompts: list[str | list[int]]) -> None:
    """Refuse an echo that cannot be given, or that would be copied into too much."""
    num_characters = 0
    for prompt in prompts:
        if not isinstance(prompt, str):
            raise unsupported("echo", "this model server repeats prompts of text alone")
        num_characters += len(prompt)
    if num_characters * body.num_choices > MAX_ECHOED_CHARACTERS:
        raise _conflict(
            "echo",
            f"{body.num_choices} times {num_characters} characters are more than "
            f"{MAX_ECHOED_CHARACTERS}",
        )


def refuse_unsupported(body: GenerationRequest) -> None:
    """Raise InvalidRequest for a parameter that would be silently ignored."""
    for name, value in (body.model_extra or {}).items():
        if value is None or name in _WITHOUT_EFFECT:
            continue
        if name not in _NEUTRAL:
            raise InvalidRequest(
                f"Unknown parameter: '{name[:64]}'.",
                param=name[:64],
                code=ErrorCode.UNKNOWN_PARAMETER,
            )
        if not any(value == neutral for neutral in _NEUTRAL[name]):
            raise unsupported(name, "this model server does not support it")


def unsupported(name: str, why: str) -> InvalidRequest:
    """Return the error for a parameter that is known and not served."""
    return InvalidRequest(
        f"Unsupported parameter: '{name}': {why}.",
        param=name,
        code=ErrorCode.UNSUPPORTED_PARAMETER,
    )


def _conflict(name: str, why: str) -> InvalidRequest:
    return InvalidRequest(f"Invalid '{name}': {why}.", param=name)


def _choices(request: Request, body: GenerationRequest) -> list[Request]:
    """Return the request once for each choice to generate; they share the seed, not the draws."""
    return [
        dataclasses.replace(
            request, sampling=msgspec.structs.replace(request.sampling, choice=choice)
        )
        for choice in range(body.num_generated_choices)
    ]


def _request(body: GenerationRequest, facts: ModelFacts, request_id: str, field: str) -> Request:
    """Return what all choices have in common; the prompt is still missing."""
    if body.token_limit is not None and _or(body.min_tokens, 0) > body.token_limit:
        raise _conflict("min_tokens", "it is above the most tokens that may be generated")
    return Request(
        request_id=request_id,
        prompt="",
        max_tokens=body.token_limit,
        sampling=_sampling(body, facts),
        stops=body.stop_strings(),
        field=field,
    )


def _sampling(body: GenerationRequest, facts: ModelFacts) -> SamplingParams:
    usual = SamplingParams()
    breakers = body.dry_sequence_breakers
    num_top_logprobs = body.num_top_logprobs
    if num_top_logprobs is None and body.num_generated_choices > body.num_choices:
        num_top_logprobs = 0  # by which the best are found
    return SamplingParams(
        temperature=_or(body.temperature, usual.temperature),
        top_k=max(0, _or(body.top_k, usual.top_k)),
        top_p=_or(body.top_p, usual.top_p),
        min_p=_or(body.min_p, DEFAULT_MIN_P),
        repetition_penalty=_or(body.repetition_penalty, usual.repetition_penalty),
        presence_penalty=_or(body.presence_penalty, usual.presence_penalty),
        frequency_penalty=_or(body.frequency_penalty, usual.frequency_penalty),
        logit_bias=_logit_bias(body, facts),
        ignore_eos=bool(body.ignore_eos),
        seed=body.seed if body.seed is not None else secrets.randbits(63),
        typical_p=_or(body.typical_p, usual.typical_p),
        dry_multiplier=_or(body.dry_multiplier, usual.dry_multiplier),
        dry_base=_or(body.dry_base, usual.dry_base),
        dry_allowed_length=_or(body.dry_allowed_length, usual.dry_allowed_length),
        dry_penalty_last_n=_or(body.dry_penalty_last_n, usual.dry_penalty_last_n),
        dry_sequence_breakers=usual.dry_sequence_breakers if breakers is None else tuple(breakers),
        xtc_probability=_or(body.xtc_probability, usual.xtc_probability),
        xtc_threshold=_or(body.xtc_threshold, usual.xtc_threshold),
        min_tokens=_or(body.min_tokens, usual.min_tokens),
        stop_token_ids=_stop_token_ids(body, facts),
        include_stop_str_in_output=bool(body.include_stop_str_in_output),
        skip_special_tokens=body.skip_special_tokens is not False,
        logprobs=num_top_logprobs,
    )


def _stop_token_ids(body: GenerationRequest, facts: ModelFacts) -> list[int]:
    for at, token in enumerate(body.stop_token_ids or []):
        if token >= facts.n_vocab:
            raise InvalidRequest(
                f"Invalid 'stop_token_ids[{at}]': {token} is not a token id below {facts.n_vocab}.",
                param=f"stop_token_ids[{at}]",
            )
    return list(body.stop_token_ids or [])


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
