"""Saved sequences, moved between contexts that divide their cells in different ways.

llama.cpp writes a sequence as a header (magic, id, number of streams: 4 bytes each) and then, for
each stream, a count of cells and the cells. All but the sequence's own stream are empty, and it is
read into the sequence's own stream, wherever it stands; only their number must be the reader's.
"""

from __future__ import annotations

import struct

_WORD = struct.Struct("=I")
_NUM_STREAMS_AT = 8
_COUNTS_AT = 12


def put_first(state: bytearray, num_streams: int, room_for: int) -> bool:
    """Put the only stream that is not empty first; False: the state is not one of a sequence.

    There are empty streams behind it then, so that it can be read as one of up to `room_for`.
    """
    if len(state) < _COUNTS_AT + _WORD.size or _WORD.unpack_from(state, _NUM_STREAMS_AT) != (
        num_streams,
    ):
        return False
    at = _COUNTS_AT
    for _ in range(num_streams - 1):
        if _WORD.unpack_from(state, at) != (0,):
            break
        at += _WORD.size
    if _WORD.unpack_from(state, at) == (0,):
        return False
    del state[_COUNTS_AT:at]
    num_behind = num_streams - 1 - (at - _COUNTS_AT) // _WORD.size
    state.extend(bytes(_WORD.size * (room_for - 1 - num_behind)))
    return True


def most_added(room_for: int) -> int:
    """Return by how many bytes `put_first` may lengthen a state."""
    return _WORD.size * (room_for - 1)


def read_as(state: bytearray, num_streams: int) -> None:
    """Let a state that begins with its only stream be one of so many."""
    _WORD.pack_into(state, _NUM_STREAMS_AT, num_streams)
