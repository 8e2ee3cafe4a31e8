"""The predictor's settings: checked before anything starts, with errors that name the flag."""

from __future__ import annotations

import argparse
import re
from dataclasses import FrozenInstanceError, fields
from pathlib import Path

import pytest
from kserve import model_server

from kserve_llamacpp import errors
from kserve_llamacpp.config import MAX_SEQUENCES, Config, add_flags, find_model, read_config
from kserve_llamacpp.errors import ConfigurationError, ModelFileError, StartupError
from kserve_llamacpp.server import LlamaCppServer
from kserve_llamacpp.shared_prompts import NamedPrompt
from tests.proxy.certificates import Authority


def _gguf(path: Path, magic: bytes = b"GGUF") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(magic + bytes(8))
    return path


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return _gguf(tmp_path / "model.gguf")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(parents=[model_server.parser])
    add_flags(parser)
    return parser


def _read(model: Path, *flags: str) -> Config:
    return read_config(_parser().parse_args(["--model_dir", str(model), *flags]))


def test_the_defaults_are_valid(model: Path) -> None:
    """With nothing but a model the settings are complete; threads are those of the cgroup."""
    config = _read(model)

    assert config.model_path == model
    assert config.n_threads >= 1
    assert (config.drain_delay_seconds, config.grace_seconds) == (5.0, 30.0)


def test_every_setting_is_a_flag_of_its_name(model: Path) -> None:
    """A field of the settings is set by the flag of the same name; the model by --model_dir."""
    flags = set(vars(_parser().parse_args([])))

    assert {field.name for field in fields(Config)} - {"model_path"} <= flags


def test_flags_arrive(model: Path, tmp_path: Path) -> None:
    """A flag's value is the setting's value."""
    prompt = tmp_path / "prompt"
    prompt.write_text("Be kind.")
    config = _read(
        model,
        *("--model_name", "mine", "--http_port", "9", "--http_host", "::1", "--n_ctx", "4096"),
        *("--n_batch", "128", "--n_threads", "3", "--n_gpu_layers", "5", "--max_sequences", "2"),
        *(
            "--deterministic",
            "--kv_cache",
            "split",
            "--host_cache_mib",
            "7",
            "--target_step_ms",
            "50",
        ),
        *("--max_waiting", "0", "--max_body_bytes", "10", "--max_engine_restarts", "1"),
        *("--prefix_sharing", "all", "--shared_prompts", str(prompt), "--flash_attn", "on"),
        *("--head_timeout_seconds", "2", "--body_timeout_seconds", "3", "--max_connections", "5"),
        *("--write_timeout_seconds", "4", "--timeout-keep-alive", "6"),
        *("--min_bytes_per_second", "7", "--max_bytes_in_flight", "16777216"),
        *("--max_json_depth", "9", "--max_json_values", "99", "--max_messages", "4"),
        *("--max_waiting_tokens", "6", "--queue_timeout_seconds", "7", "--watchdog_seconds", "8"),
        *("--drain_delay_seconds", "0", "--grace_seconds", "1.5"),
        *("--log_level", "debug", "--log_format", "json"),
        *(
            "--enable_grpc",
            "true",
            "--grpc_port",
            "10",
            "--ssl_certfile",
            "c",
            "--ssl_keyfile",
            "k",
        ),
        *("--grpc_max_send_message_length", "2048", "--grpc_max_receive_message_length", "4096"),
        *("--allowed_hosts", "A.example, *.b.example"),
    )

    assert config == Config(
        model_name="mine",
        model_path=model,
        http_host="::1",
        http_port=9,
        allowed_hosts=("a.example", "*.b.example"),
        n_ctx=4096,
        n_batch=128,
        n_threads=3,
        n_gpu_layers=5,
        max_sequences=2,
        kv_cache="split",
        flash_attn="on",
        deterministic=True,
        host_cache_mib=7,
        target_step_ms=50,
        max_waiting=0,
        max_waiting_tokens=6,
        queue_timeout_seconds=7.0,
        prefix_sharing="all",
        shared_prompts=(NamedPrompt("prompt", "Be kind."),),
        max_body_bytes=10,
        head_timeout_seconds=2.0,
        body_timeout_seconds=3.0,
        write_timeout_seconds=4.0,
        timeout_keep_alive=6,
        min_bytes_per_second=7,
        max_connections=5,
        max_bytes_in_flight=16777216,
        max_json_depth=9,
        max_json_values=99,
        max_messages=4,
        max_engine_restarts=1,
        watchdog_seconds=8.0,
        chat_template=None,
        drain_delay_seconds=0.0,
        grace_seconds=1.5,
        log_level="debug",
        log_format="json",
        enable_grpc=True,
        grpc_port=10,
        grpc_max_send_message_length=2048,
        grpc_max_receive_message_length=4096,
        ssl_certfile="c",
        ssl_keyfile="k",
    )


def test_grpc_is_off_unless_asked_for(model: Path) -> None:
    """Without a flag there is no gRPC, and its messages are bounded; KServe's form turns it on."""
    assert not _read(model).enable_grpc
    assert _read(model).grpc_max_receive_message_length == 1 << 20
    assert _read(model, "--enable_grpc", "true").enable_grpc
    assert _read(model, "--enable_grpc=True").enable_grpc
    assert not _read(model, "--enable_grpc=false").enable_grpc


def test_a_wrong_certificate_stops_the_start(model: Path, tmp_path: Path) -> None:
    """The server looks at its certificate before all else; the text names the flags."""
    cert, _ = Authority().issue().write(tmp_path, "one")
    _, key = Authority().issue().write(tmp_path, "other")
    config = _read(model, "--ssl_certfile", str(cert), "--ssl_keyfile", str(key))

    with pytest.raises(ConfigurationError, match="--ssl_certfile, --ssl_keyfile: "):
        LlamaCppServer(config)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--grpc_port", "65536"), "--grpc_port is 65536, but must be 0 to 65535"),
        (("--enable_grpc=true", "--grpc_port=8080"), "--grpc_port is 8080, and so is --http_port"),
        (("--grpc_max_receive_message_length=-1",), "must be at least 1024"),
        (("--grpc_max_send_message_length=9999999999",), "must be at most 1073741824"),
    ],
)
def test_settings_of_grpc(model: Path, flags: tuple[str, ...], words: str) -> None:
    """A port or a length that cannot be is refused by name."""
    with pytest.raises(ConfigurationError, match=re.escape(words)):
        _read(model, *flags)


def test_settings_never_change(model: Path) -> None:
    """The settings are frozen: whoever has them may rely on them."""
    with pytest.raises(FrozenInstanceError):
        _read(model).n_ctx = 1  # type: ignore[misc]  # the point of the test


@pytest.mark.parametrize(
    ("flag", "value"),
    [
        ("n_ctx", "-1"),
        ("n_batch", "15"),
        ("n_threads", "-1"),
        ("n_gpu_layers", "-2"),
        ("max_sequences", "0"),
        ("max_sequences", str(MAX_SEQUENCES + 1)),
        ("max_waiting", "-1"),
        ("max_body_bytes", "0"),
        ("max_json_depth", "4"),
        ("max_json_depth", "201"),
        ("max_json_values", "0"),
        ("max_messages", "0"),
        ("max_messages", "4097"),
        ("max_engine_restarts", "-1"),
        ("drain_delay_seconds", "-0.1"),
        ("drain_delay_seconds", "nan"),
        ("grace_seconds", "-1"),
        ("grace_seconds", "inf"),
        ("http_port", "65536"),
        ("http_port", "-1"),
        ("workers", "2"),
        ("n_ctx", "255"),
    ],
)
def test_a_wrong_value_is_told_with_its_flag(model: Path, flag: str, value: str) -> None:
    """A value that a setting cannot have stops the start; the text names flag and value."""
    with pytest.raises(ConfigurationError) as caught:
        _read(model, f"--{flag}={value}")

    assert f"--{flag} is {value}" in str(caught.value)


@pytest.mark.parametrize(
    ("flags", "n_ctx"),
    [
        (("--n_ctx=256",), 256),
        (("--n_ctx=257",), 512),
        (("--n_ctx=2049", "--kv_cache=split"), 2048),
        (("--n_ctx=2304", "--deterministic"), 4096),
        (("--n_ctx=0", "--deterministic"), 0),
    ],
)
def test_a_context_has_whole_blocks(model: Path, flags: tuple[str, ...], n_ctx: int) -> None:
    """The context is what llama.cpp rounds it to: to 256 tokens, for each sequence if split."""
    assert _read(model, *flags).n_ctx == n_ctx


def test_a_step_takes_a_token_of_each_sequence(model: Path) -> None:
    """A batch has room for as many sequences as are decoded together."""
    with pytest.raises(ConfigurationError, match="--n_batch is 16, less than --max_sequences"):
        _read(model, "--n_batch=16", "--max_sequences=17")


def test_batches_are_large_enough_for_the_self_test(model: Path) -> None:
    """Deterministic mode tests itself in batches that smaller ones could not hold."""
    with pytest.raises(ConfigurationError, match="--n_batch is 127, but must be at least 128"):
        _read(model, "--deterministic", "--n_batch=127")


def test_a_host_cache_above_the_memory(model: Path) -> None:
    """More memory for prefixes than there is stops the start; the text tells what there is."""
    with pytest.raises(ConfigurationError, match=r"--host_cache_mib is 99999999, but only \d+ MiB"):
        _read(model, "--host_cache_mib=99999999")


@pytest.mark.parametrize("layout", ["--deterministic", "--kv_cache=split"])
def test_a_split_context_is_too_small_for_its_parts(model: Path, layout: str) -> None:
    """Less than 256 tokens for each sequence stop the start; the text says what would do."""
    with pytest.raises(ConfigurationError) as caught:
        _read(model, layout, "--max_sequences=4", "--n_ctx=1023")

    assert str(caught.value) == (
        "--n_ctx is 1023, but must be at least 1024, 256 for each of --max_sequences (4): "
        "raise it, or leave it out, or lower --max_sequences"
    )


@pytest.mark.parametrize("flag", ["--log_level=loud", "--log_format=xml", "--n_ctx=many"])
def test_a_value_of_the_wrong_kind_is_told_with_its_flag(
    model: Path, flag: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """What argparse refuses is told by it, with the flag, and ends with its status 2."""
    with pytest.raises(SystemExit) as caught:
        _read(model, flag)

    assert caught.value.code == 2
    assert f"argument {flag.partition('=')[0]}" in capsys.readouterr().err


def test_a_chat_template_is_read_from_its_file(model: Path, tmp_path: Path) -> None:
    """The template that stands in for the model's own is a file's content."""
    template = tmp_path / "t.jinja"
    template.write_text("{{ 'ü' }}", encoding="utf-8")

    assert _read(model, f"--chat_template={template}").chat_template == "{{ 'ü' }}"


@pytest.mark.parametrize("content", [None, b"\xff\xfe"])
def test_a_chat_template_that_cannot_be_read_names_its_flag(
    model: Path, tmp_path: Path, content: bytes | None
) -> None:
    """A missing template file, or one that is no text, stops the start with the flag's name."""
    template = tmp_path / "t.jinja"
    if content is not None:
        template.write_bytes(content)

    with pytest.raises(ConfigurationError, match=r"--chat_template: cannot read .*t\.jinja"):
        _read(model, f"--chat_template={template}")


def test_a_file_is_taken_as_it_is(tmp_path: Path) -> None:
    """A path to a GGUF file is that file, whatever it is called."""
    model = _gguf(tmp_path / "blob-5f3a")

    assert find_model(model) == model


@pytest.mark.parametrize(
    "names",
    [
        ["m.gguf"],
        ["deep/er/m.gguf"],
        ["m-00001-of-00003.gguf", "m-00002-of-00003.gguf", "m-00003-of-00003.gguf"],
        ["best-of-breed.gguf", "README.md"],
    ],
)
def test_the_only_model_of_a_folder_is_found(tmp_path: Path, names: list[str]) -> None:
    """A folder with one model is served by its name: a split model by its first part."""
    for name in names:
        _gguf(tmp_path / name)

    assert find_model(tmp_path) == tmp_path / names[0]


def test_a_folder_with_several_models_asks_which(tmp_path: Path) -> None:
    """With several models in a folder the text lists them and asks for one."""
    for name in ("a.gguf", "b/c.gguf"):
        _gguf(tmp_path / name)

    with pytest.raises(ModelFileError, match=r"--model_dir: several .*\(a\.gguf, b/c\.gguf\)"):
        find_model(tmp_path)


@pytest.mark.parametrize("names", [[], ["model.bin"], ["m-00002-of-00003.gguf"]])
def test_a_folder_without_a_model_says_so(tmp_path: Path, names: list[str]) -> None:
    """A folder without a model, or with later parts alone, is told what to put there."""
    for name in names:
        _gguf(tmp_path / name)

    with pytest.raises(ModelFileError, match=r"--model_dir: no \*\.gguf file in"):
        find_model(tmp_path)


def test_a_path_that_does_not_exist_says_so(tmp_path: Path) -> None:
    """A missing path is told, with what to check."""
    with pytest.raises(ModelFileError, match=r"--model_dir: there is no file or folder .*volume"):
        find_model(tmp_path / "nowhere")


@pytest.mark.parametrize("magic", [b"", b"GGU", b"<!DOCTYPE html>"])
def test_what_is_not_a_gguf_says_so(tmp_path: Path, magic: bytes) -> None:
    """A file that does not begin as a GGUF is told apart before llama.cpp reads it."""
    path = tmp_path / "model.gguf"
    path.write_bytes(magic)

    with pytest.raises(ModelFileError, match=r"--model_dir: .* is not a GGUF file"):
        find_model(path)


def test_a_file_that_cannot_be_read_says_why(tmp_path: Path) -> None:
    """What the system refuses is told in its words: here, a folder with a model's name."""
    (tmp_path / "model.gguf").mkdir()

    with pytest.raises(ModelFileError, match=r"--model_dir: cannot read .*: Is a directory"):
        find_model(tmp_path)


def test_exit_statuses_are_those_of_the_docstrings_tree() -> None:
    """The tree that the error module opens with tells every class with its exit status."""
    lines = re.findall(r"^ +[├└─ ]*(\w+Error) +(\d+)", errors.__doc__ or "", re.MULTILINE)
    statuses = {name: int(status) for name, status in lines}
    classes = [StartupError, *StartupError.__subclasses__()]

    assert statuses == {cls.__name__: cls.exit_status for cls in classes}
    assert len(set(statuses.values())) == len(statuses)


def test_deterministic_mode_needs_a_split_cache(model: Path) -> None:
    """A unified cache that is asked for beside deterministic mode is refused, naming the flag."""
    with pytest.raises(ConfigurationError, match="--kv_cache split"):
        _read(model, "--deterministic", "--kv_cache", "unified")

    with pytest.raises(ConfigurationError, match="--flash_attn"):
        _read(model, "--deterministic", "--flash_attn", "off")

    assert _read(model, "--deterministic").kv_cache == "split"
    assert _read(model).kv_cache == "auto"


def test_a_host_that_is_none(model: Path) -> None:
    """A host that cannot be allowed stops the start, naming the flag and how to write one."""
    with pytest.raises(ConfigurationError, match=r"--allowed_hosts: .* write app\.example\.com"):
        _read(model, "--allowed_hosts", "http://a.example")
