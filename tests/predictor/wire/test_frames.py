"""Frames: what is written can be read, however the bytes arrive, within a limit."""

from __future__ import annotations

import itertools
import struct

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kserve_llamacpp.wire import frames
from kserve_llamacpp.wire.frames import (
    Cancel,
    Command,
    Fatal,
    FrameReader,
    Hello,
    Loading,
    Logprobs,
    Output,
    Rejected,
    Report,
    SamplingParams,
    Started,
    Stats,
    Step,
    Submit,
    TokenLogprob,
    decode_command,
    decode_report,
    encode,
)
from tests.predictor.fake_process import FACTS

_COMMANDS: list[Command] = [
    Submit(1, "r", "grüße", None, SamplingParams()),
    Submit(
        id=2**40,
        request_id="req-2",
        prompt=[1, 2, 3],
        max_tokens=9,
        sampling=SamplingParams(
            temperature=0.0,
            top_k=5,
            top_p=0.5,
            min_p=0.1,
            repetition_penalty=1.1,
            presence_penalty=-1.0,
            frequency_penalty=2.0,
            logit_bias={7: -100.0},
            seed=-(2**63),
            choice=3,
            typical_p=0.5,
            dry_multiplier=0.5,
            dry_sequence_breakers=("€", "b"),
            xtc_probability=0.5,
            min_tokens=2,
            stop_token_ids=[7],
            include_stop_str_in_output=True,
            skip_special_tokens=False,
            logprobs=0,
        ),
        stops=["a", "€"],
        resume=[4, 5],
        add_special=False,
    ),
    Cancel(7),
]
_REPORTS: list[Report] = [
    Loading(0.25),
    Hello(FACTS),
    Fatal("model_file", "mend this"),
    Step(
        [
            Started(1, 5),
            Output(1, [3, 4], "text", None),
            Output(2, [], "", "length"),
            Output(
                id=4,
                tokens=[5],
                logprobs=[Logprobs(TokenLogprob(5, -0.5, b"\xff"), [TokenLogprob(6, -0.25, b"")])],
                num_shown=9,
            ),
            Rejected(3, "context_length", "too long"),
        ],
        Stats(running=1, waiting=2, cells_used=3, cells_total=4, steps=5, preemptions=6),
    ),
]


@pytest.mark.parametrize("command", _COMMANDS)
def test_commands_arrive_as_they_were(command: Command) -> None:
    """What the server sends is what the engine reads, field by field."""
    (payload,) = FrameReader().feed(encode(command))

    assert decode_command(payload) == command


@pytest.mark.parametrize("report", _REPORTS)
def test_reports_arrive_as_they_were(report: Report) -> None:
    """What the engine sends is what the server reads, field by field."""
    (payload,) = FrameReader().feed(encode(report))

    assert decode_report(payload) == report


@given(places=st.lists(st.integers(min_value=0, max_value=10_000), max_size=40))
def test_frames_come_out_whole_however_they_are_cut(places: list[int]) -> None:
    """A stream of frames gives the same frames for any cut into pieces."""
    stream = b"".join(encode(report) for report in _REPORTS)
    edges = sorted({0, len(stream), *(place % len(stream) for place in places)})
    reader = FrameReader()

    payloads = []
    for start, end in itertools.pairwise(edges):
        payloads += reader.feed(stream[start:end])

    assert [decode_report(payload) for payload in payloads] == _REPORTS


def test_a_length_over_the_limit_is_refused_before_its_bytes_come() -> None:
    """Four bytes that claim a huge frame are an error at once: nothing is collected for it."""
    with pytest.raises(ValueError, match="over the limit"):
        FrameReader().feed(struct.pack(">I", frames.MAX_FRAME_BYTES + 1))


def test_a_frame_over_the_limit_is_not_written(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who would write a frame that nobody may read is told so."""
    monkeypatch.setattr(frames, "MAX_FRAME_BYTES", 100)

    with pytest.raises(ValueError, match="over the limit"):
        encode(Submit(1, "r", "x" * 200, None, SamplingParams()))


@pytest.mark.parametrize("payload", [b"", b"\xc1", b"\x80", encode(Cancel(1))[4:]])
def test_what_is_no_report_is_an_error(payload: bytes) -> None:
    """Bytes that are no report raise msgspec's error; a command is no report."""
    with pytest.raises(msgspec.DecodeError):
        decode_report(payload)
