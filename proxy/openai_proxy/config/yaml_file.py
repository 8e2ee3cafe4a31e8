"""A YAML file as values, with the line of each: what an error message needs.

Scalars are read as YAML 1.2 has them, so that `on`, `no` and `12:30` are text. Imported only where
there is a file to read.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from openai_proxy.config.errors import ConfigError
from openai_proxy.config.layers import Place

MAX_DEPTH = 32
MAX_VALUES = 100_000  # a few anchors can stand for any number of values

_NULL = "tag:yaml.org,2002:null"
# What a scalar without quotes is, and the characters that it begins with
_SCALARS = (
    ("tag:yaml.org,2002:bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("tag:yaml.org,2002:int", r"[-+]?(0|[1-9][0-9]*)", list("-+0123456789")),
    (
        "tag:yaml.org,2002:float",
        r"[-+]?(\.[0-9]+|[0-9]+\.[0-9]*|[0-9]+(?=[eE]))([eE][-+]?[0-9]+)?",
        list("-+.0123456789"),
    ),
    (_NULL, r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("tag:yaml.org,2002:merge", r"<<", ["<"]),
)


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers: dict[Any, Any] = {}  # noqa: RUF012  # the base class has it so


for _tag, _pattern, _first in _SCALARS:
    _Loader.add_implicit_resolver(_tag, re.compile(f"^({_pattern})$"), _first)


def read(path: Path, name: str) -> tuple[Mapping[str, Any], Mapping[Place, int]]:
    """Return the mapping that a file holds, and the line of each value by its place in it.

    Raises ConfigError, with `name` as the file's; its text quotes no values.
    """
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise ConfigError(f"{name}: cannot be read: {(error.strerror or '').lower()}") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{name}: is not UTF-8 at byte {error.start}") from None
    try:
        return _Reader(name).read(text)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f":{mark.line + 1}" if mark is not None else ""
        # Not the error's own text: that quotes the line.
        raise ConfigError(f"{name}{line}: is not YAML: {error.problem}") from None
    except yaml.YAMLError:
        raise ConfigError(f"{name}: is not YAML: it has characters that YAML forbids") from None
    except RecursionError:
        raise ConfigError(f"{name}: is nested more than {MAX_DEPTH} deep") from None


class _Reader:
    """Reads one file."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._lines: dict[Place, int] = {}
        self._known: set[int] = set()  # mappings that were looked through, by id

    def read(self, text: str) -> tuple[Mapping[str, Any], Mapping[Place, int]]:
        loader = _Loader(text)
        try:
            node = loader.get_single_node()
            if node is None or node.tag == _NULL:
                return {}, {}
            if not isinstance(node, MappingNode):
                raise self._wrong(node, "must hold a mapping: lines such as `port: 8000`")
            return self._mapping(loader, node, ()), self._lines
        finally:
            loader.dispose()

    def _value(self, loader: _Loader, node: Node, place: Place, line: int) -> Any:
        self._lines[place] = line
        if len(place) > MAX_DEPTH:
            raise self._wrong(node, f"is nested more than {MAX_DEPTH} deep")
        if len(self._lines) > MAX_VALUES:
            raise self._wrong(node, f"holds more than {MAX_VALUES} values")
        if isinstance(node, MappingNode):
            return self._mapping(loader, node, place)
        if isinstance(node, SequenceNode):
            return [
                self._value(loader, item, (*place, index), item.start_mark.line + 1)
                for index, item in enumerate(node.value)
            ]
        try:
            return loader.construct_object(node)
        except (ValueError, LookupError, AttributeError, OverflowError):
            raise self._wrong(node, "is not what its tag says") from None

    def _mapping(self, loader: _Loader, node: MappingNode, place: Place) -> dict[str, Any]:
        if id(node) not in self._known:  # an anchor's is seen again, with what was merged in
            self._known.add(id(node))
            self._check_keys(node)
            loader.flatten_mapping(node)
        # Keys are text as it is written: `7: ...` names a model "7". What was merged in comes
        # first, and so gives way.
        return {
            key.value: self._value(loader, value, (*place, key.value), key.start_mark.line + 1)
            for key, value in node.value
        }

    def _check_keys(self, node: MappingNode) -> None:
        seen = set()
        for key, _ in node.value:
            if not isinstance(key, ScalarNode):
                raise self._wrong(key, "has a key that is no text")
            if key.value in seen:
                raise self._wrong(key, f"{key.value} is given twice: keep one of them")
            seen.add(key.value)

    def _wrong(self, node: Node, what: str) -> ConfigError:
        return ConfigError(f"{self._name}:{node.start_mark.line + 1}: {what}")
