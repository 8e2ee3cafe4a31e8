"""The models of backends: which file is meant, and which of two names each side has for it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from openai_proxy.assembly import model_table
from openai_proxy.backends.command import Command
from openai_proxy.backends.kind import BackendError, gguf_file
from openai_proxy.backends.launch import make
from openai_proxy.backends.shimmy import Shimmy
from openai_proxy.config import load


@pytest.mark.parametrize(
    ("listed", "name"),
    [
        (["a-model", "my-model.q4-0", "tinyllama-1.1b"], "my-model.q4-0"),
        (["My Model.Q4_0"], "My Model.Q4_0"),
        (["a-model", "tinyllama-1.1b"], "tinyllama-1.1b"),
        (["a-model", "phi3-lora"], "phi3-lora"),
        (["z", "a-model"], "z"),
        ([], "my-model.q4-0"),
    ],
)
def test_shimmys_name_of_the_model(tmp_path: Path, listed: list[str], name: str) -> None:
    """It is the one that shimmy makes of the file's name, or its fixed one, not a neighbour's."""
    file = tmp_path / "My Model.Q4_0.gguf"
    file.touch()
    assert Shimmy("shimmy", str(file)).choose_model(listed) == name


@pytest.mark.parametrize(
    ("wanted", "listed", "name"),
    [
        (None, ["a", "b"], "a"),
        (None, [], None),
        ("llama3", ["llama3:latest"], "llama3:latest"),
        ("llama3", ["mistral:latest", "llama3:latest"], "llama3"),
        ("b", ["a", "b"], "b"),
        ("b", [], "b"),
    ],
)
def test_a_commands_name_of_the_model(
    wanted: str | None, listed: list[str], name: str | None
) -> None:
    """It is the only one that it lists, else the one that was given, else the first."""
    assert Command(("run",), wanted=wanted).choose_model(listed) == name


@pytest.mark.parametrize("kind", ["llamacpp", "llama-server", "shimmy", "vllm", "sglang"])
def test_a_model_that_is_elsewhere(kind: str) -> None:
    """A reference that no kind of backend takes is refused by the setting, and how to mend it."""
    program = {"backend_python": "sh", "backend_executable": "sh"}
    backend = make(load({"backend": kind, "model_path": "hf://org/model", **program}))
    with pytest.raises(BackendError, match="--model-path: 'hf://org/model' is a ref") as raised:
        backend.check(os.environ["PATH"])
    assert raised.value.exit_code == 4
    assert ("org/name" in str(raised.value)) == (kind in ("vllm", "sglang"))


@pytest.mark.parametrize(
    ("files", "says"),
    [
        ((), "has no GGUF file"),
        (("a.gguf", "b/c.gguf"), r"several GGUF files \(a.gguf, b/c.gguf\)"),
    ],
)
def test_a_folder_without_one_model(tmp_path: Path, files: tuple[str, ...], says: str) -> None:
    """Where it is not clear which file is meant, the setting is named, and what is there."""
    (tmp_path / "b").mkdir()
    for name in files:
        (tmp_path / name).touch()
    with pytest.raises(BackendError, match=f"--model-path.*{says}") as raised:
        gguf_file(str(tmp_path))
    assert raised.value.exit_code == 4


SHIMMY = {"backend": "shimmy", "model_path": "/models/Tiny_Model.gguf"}


@pytest.mark.parametrize(
    ("settings", "asked", "meant"),
    [
        ({}, "Tiny_Model", "tiny-model"),
        ({}, "tiny-model", "tiny-model"),
        ({}, "another", "another"),
        ({}, None, "tiny-model"),
        ({"model_name": "mine"}, "mine", "tiny-model"),
        ({"models": {"fast": {"upstream_model": "Tiny_Model"}}}, "fast", "tiny-model"),
        ({"models": {"Tiny_Model": {"aliases": ["t"]}}}, "t", "tiny-model"),
        ({"models": {"big": {"aliases": ["Tiny_Model"]}}}, "Tiny_Model", "big"),
        ({"default_model": "big"}, None, "big"),
    ],
)
def test_our_name_for_a_backends_model(
    settings: dict[str, Any], asked: str | None, meant: str
) -> None:
    """What is served under our name is asked of the backend under its own, in settings, too."""
    table = model_table(load({**SHIMMY, **settings}), "tiny-model")
    listed = {"default": ("a-model", "tiny-model", "big", "another")}
    assert table.resolve(asked, listed).upstream_model == meant
