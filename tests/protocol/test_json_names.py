"""Fields of one name are found in any JSON text, and cost little in a large one."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from openai_protocol.json_names import repeated_name

NAMES = st.sampled_from(["a", "b", 'q"', "back\\", "\\u0061", "ü", "", "[{", "},:"])


class Pairs(list[Any]):
    """An object as its pairs, in which a name may stand twice."""


def text(value: Any, ascii_only: bool) -> str:
    if isinstance(value, Pairs):
        pairs = (
            json.dumps(k, ensure_ascii=ascii_only) + " :" + text(v, ascii_only) for k, v in value
        )
        return "{" + ", ".join(pairs) + "}"
    if isinstance(value, list):
        return "[" + ",".join(text(item, ascii_only) for item in value) + "]"
    return json.dumps(value, ensure_ascii=ascii_only)


def has_twins(value: Any, depth: int) -> bool:
    if depth == 0 or not isinstance(value, list):
        return False
    if isinstance(value, Pairs):
        names = [name for name, _ in value]
        inner = [item for _, item in value]
        return len(set(names)) < len(names) or any(has_twins(item, depth - 1) for item in inner)
    return any(has_twins(item, depth - 1) for item in value)


VALUES = st.recursive(
    st.one_of(st.integers(), st.none(), NAMES),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.lists(st.tuples(NAMES, inner), max_size=3).map(Pairs),
    ),
    max_leaves=12,
)


@given(value=VALUES, depth=st.integers(1, 4), ascii_only=st.booleans())
def test_twins_are_found_to_a_depth(value: Any, depth: int, ascii_only: bool) -> None:
    """A name given twice is found exactly where one is, whatever the texts hold."""
    body = text(value, ascii_only).encode()

    assert (repeated_name(body, depth) is not None) == has_twins(value, depth)


def test_names_are_read_as_a_parser_reads_them() -> None:
    r"""An escaped letter is the letter: `\u0061` is `a`."""
    assert repeated_name(rb'{"\u0061":1,"a":2}') == "a"
    assert repeated_name(rb'{"a\\":1,"a":2,"a\"":3}') is None


@pytest.mark.parametrize("unit", [b"1,", b"12345, "])
def test_a_list_of_tokens_costs_little(unit: bytes) -> None:
    """Eight megabytes of numbers beside two fields of one name take a fraction of a second."""
    tokens = unit * ((8 << 20) // len(unit))
    body = b'{"prompt":[1],"prompt":[%s1]}' % tokens
    started = time.process_time()

    assert repeated_name(body) == "prompt"
    assert time.process_time() - started < 0.2  # it was a second with a call for each number
