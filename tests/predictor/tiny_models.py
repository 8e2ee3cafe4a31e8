"""Tiny models with random weights, one for each kind of memory that llama.cpp has.

Their text is noise, but it depends on every token before it and on the tokens' order, and hardly
repeats itself: a cache that gives back a wrong cell or state changes it. Q4_1 where llama.cpp takes
it (its kernels give a row the same bits in any company), F32 elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
from numpy.typing import NDArray

CONTEXT = 4096
SLIDING_WINDOW = 128

_EMBD = 64
_LAYERS = 4
_HEADS = 2
_KV_HEADS = 1
_HEAD_SIZE = 32
_FFN = 128
_INNER = 2 * _EMBD
_STATE = 16
_CONV = 4
_DT_RANK = 32
_EPSILON = 1e-5
_SEED = 9  # of a few, the one whose texts repeat themselves least

_MERGES = ["t h", "th e", "Ġ the", "i n", "e r", "a n", "an d", "Ġ and"]
_SPECIALS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
_CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' "
    "+ message['content'] + '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


def write_tiny_model(directory: Path, architecture: str) -> Path:
    """Write the model of an architecture (one of ARCHITECTURES) and return its file."""
    path = directory / f"tiny-{architecture}.gguf"
    writer = gguf.GGUFWriter(path, architecture)
    model = _TinyModel(writer)
    _WRITERS[architecture](model)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def write_vocabulary(
    path: Path, pre: str, model: str = "gpt2", specials: tuple[str, ...] = ()
) -> Path:
    """Write a vocabulary alone, with a pre-tokenizer of llama.cpp's, and return its file."""
    writer = gguf.GGUFWriter(path, "llama")
    _add_vocabulary(writer, pre, model, specials)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return path


class _TinyModel:
    """Draws the weights of one model, in the order in which they are asked for."""

    def __init__(self, writer: gguf.GGUFWriter) -> None:
        self.writer = writer
        self._rng = np.random.default_rng(_SEED)
        self._output_scales = _output_scales()
        writer.add_context_length(CONTEXT)
        writer.add_embedding_length(_EMBD)
        writer.add_block_count(_LAYERS)
        writer.add_layer_norm_rms_eps(_EPSILON)
        _add_vocabulary(writer)

    def matrix(self, name: str, rows: int, columns: int, gain: float = 1.0) -> None:
        """Add a matrix that keeps the variance of what it is multiplied with, times gain²."""
        self._quantised(name, self._normal(rows, columns) * (gain / np.sqrt(columns)))

    def vector(self, name: str, values: NDArray[np.float32] | float, size: int = _EMBD) -> None:
        """Add what llama.cpp wants in F32: a norm's weights, a bias."""
        self.writer.add_tensor(name, np.full(size, values, np.float32))

    def ends(self, embedding_scale: float = 0.5) -> None:
        """Add the embeddings and the head, whose logits have a standard deviation of 4."""
        rows = len(self._output_scales)
        self._quantised("token_embd.weight", self._normal(rows, _EMBD) * embedding_scale)
        head = self._normal(rows, _EMBD) / np.sqrt(_EMBD)
        self._quantised("output.weight", head * self._output_scales[:, None])
        self.vector("output_norm.weight", 4.0)

    def attention(self, layer: int, query_gain: float = 2.0) -> None:
        """Add an attention; its scores spread enough to tell one token from another."""
        for name, heads, gain in (
            ("q", _HEADS, query_gain),
            ("k", _KV_HEADS, query_gain),
            ("v", _KV_HEADS, 1.0),
        ):
            self.matrix(f"blk.{layer}.attn_{name}.weight", heads * _HEAD_SIZE, _EMBD, gain)
        self.matrix(f"blk.{layer}.attn_output.weight", _EMBD, _HEADS * _HEAD_SIZE, 4.0)

    def ffn(self, layer: int) -> None:
        """Add a feed-forward network with a gate."""
        self.vector(f"blk.{layer}.ffn_norm.weight", 1.0)
        self.matrix(f"blk.{layer}.ffn_gate.weight", _FFN, _EMBD)
        self.matrix(f"blk.{layer}.ffn_up.weight", _FFN, _EMBD)
        self.matrix(f"blk.{layer}.ffn_down.weight", _EMBD, _FFN, 2.0)

    def state_space(self, layer: int) -> None:
        """Add a Mamba layer whose states remember from ten to some hundred tokens."""
        prefix = f"blk.{layer}.ssm_"
        self.matrix(f"{prefix}in.weight", 2 * _INNER, _EMBD)
        self.writer.add_tensor(f"{prefix}conv1d.weight", self._normal(_INNER, _CONV) / 2)
        self.vector(f"{prefix}conv1d.bias", 0.0, _INNER)
        self.matrix(f"{prefix}x.weight", _DT_RANK + 2 * _STATE, _INNER, 2.0)
        self.matrix(f"{prefix}dt.weight", _INNER, _DT_RANK, 0.5)
        steps = np.exp(self._rng.uniform(np.log(0.002), np.log(0.1), _INNER))
        self.vector(f"{prefix}dt.bias", np.log(np.expm1(steps)).astype(np.float32), _INNER)
        decays = -np.tile(np.arange(1, _STATE + 1, dtype=np.float32), (_INNER, 1))
        self.writer.add_tensor(f"{prefix}a", decays)
        self.vector(f"{prefix}d", 0.5, _INNER)
        self.matrix(f"{prefix}out.weight", _EMBD, _INNER, 3.0)

    def _quantised(self, name: str, values: NDArray[np.float32]) -> None:
        kind = gguf.GGMLQuantizationType.Q4_1
        data = gguf.quants.quantize(values.astype(np.float32), kind)
        self.writer.add_tensor(name, data, raw_dtype=kind)

    def _normal(self, rows: int, columns: int) -> NDArray[np.float32]:
        return self._rng.standard_normal((rows, columns), np.float32)


def _write_llama(model: _TinyModel) -> None:
    _add_heads(model.writer)
    model.ends()
    for layer in range(_LAYERS):
        model.vector(f"blk.{layer}.attn_norm.weight", 1.0)
        model.attention(layer)
        model.ffn(layer)


def _write_phi3(model: _TinyModel) -> None:
    """Queries, keys and values in one matrix, gate and up in another."""
    _add_heads(model.writer)
    model.ends()
    for layer in range(_LAYERS):
        prefix = f"blk.{layer}."
        model.vector(f"{prefix}attn_norm.weight", 1.0)
        model.matrix(f"{prefix}attn_qkv.weight", (_HEADS + 2 * _KV_HEADS) * _HEAD_SIZE, _EMBD, 2.0)
        model.matrix(f"{prefix}attn_output.weight", _EMBD, _HEADS * _HEAD_SIZE, 2.0)
        model.vector(f"{prefix}ffn_norm.weight", 1.0)
        model.matrix(f"{prefix}ffn_up.weight", 2 * _FFN, _EMBD)
        model.matrix(f"{prefix}ffn_down.weight", _EMBD, _FFN, 2.0)


def _write_qwen3(model: _TinyModel) -> None:
    """As llama, with norms on queries and keys."""
    _add_heads(model.writer)
    model.ends()
    for layer in range(_LAYERS):
        model.vector(f"blk.{layer}.attn_norm.weight", 1.0)
        _add_query_norms(model, layer)
        model.attention(layer)
        model.ffn(layer)


def _write_gemma3(model: _TinyModel) -> None:
    """Every other layer sees a window only."""
    writer = model.writer
    _add_heads(writer)
    writer.add_sliding_window(SLIDING_WINDOW)
    writer.add_sliding_window_pattern(2)
    model.ends(embedding_scale=0.5 / np.sqrt(_EMBD))  # it multiplies them again
    for layer in range(_LAYERS):
        model.vector(f"blk.{layer}.attn_norm.weight", 1.0)
        _add_query_norms(model, layer)
        model.attention(layer)
        model.vector(f"blk.{layer}.post_attention_norm.weight", 1.0)
        model.ffn(layer)
        model.vector(f"blk.{layer}.post_ffw_norm.weight", 1.0)


def _write_mamba(model: _TinyModel) -> None:
    """Recurrent alone: a state in place of cells."""
    writer = model.writer
    writer.add_head_count(0)
    writer.add_feed_forward_length(0)
    _add_state_sizes(writer)
    model.ends()
    for layer in range(_LAYERS):
        model.vector(f"blk.{layer}.attn_norm.weight", 1.0)
        model.state_space(layer)


def _write_jamba(model: _TinyModel) -> None:
    """Hybrid: state spaces and attention in turn, without rotary embeddings or experts."""
    writer = model.writer
    writer.add_head_count(_HEADS)
    writer.add_head_count_kv([_KV_HEADS if layer % 2 else 0 for layer in range(_LAYERS)])
    writer.add_feed_forward_length(_FFN)
    _add_state_sizes(writer)
    model.ends()
    for layer in range(_LAYERS):
        prefix = f"blk.{layer}."
        model.vector(f"{prefix}attn_norm.weight", 1.0)
        if layer % 2:
            model.attention(layer)
        else:
            model.state_space(layer)
            model.vector(f"{prefix}ssm_dt_norm.weight", 1.0, _DT_RANK)
            model.vector(f"{prefix}ssm_b_norm.weight", 1.0, _STATE)
            model.vector(f"{prefix}ssm_c_norm.weight", 1.0, _STATE)
        model.ffn(layer)


_WRITERS: dict[str, Callable[[_TinyModel], None]] = {
    "llama": _write_llama,
    "phi3": _write_phi3,
    "qwen3": _write_qwen3,
    "gemma3": _write_gemma3,
    "mamba": _write_mamba,
    "jamba": _write_jamba,
}
ARCHITECTURES = tuple(_WRITERS)


def _add_heads(writer: gguf.GGUFWriter) -> None:
    writer.add_head_count(_HEADS)
    writer.add_head_count_kv(_KV_HEADS)
    writer.add_key_length(_HEAD_SIZE)
    writer.add_value_length(_HEAD_SIZE)
    writer.add_rope_dimension_count(_HEAD_SIZE)
    writer.add_feed_forward_length(_FFN)


def _add_query_norms(model: _TinyModel, layer: int) -> None:
    """Add norms on queries and keys that leave the scores the spread of `attention`'s."""
    model.vector(f"blk.{layer}.attn_q_norm.weight", 2.0, _HEAD_SIZE)
    model.vector(f"blk.{layer}.attn_k_norm.weight", 2.0, _HEAD_SIZE)


def _add_state_sizes(writer: gguf.GGUFWriter) -> None:
    writer.add_ssm_conv_kernel(_CONV)
    writer.add_ssm_inner_size(_INNER)
    writer.add_ssm_state_size(_STATE)
    writer.add_ssm_time_step_rank(_DT_RANK)


def _add_vocabulary(
    writer: gguf.GGUFWriter,
    pre: str = "gpt-2",
    model: str = "gpt2",
    more_specials: tuple[str, ...] = (),
) -> None:
    """Add GPT-2's kind of vocabulary: the 256 bytes, a few merges, ChatML's special tokens."""
    specials = [*_SPECIALS, *more_specials]
    tokens = [*_byte_names(), *(merge.replace(" ", "") for merge in _MERGES), *specials]
    control = gguf.TokenType.CONTROL
    types = [control if token in specials else gguf.TokenType.NORMAL for token in tokens]
    writer.add_tokenizer_model(model)
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_token_merges(_MERGES)
    writer.add_eos_token_id(tokens.index("<|im_end|>"))
    writer.add_bos_token_id(tokens.index("<|endoftext|>"))
    writer.add_add_bos_token(False)
    writer.add_chat_template(_CHAT_TEMPLATE)


def _byte_names() -> list[str]:
    """Return the characters by which GPT-2's vocabulary names the bytes 0 to 255."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    spare = iter(range(0x100, 0x200))
    return [chr(byte if byte in printable else next(spare)) for byte in range(256)]


def _output_scales() -> NDArray[np.float32]:
    """Return each token's weight in the head: most text is ASCII, and no answer ends by itself."""
    scales = np.ones(256 + len(_MERGES) + len(_SPECIALS), np.float32)
    scales[:0x20] = scales[0x7F:256] = 0.5
    scales[-len(_SPECIALS) :] = 0.0
    return scales
