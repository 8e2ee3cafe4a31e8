"""Saved sequences that are read by a context with another number of streams."""

from __future__ import annotations

import struct

import pytest

from kserve_llamacpp.engine.llama.streams import put_first, read_as

_CELLS = b"ten cells."


def _state(stream: int | None, num_streams: int) -> bytearray:
    data = struct.pack("=III", 0x5EED, 3, num_streams)
    for at in range(num_streams):
        data += struct.pack("=I", 10) + _CELLS if at == stream else struct.pack("=I", 0)
    return bytearray(data)


@pytest.mark.parametrize(("stream", "num_streams"), [(0, 1), (0, 4), (2, 4), (3, 4)])
def test_a_state_can_be_read_with_any_number_of_streams(stream: int, num_streams: int) -> None:
    """Wherever a sequence stood, its cells come first, and empty streams enough follow."""
    state = _state(stream, num_streams)

    assert put_first(state, num_streams, room_for=4)
    for number in (4, 1):
        read_as(state, number)
        expected = _state(0, number)
        assert state[: len(expected)] == expected


@pytest.mark.parametrize("state", [_state(None, 4), _state(1, 2), bytearray(7)])
def test_what_is_no_sequence_is_not_taken(state: bytearray) -> None:
    """An empty state, one of another number of streams and a cut one are refused."""
    assert not put_first(state, 4, room_for=4)
