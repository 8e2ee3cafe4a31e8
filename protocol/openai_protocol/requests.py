"""The bodies of `POST /v1/chat/completions` and `POST /v1/completions`.

Unknown fields are kept (`model_extra`): each server decides whether it refuses or passes them on.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError, PydanticKnownError

MAX_MESSAGES = 4096
MAX_PROMPTS = 128
MAX_STOP_STRINGS = 16
MAX_STOP_LENGTH = 512
MAX_LOGIT_BIASES = 1024
MAX_CACHE_SALT_LENGTH = 512
MAX_CHOICES = 128
MAX_TOP_LOGPROBS = 20
MAX_STOP_TOKENS = 128
MAX_SEQUENCE_BREAKERS = 16
MAX_SEQUENCE_BREAKER_LENGTH = 40
_INT32 = 2**31  # tokens and counts are this wide in llama.cpp and most engines

StopString = Annotated[str, Field(min_length=1, max_length=MAX_STOP_LENGTH)]
SequenceBreaker = Annotated[str, Field(min_length=1, max_length=MAX_SEQUENCE_BREAKER_LENGTH)]
Bias = Annotated[float, Field(ge=-100, le=100)]
TokenId = Annotated[int, Field(ge=0, lt=_INT32)]
# fail_fast: a body of a million wrong elements would be a million errors
Tokens = Annotated[list[TokenId], Field(min_length=1, fail_fast=True)]


def _few_biases(value: Any) -> Any:
    """Refuse too many entries before each of them is checked, and may be an error of its own."""
    if isinstance(value, dict) and len(value) > MAX_LOGIT_BIASES:
        raise PydanticKnownError(
            "too_long",
            {
                "field_type": "Dictionary",
                "max_length": MAX_LOGIT_BIASES,
                "actual_length": len(value),
            },
        )
    return value


class StreamOptions(BaseModel):
    """`stream_options` of a streamed request."""

    model_config = ConfigDict(strict=True, extra="ignore")

    include_usage: bool | None = None


class GenerationRequest(BaseModel):
    """The fields that chat and text completions share: how to draw tokens, and when to stop."""

    model_config = ConfigDict(strict=True, extra="allow")

    # `model` may be left out where a server has only one
    model: str | None = Field(None, min_length=1, max_length=256)
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    n: int | None = Field(None, ge=1, le=MAX_CHOICES)
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    max_tokens: int | None = Field(None, ge=1, lt=_INT32)
    stop: StopString | Annotated[list[StopString], Field(max_length=MAX_STOP_STRINGS)] | None = None
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    logit_bias: Annotated[dict[str, Bias] | None, BeforeValidator(_few_biases)] = None
    user: str | None = Field(None, max_length=512)
    stream: bool | None = None
    stream_options: StreamOptions | None = None

    # beyond OpenAI, under the names that vLLM gives them, or (dry, xtc, typical) llama-server
    top_k: int | None = Field(None, ge=-1, lt=_INT32)
    min_p: float | None = Field(None, ge=0, le=1)
    repetition_penalty: float | None = Field(None, gt=0, le=2)
    ignore_eos: bool | None = None
    priority: int | None = Field(None, ge=-_INT32, lt=_INT32)  # lower is earlier
    cache_salt: str | None = Field(None, min_length=1, max_length=MAX_CACHE_SALT_LENGTH)
    min_tokens: int | None = Field(None, ge=0, lt=_INT32)
    stop_token_ids: Annotated[list[TokenId], Field(fail_fast=True)] | None = Field(
        None, max_length=MAX_STOP_TOKENS
    )
    include_stop_str_in_output: bool | None = None
    skip_special_tokens: bool | None = None
    typical_p: float | None = Field(None, gt=0, le=1)
    dry_multiplier: float | None = Field(None, ge=0, le=100)
    dry_base: float | None = Field(None, ge=1, le=100)
    dry_allowed_length: int | None = Field(None, ge=1, lt=_INT32)
    dry_penalty_last_n: int | None = Field(None, ge=-1, lt=_INT32)
    dry_sequence_breakers: Annotated[list[SequenceBreaker], Field(fail_fast=True)] | None = Field(
        None, max_length=MAX_SEQUENCE_BREAKERS
    )
    xtc_probability: float | None = Field(None, ge=0, le=1)
    xtc_threshold: float | None = Field(None, ge=0, le=1)

    @property
    def num_choices(self) -> int:
        """How many choices each prompt gets."""
        return self.n or 1

    @property
    def num_generated_choices(self) -> int:
        """How many choices of each prompt are generated, to give the best of them."""
        return self.num_choices

    @property
    def num_top_logprobs(self) -> int | None:
        """How many alternatives to tell of each token; None where no logprobs are wanted."""
        return None

    def stop_strings(self) -> list[str]:
        """Return `stop` as a list, empty where it is not given."""
        if self.stop is None:
            return []
        return [self.stop] if isinstance(self.stop, str) else list(self.stop)

    @property
    def include_usage(self) -> bool:
        """Whether a stream ends with a chunk that carries the usage."""
        return self.stream_options is not None and bool(self.stream_options.include_usage)

    @property
    def token_limit(self) -> int | None:
        """The most tokens to generate, or None for what the context holds."""
        return self.max_tokens


class ContentPart(BaseModel):
    """One part of a message's content; only parts of type `text` have `text`."""

    model_config = ConfigDict(strict=True, extra="allow")

    type: str
    text: str | None = None


class Message(BaseModel):
    """One message of a conversation."""

    model_config = ConfigDict(strict=True, extra="allow")

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: str | Annotated[list[ContentPart], Field(fail_fast=True)] | None = None
    name: str | None = None

    @model_validator(mode="after")
    def _has_content(self) -> Message:
        if self.content is None and self.role in ("system", "developer", "user"):
            raise PydanticCustomError(
                "missing_content",
                "a message of role '{role}' needs 'content'",
                {"role": self.role},
            )
        return self


class ChatCompletionRequest(GenerationRequest):
    """The body of a chat completion request."""

    messages: list[Message] = Field(min_length=1, max_length=MAX_MESSAGES)
    max_completion_tokens: int | None = Field(None, ge=1, lt=_INT32)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=MAX_TOP_LOGPROBS)

    @property
    def num_top_logprobs(self) -> int | None:
        """How many alternatives to tell of each token; None where no logprobs are wanted."""
        return (self.top_logprobs or 0) if self.logprobs else None

    @property
    def token_limit(self) -> int | None:
        """The most tokens to generate; `max_completion_tokens` wins over the older name."""
        if self.max_completion_tokens is not None:
            return self.max_completion_tokens
        return self.max_tokens


class CompletionRequest(GenerationRequest):
    """The body of a text completion request; a prompt is text or token ids, or a list of such."""

    prompt: (
        str
        | Tokens
        | Annotated[list[str], Field(min_length=1, max_length=MAX_PROMPTS, fail_fast=True)]
        | Annotated[list[Tokens], Field(min_length=1, max_length=MAX_PROMPTS, fail_fast=True)]
    )
    echo: bool | None = None
    best_of: int | None = Field(None, ge=1, le=MAX_CHOICES)
    logprobs: int | None = Field(None, ge=0, le=MAX_TOP_LOGPROBS)

    @property
    def num_generated_choices(self) -> int:
        """How many choices of each prompt are generated, to give the best of them."""
        return self.num_choices if self.best_of is None else self.best_of

    @property
    def num_top_logprobs(self) -> int | None:
        """How many alternatives to tell of each token; None where no logprobs are wanted."""
        return self.logprobs

    def prompts(self) -> list[str | list[int]]:
        """Return the prompts one by one, each as text or as token ids."""
        prompt = self.prompt
        if isinstance(prompt, str):
            return [prompt]
        # All are of one kind: a list of a million tokens is neither read nor copied again.
        if isinstance(prompt[0], int):
            return [prompt]
        return list(prompt)
