"""A Llama of no size, in the form of Hugging Face; a server draws its weights itself."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

CONTEXT = 256
_SPECIAL = ("<s>", "</s>")
_TEMPLATE = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}assistant:"


def write(folder: Path) -> Path:
    """Write the model's configuration and a tokenizer whose tokens are bytes."""
    alphabet = sorted(_byte_characters())
    vocabulary = {token: at for at, token in enumerate([*_SPECIAL, *alphabet])}
    _write(folder / "tokenizer.json", _tokenizer(vocabulary))
    _write(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": "<s>",
            "eos_token": "</s>",
            "chat_template": _TEMPLATE,
            "model_max_length": CONTEXT,
        },
    )
    _write(
        folder / "config.json",
        {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "vocab_size": len(vocabulary),
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_key_value_heads": 2,
            "max_position_embeddings": CONTEXT,
            "rms_norm_eps": 1e-5,
            "bos_token_id": 0,
            "eos_token_id": 1,
            "torch_dtype": "float32",
            "tie_word_embeddings": False,
            "hidden_act": "silu",
        },
    )
    return folder


def _byte_characters() -> list[str]:
    """Return the characters by which byte-level tokenizers write bytes, as GPT-2 began to."""
    shown = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    return [chr(byte) for byte in shown] + [chr(0x100 + n) for n in range(0x100 - len(shown))]


def _tokenizer(vocabulary: dict[str, int]) -> Any:
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    special = [
        {"id": at, "content": token, "special": True, **flags} for at, token in enumerate(_SPECIAL)
    ]
    bytes_ = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": special,
        "normalizer": None,
        "pre_tokenizer": {**bytes_, "use_regex": True},
        "post_processor": None,
        "decoder": {**bytes_, "use_regex": True},
        "model": {"type": "BPE", "vocab": vocabulary, "merges": []},
    }


def _write(file: Path, value: Any) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(value))
