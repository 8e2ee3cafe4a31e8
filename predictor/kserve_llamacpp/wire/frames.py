"""The frames that server and engine exchange: their shapes, and how they travel.

A frame is four bytes of length (big endian) and that many bytes of msgpack.
"""

from __future__ import annotations

import struct
from typing import Literal

import msgspec

MAX_FRAME_BYTES = 256 * 1024 * 1024
_LENGTH = struct.Struct(">I")

FinishReason = Literal["stop", "length"]
RejectReason = Literal[
    "context_length",
    "empty_prompt",
    "token_out_of_range",
    "unreadable_prompt",
    "ended_before",
    "failed",
]
FatalReason = Literal["model_file", "out_of_memory", "configuration"]


class SamplingParams(msgspec.Struct, frozen=True, omit_defaults=True):
    """How tokens are drawn; `temperature` 0 is greedy."""

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: dict[int, float] = {}
    ignore_eos: bool = False
    seed: int = 0
    choice: int = 0  # which of a request's choices: each draws for itself
    typical_p: float = 1.0
    dry_multiplier: float = 0.0
    dry_base: float = 1.75
    dry_allowed_length: int = 2
    dry_penalty_last_n: int = 64  # -1: the whole context
    dry_sequence_breakers: tuple[str, ...] = ("\n", ":", '"', "*")
    xtc_probability: float = 0.0
    xtc_threshold: float = 0.1
    min_tokens: int = 0
    stop_token_ids: list[int] = []
    include_stop_str_in_output: bool = False
    skip_special_tokens: bool = True
    logprobs: int | None = None  # how many alternatives to tell of each token; None: nothing


class Submit(msgspec.Struct, tag=True, frozen=True, omit_defaults=True):
    """Start a sequence; `resume` holds the tokens that an earlier engine has generated for it.

    `ended` says that they are all of it, and why: nothing is generated then. Of the resumed tokens
    the first `num_scored` need no logprobs any more. `is_resumable` asks for the prompt's hash.
    A `prompt` of None is that of the frame before: a request's choices share theirs.
    `tenant` and `priority` (lower is earlier) order the queue. Sequences share prefixes in the
    cache only with those of the same `cache_salt`, but for prompts that the operator has named
    (`SharePrompts`), unless it `is_apart`; of what they share, only what the same `owner` has used
    before is told.
    """

    id: int
    request_id: str
    prompt: str | list[int] | None
    max_tokens: int | None
    sampling: SamplingParams
    stops: list[str] = []
    resume: list[int] = []
    add_special: bool = True
    tenant: str = ""
    priority: int = 0
    cache_salt: str = ""
    is_apart: bool = False
    owner: str = ""
    ended: FinishReason | None = None
    num_scored: int = 0
    is_resumable: bool = False


class Cancel(msgspec.Struct, tag=True, frozen=True):
    """Drop a sequence; unknown ids are ignored, for it may just have finished."""

    id: int


class SharedText(msgspec.Struct, frozen=True):
    """How a prompt begins that every tenant may share; `add_special` as in `Submit`."""

    text: str
    add_special: bool


class SharePrompts(msgspec.Struct, tag=True, frozen=True):
    """Let all sequences that begin with one of these texts share its cells, whatever their salt.

    Holds for those submitted from now on, in place of what was said before.
    """

    prompts: list[SharedText]


class ModelFacts(msgspec.Struct, frozen=True):
    """What the server must know of the loaded model."""

    description: str
    architecture: str
    num_parameters: int
    size_bytes: int
    n_vocab: int
    n_ctx: int
    n_ctx_train: int
    max_sequences: int
    chat_template: str | None
    bos_token: str
    eos_token: str
    fingerprint: str
    build: str
    file_hash: str = ""  # of the model's file, tokenizer included: equal wherever it lies


class Loading(msgspec.Struct, tag=True, frozen=True):
    """How much of the model is loaded, 0 to 1."""

    fraction: float


class Hello(msgspec.Struct, tag=True, frozen=True):
    """The model is loaded; the engine takes requests from now on."""

    facts: ModelFacts


class Fatal(msgspec.Struct, tag=True, frozen=True):
    """The engine cannot start, and a restart would not help."""

    reason: FatalReason
    message: str


class Started(msgspec.Struct, tag=True, frozen=True):
    """A sequence has left the queue; `prompt_tokens` counts its prompt.

    `cached_tokens` of them were not computed, since a cache had them; of these the request's owner
    has used `own_cached_tokens` before, and is told of no others. Of resumed tokens the first
    `num_shown` have their text out, and `shown_text` is what it was, control tokens included; they
    are told where logprobs were asked for.
    """

    id: int
    prompt_tokens: int
    cached_tokens: int = 0
    own_cached_tokens: int = 0
    prompt_hash: str = ""  # of the prompt's tokens, where it was asked for
    num_shown: int = 0
    shown_text: bytes = b""


class TokenLogprob(msgspec.Struct, frozen=True, array_like=True):
    """A token, its natural logarithm of probability, and its bytes (a control token's, too)."""

    token: int
    logprob: float
    text: bytes


class Logprobs(msgspec.Struct, frozen=True, array_like=True):
    """What the model thought of one draw: of the token, and of the likeliest, best first."""

    drawn: TokenLogprob
    top: list[TokenLogprob]


class Output(msgspec.Struct, tag=True, frozen=True, omit_defaults=True):
    """What one step gave one sequence: tokens, the text that became certain, maybe the end.

    Where logprobs were asked for, each token has its own; `num_shown` counts from the sequence's
    beginning the tokens whose text is out, so that no logprob tells what the text holds back.
    """

    id: int
    tokens: list[int]
    text: str = ""
    finish_reason: FinishReason | None = None
    logprobs: list[Logprobs] = []
    num_shown: int = 0


class Rejected(msgspec.Struct, tag=True, frozen=True):
    """A sequence that the engine refuses, or that failed alone."""

    id: int
    reason: RejectReason
    message: str


class Stats(msgspec.Struct, frozen=True, omit_defaults=True):
    """The engine's state after a step; counters are deltas since the last frame.

    `cells_used` counts what running sequences hold, `cells_cached` what only the prefix cache
    holds. `cache_queries`, `cache_hits`, `cache_evictions` and `host_cache_hits` count tokens;
    `host_cache_hits` are those among `cache_hits` that came back from host memory.
    """

    running: int
    waiting: int
    cells_used: int
    cells_total: int
    steps: int = 0
    prefill_tokens: int = 0
    decode_tokens: int = 0
    preemptions: int = 0
    step_seconds: float = 0.0
    cache_queries: int = 0
    cache_hits: int = 0
    cache_evictions: int = 0
    host_cache_hits: int = 0
    cells_cached: int = 0
    host_cache_bytes: int = 0


class Step(msgspec.Struct, tag=True, frozen=True):
    """All that one step did, for every sequence at once."""

    events: list[Started | Output | Rejected]
    stats: Stats


Command = Submit | SharePrompts | Cancel
Event = Started | Output | Rejected
Report = Loading | Hello | Fatal | Step

_encoder = msgspec.msgpack.Encoder()
_command_decoder: msgspec.msgpack.Decoder[Command] = msgspec.msgpack.Decoder(Command)
_report_decoder: msgspec.msgpack.Decoder[Report] = msgspec.msgpack.Decoder(Report)


def encode(frame: Command | Report) -> bytes:
    """Return a frame's bytes, length first.

    Raises ValueError for a frame over MAX_FRAME_BYTES.
    """
    payload = _encoder.encode(frame)
    if len(payload) > MAX_FRAME_BYTES:
        raise ValueError(f"a frame of {len(payload)} bytes is over the limit")
    return _LENGTH.pack(len(payload)) + payload


class FrameReader:
    """Cuts a byte stream into frames' payloads; owner: one end of the socket."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[bytes]:
        """Take bytes, return the payloads that are whole.

        Raises ValueError when a length is over MAX_FRAME_BYTES.
        """
        self._buffer += data
        payloads = []
        start = 0
        while len(self._buffer) - start >= _LENGTH.size:
            (length,) = _LENGTH.unpack_from(self._buffer, start)
            if length > MAX_FRAME_BYTES:
                raise ValueError(f"a frame of {length} bytes is over the limit")
            end = start + _LENGTH.size + length
            if len(self._buffer) < end:
                break
            payloads.append(bytes(self._buffer[start + _LENGTH.size : end]))
            start = end
        del self._buffer[:start]
        return payloads


class Prompts:
    """Gives a request's choices the prompt that was sent once; owner: who reads the commands."""

    def __init__(self) -> None:
        self._last: str | list[int] | None = None

    def whole(self, submit: Submit) -> Submit:
        """Return a request with its prompt; ask for each in the order in which they came."""
        if submit.prompt is None:
            assert self._last is not None, "the first request has a prompt"
            return msgspec.structs.replace(submit, prompt=self._last)
        self._last = submit.prompt
        return submit


def decode_command(payload: bytes) -> Command:
    """Read what the server sent; raises msgspec.DecodeError."""
    return _command_decoder.decode(payload)


def decode_report(payload: bytes) -> Report:
    """Read what the engine sent; raises msgspec.DecodeError."""
    return _report_decoder.decode(payload)
