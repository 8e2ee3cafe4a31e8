"""The worker's loop tells that it lives, also while it only waits for its tokenizer."""

from __future__ import annotations

import itertools
import socket
import subprocess
import sys
import time
from pathlib import Path

from bench.bare_engine import Reports
from kserve_llamacpp.wire.frames import SamplingParams, Started, Step, Submit, encode

_TOKENIZER = """
import socket, sys, time
from kserve_llamacpp.engine.text.special_tokens import SpecialTokens
from kserve_llamacpp.engine.text.tokenizer_process import serve

class Slow:
    specials = SpecialTokens({})
    is_plain = False
    def longest_tokens(self):
        return [0] * 256
    def tokenize(self, text, add_special, longest):
        time.sleep(2.5)
        return [65]

serve(socket.socket(fileno=int(sys.argv[1])), Slow())
"""
_WORKER = """
import socket, sys, time
from kserve_llamacpp.engine.text.tokenizer import Tokenizer
from kserve_llamacpp.engine.text.tokenizer_client import TokenizerProcess
from kserve_llamacpp.engine.worker import Channel, Worker
from tests.predictor.engine_run import EngineRun
from tests.predictor.fake_backend import FakeBackend

engine = EngineRun(FakeBackend(max_length=30_000)).engine
command = [sys.executable, "-c", sys.argv[2], "{fd}"]
tokenizer = Tokenizer(engine.prompts, lambda: TokenizerProcess(command), time.monotonic)
Worker(Channel(socket.socket(fileno=int(sys.argv[1]))), engine, tokenizer).run()
"""


def test_a_long_text_is_no_silence() -> None:
    """While a long text is tokenized beside the idle loop, a report comes every second."""
    ours, theirs = socket.socketpair()
    root = Path(__file__).parents[3]
    command = [sys.executable, "-c", _WORKER, str(theirs.fileno()), _TOKENIZER]
    with theirs:
        worker = subprocess.Popen(command, pass_fds=[theirs.fileno()], cwd=root)
    with ours:
        ours.settimeout(20)
        ours.sendall(encode(Submit(1, "r", "x" * 20_000, 1, SamplingParams())))
        times = []
        for report in Reports(ours):
            times.append(time.monotonic())
            assert isinstance(report, Step)
            if any(isinstance(event, Started) for event in report.events):
                break
    assert worker.wait(10) == 0
    assert len(times) >= 4
    assert max(later - earlier for earlier, later in itertools.pairwise(times)) < 2
