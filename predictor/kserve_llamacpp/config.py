"""The predictor's settings: one frozen object, made from flags, checked before anything starts."""

from __future__ import annotations

import argparse
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from http_edge import cgroup
from http_edge.bounds import Bounds, max_connections
from http_edge.hosts import checked_host
from kserve_llamacpp.errors import ConfigurationError, ModelFileError
from kserve_llamacpp.limit_flags import LEAST, MOST, add_limit_flags, byte_capacity
from kserve_llamacpp.logging import LOG_FORMATS, LOG_LEVELS
from kserve_llamacpp.shared_prompts import NamedPrompt, read_shared_prompts
from kserve_llamacpp.tenant import PrefixSharing
from kserve_llamacpp.wire.cells import BLOCK, whole_parts
from kserve_llamacpp.wire.worker_options import FlashAttention, KVCacheLayout
from openai_protocol.request_limits import RequestLimits

GGUF_MAGIC = b"GGUF"
_LATER_PART = re.compile(r"-(?!00001-)\d{5}-of-\d{5}\.gguf$")  # of a model in several files
_SELF_TEST_BATCH = 128  # the self-test's largest batch has 85 rows
MAX_SEQUENCES = 128  # half of LLAMA_MAX_SEQ: the other ids are the prefix cache's


@dataclass(frozen=True)
class Config:
    """What the predictor was told; each field is the flag of the same name."""

    model_name: str
    model_path: Path
    http_host: str
    http_port: int
    allowed_hosts: tuple[str, ...]
    n_ctx: int
    n_batch: int
    n_threads: int
    n_gpu_layers: int
    max_sequences: int
    kv_cache: KVCacheLayout
    flash_attn: FlashAttention
    deterministic: bool
    host_cache_mib: int
    target_step_ms: int
    max_waiting: int
    max_waiting_tokens: int
    queue_timeout_seconds: float
    prefix_sharing: PrefixSharing
    shared_prompts: tuple[NamedPrompt, ...]
    max_body_bytes: int
    head_timeout_seconds: float
    body_timeout_seconds: float
    write_timeout_seconds: float
    timeout_keep_alive: int
    min_bytes_per_second: int
    max_connections: int
    max_bytes_in_flight: int
    max_json_depth: int
    max_json_values: int
    max_messages: int
    max_engine_restarts: int
    watchdog_seconds: float
    chat_template: str | None
    drain_delay_seconds: float
    grace_seconds: float
    log_level: str
    log_format: str
    enable_grpc: bool
    grpc_port: int
    grpc_max_send_message_length: int
    grpc_max_receive_message_length: int
    ssl_certfile: str | None
    ssl_keyfile: str | None

    @property
    def request_limits(self) -> RequestLimits:
        """What a request's body may have at most."""
        return RequestLimits(self.max_json_depth, self.max_messages, self.max_json_values)

    @property
    def bounds(self) -> Bounds:
        """What a connection may take at most."""
        return Bounds(
            head_seconds=self.head_timeout_seconds,
            body_seconds=self.body_timeout_seconds,
            write_seconds=self.write_timeout_seconds,
            idle_seconds=self.timeout_keep_alive,
            min_bytes_per_second=self.min_bytes_per_second,
            max_connections=self.max_connections,
        )


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the predictor's own flags, which stand beside KServe's; change KServe's defaults.

    A call of gRPC carries a model's name: KServe's 8 MiB for each message is more than it needs.
    """
    parser.set_defaults(enable_grpc=False, grpc_max_receive_message_length=1 << 20)
    group = parser.add_argument_group("llama.cpp predictor")
    add = group.add_argument
    add("--model_dir", default="/mnt/models", help="A GGUF file, or a folder that holds one.")
    add("--http_host", default="0.0.0.0", help="The address that HTTP and gRPC listen on.")  # noqa: S104 - a pod's port must be reachable
    add(
        "--allowed_hosts",
        default="",
        help="Hosts that the server may be asked for, with commas between: app.example.com, "
        "*.example.com, or * for any; besides these, localhost and the address that a request has "
        "come to. Empty: no others on loopback, and any elsewhere.",
    )
    add(
        "--n_ctx",
        type=int,
        default=0,
        help="Tokens in the KV cache, of all sequences together, rounded up to 256 (for each of "
        "--max_sequences where they are split). 0: what the model was trained for times "
        "--max_sequences, at most 16384, and no more than fits into the memory.",
    )
    add("--n_batch", type=int, default=512, help="Tokens that one step computes at most.")
    add("--n_threads", type=int, default=0, help="Threads. 0: the CPUs of the cgroup's quota.")
    add(
        "--n_gpu_layers",
        type=int,
        default=-1,
        help="Layers to offload, -1 for all. Without a GPU build it has no effect.",
    )
    add("--max_sequences", type=int, default=8, help="Requests that are decoded together.")
    add(
        "--kv_cache",
        default="auto",
        choices=get_args(KVCacheLayout),
        help="How --n_ctx is divided. unified: all sequences share it. split: each has its part "
        "to itself, as deterministic mode needs it. split+pool: half of it is split, half is for "
        "those that outgrow their part. auto: split+pool on a CPU where that shortens no "
        "sequence, else unified.",
    )
    add(
        "--flash_attn",
        default="auto",
        choices=get_args(FlashAttention),
        help="llama.cpp's flash attention. auto: off on a CPU, where it is slower behind long "
        "contexts, but on in deterministic mode, which needs it.",
    )
    add(
        "--deterministic",
        action="store_true",
        help="The same request gives the same bytes, alone and in any company; on a CPU slower "
        "behind long contexts.",
    )
    add(
        "--host_cache_mib",
        type=int,
        default=-1,
        help="Host memory in MiB for prefixes that leave the KV cache. -1: a quarter of what is "
        "left after loading, at most 1024. 0: none.",
    )
    add(
        "--target_step_ms",
        type=int,
        default=300,
        help="How long a step may take while answers are streamed: a long prompt is computed in "
        "parts of this size.",
    )
    add("--max_waiting", type=int, default=128, help="Requests that may wait; more get 429.")
    add(
        "--max_waiting_tokens",
        type=int,
        default=0,
        help="Tokens of prompts that may wait, 4 characters of text as one; more get 429. 0: any.",
    )
    add(
        "--queue_timeout_seconds",
        type=float,
        default=300.0,
        help="Longest wait of a request until it starts; then it gets 503. 0: no limit.",
    )
    add(
        "--prefix_sharing",
        default="tenant",
        choices=get_args(PrefixSharing),
        help="Which requests share cached prefixes. tenant: those of the same X-Tenant or API "
        "key, and all that have neither; all: any, so that a tenant can find out by an answer's "
        "delay what another has asked.",
    )
    add(
        "--shared_prompts",
        default=None,
        help="A file that holds a system prompt, or a folder of such files: tenants share these "
        "prompts' part of the cache, too.",
    )
    add_limit_flags(add)
    add(
        "--max_engine_restarts",
        type=int,
        default=5,
        help="Engine deaths in a row, without a token in between, past which the model is not "
        "ready and requests get 503 until an engine answers; it is started again all the same, "
        "after 30 seconds at most.",
    )
    add(
        "--watchdog_seconds",
        type=float,
        default=30.0,
        help="Least silence of an engine with work, after which it is killed and started again; "
        "20 times the slowest step where that is more. 0: never.",
    )
    add("--chat_template", default=None, help="A file with a Jinja template, for the GGUF's own.")
    add(
        "--drain_delay_seconds",
        type=float,
        default=5.0,
        help="After SIGTERM: how long to go on accepting while not ready.",
    )
    add(
        "--grace_seconds",
        type=float,
        default=30.0,
        help="After the drain delay: how long running requests may take.",
    )
    add("--log_level", default="info", choices=LOG_LEVELS, help="The least level that is logged.")
    add("--log_format", default="auto", choices=LOG_FORMATS, help="auto: pretty on a terminal.")


def read_config(args: argparse.Namespace) -> Config:
    """Check the flags and find the model file.

    Raises ConfigurationError or ModelFileError, whose texts name the flag.
    """
    _check_ranges(args)
    _check_ports(args)
    if args.workers != 1:
        raise ConfigurationError(
            f"--workers is {args.workers}, but must be 1: the engine is a process of its own, "
            "and one server process feeds it"
        )
    num_parts = args.max_sequences if args.deterministic or args.kv_cache == "split" else 1
    if 0 < args.n_ctx < num_parts * BLOCK:
        each = f" for each of --max_sequences ({num_parts})" if num_parts > 1 else ""
        raise ConfigurationError(
            f"--n_ctx is {args.n_ctx}, but must be at least {num_parts * BLOCK}, {BLOCK}{each}: "
            f"raise it, or leave it out{', or lower --max_sequences' if each else ''}"
        )
    if args.deterministic and args.flash_attn == "off":
        raise ConfigurationError(
            "--deterministic needs flash attention, the only kind whose bits do not depend on the "
            "batch: leave --flash_attn out"
        )
    if args.deterministic and args.kv_cache not in ("auto", "split"):
        raise ConfigurationError(
            "--deterministic needs --kv_cache split, for where cells are shared a sequence's bits "
            "depend on where others' cells are: leave --kv_cache out"
        )
    if args.deterministic and args.n_batch < _SELF_TEST_BATCH:
        raise ConfigurationError(
            f"--n_batch is {args.n_batch}, but must be at least {_SELF_TEST_BATCH} with "
            "--deterministic: its self-test computes large batches"
        )
    available = cgroup.available_memory()
    if available is not None and args.host_cache_mib > available >> 20:
        raise ConfigurationError(
            f"--host_cache_mib is {args.host_cache_mib}, but only {available >> 20} MiB are "
            "available: lower it, or leave it out for a quarter of what is left after loading"
        )
    if args.n_batch < args.max_sequences:
        raise ConfigurationError(
            f"--n_batch is {args.n_batch}, less than --max_sequences ({args.max_sequences}): "
            "a step takes one token of each sequence"
        )
    return Config(
        model_name=args.model_name,
        model_path=find_model(Path(args.model_dir)),
        http_host=args.http_host,
        http_port=args.http_port,
        allowed_hosts=_read_hosts(args.allowed_hosts),
        n_ctx=whole_parts(args.n_ctx, num_parts),
        n_batch=args.n_batch,
        n_threads=args.n_threads or cgroup.num_cpus(),
        n_gpu_layers=args.n_gpu_layers,
        max_sequences=args.max_sequences,
        kv_cache="split" if args.deterministic else args.kv_cache,
        flash_attn=args.flash_attn,
        deterministic=args.deterministic,
        host_cache_mib=args.host_cache_mib,
        target_step_ms=args.target_step_ms,
        max_waiting=args.max_waiting,
        max_waiting_tokens=args.max_waiting_tokens,
        queue_timeout_seconds=args.queue_timeout_seconds,
        prefix_sharing=args.prefix_sharing,
        shared_prompts=read_shared_prompts(args.shared_prompts),
        max_body_bytes=args.max_body_bytes,
        head_timeout_seconds=args.head_timeout_seconds,
        body_timeout_seconds=args.body_timeout_seconds,
        write_timeout_seconds=args.write_timeout_seconds,
        timeout_keep_alive=args.timeout_keep_alive,
        min_bytes_per_second=args.min_bytes_per_second,
        max_connections=args.max_connections
        or max_connections(available, is_secure=args.ssl_certfile is not None),
        max_bytes_in_flight=byte_capacity(args.max_bytes_in_flight, args.max_body_bytes, available),
        max_json_depth=args.max_json_depth,
        max_json_values=args.max_json_values,
        max_messages=args.max_messages,
        max_engine_restarts=args.max_engine_restarts,
        watchdog_seconds=args.watchdog_seconds,
        chat_template=_read_template(args.chat_template),
        drain_delay_seconds=args.drain_delay_seconds,
        grace_seconds=args.grace_seconds,
        log_level=args.log_level,
        log_format=args.log_format,
        enable_grpc=args.enable_grpc,
        grpc_port=args.grpc_port,
        grpc_max_send_message_length=args.grpc_max_send_message_length,
        grpc_max_receive_message_length=args.grpc_max_receive_message_length,
        ssl_certfile=args.ssl_certfile,
        ssl_keyfile=args.ssl_keyfile,
    )


def _check_ranges(args: argparse.Namespace) -> None:
    """Raise ConfigurationError for a number that its setting cannot have."""
    for name, least in _LEAST.items():
        value = getattr(args, name)
        if not math.isfinite(value):
            raise ConfigurationError(f"--{name} is {value}, but must be a finite number")
        if value < least:
            raise ConfigurationError(f"--{name} is {value}, but must be at least {least}")
    for name, most in _MOST.items():
        if getattr(args, name) > most:
            raise ConfigurationError(
                f"--{name} is {getattr(args, name)}, but must be at most {most}"
            )


def _check_ports(args: argparse.Namespace) -> None:
    for name in ("http_port", "grpc_port"):
        if not 0 <= getattr(args, name) <= 65535:
            raise ConfigurationError(f"--{name} is {getattr(args, name)}, but must be 0 to 65535")
    if args.enable_grpc and args.grpc_port == args.http_port != 0:
        raise ConfigurationError(
            f"--grpc_port is {args.grpc_port}, and so is --http_port: choose another for one"
        )


_LEAST = {
    **LEAST,
    "n_ctx": 0,
    "n_batch": 16,  # costs are measured on so many tokens
    "n_threads": 0,
    "n_gpu_layers": -1,
    "max_sequences": 1,
    "host_cache_mib": -1,
    "target_step_ms": 1,
    "max_waiting": 0,
    "max_waiting_tokens": 0,
    "queue_timeout_seconds": 0,
    "max_engine_restarts": 0,
    "watchdog_seconds": 0,
    "drain_delay_seconds": 0,
    "grace_seconds": 0,
    "grpc_max_send_message_length": 1024,
    "grpc_max_receive_message_length": 1024,
}
_MOST = {
    **MOST,
    "max_sequences": MAX_SEQUENCES,
    "grpc_max_send_message_length": 1 << 30,
    "grpc_max_receive_message_length": 1 << 30,
}


def find_model(place: Path) -> Path:
    """Return the GGUF file at a path, or the only one in a folder (the first part of a split one).

    Raises ModelFileError that says what is there instead.
    """
    if place.is_dir():
        files = sorted(place.rglob("*.gguf"))
        first_parts = [file for file in files if not _LATER_PART.search(file.name)]
        if not first_parts:
            raise ModelFileError(
                f"--model_dir: no *.gguf file in {place}: put one there, or name the file itself"
            )
        if len(first_parts) > 1:
            names = ", ".join(str(f.relative_to(place)) for f in first_parts[:5])
            raise ModelFileError(
                f"--model_dir: several GGUF files in {place} ({names}): name the one to serve"
            )
        place = first_parts[0]
    try:
        with place.open("rb") as file:
            magic = file.read(len(GGUF_MAGIC))
    except FileNotFoundError:
        raise ModelFileError(
            f"--model_dir: there is no file or folder {place}: check the path, and that the "
            "volume is mounted"
        ) from None
    except OSError as error:
        raise ModelFileError(f"--model_dir: cannot read {place}: {error.strerror}") from None
    if magic != GGUF_MAGIC:
        raise ModelFileError(
            f"--model_dir: {place} is not a GGUF file (it does not begin with 'GGUF'): convert the "
            "model, or check that the download is complete"
        )
    return place


def _read_hosts(text: str) -> tuple[str, ...]:
    try:
        return tuple(checked_host(host) for host in text.split(",") if host.strip())
    except ValueError as error:
        raise ConfigurationError(f"--allowed_hosts: {error}") from None


def _read_template(path: str | None) -> str | None:
    if path is None:
        return None
    try:
        return Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"--chat_template: cannot read {path}: {error}") from None
