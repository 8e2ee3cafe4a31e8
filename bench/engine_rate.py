"""The decode rate of our engine without HTTP, and that of llama-batched-bench."""

from __future__ import annotations

import argparse
import json
import os
import random
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from bench.servers import Setup
from kserve_llamacpp.config import add_flags, read_config
from kserve_llamacpp.engine.frames import (
    Fatal,
    FrameReader,
    Hello,
    Output,
    Rejected,
    Report,
    SamplingParams,
    Step,
    Submit,
    decode_report,
    encode,
)
from kserve_llamacpp.engine.process import worker_environment
from kserve_llamacpp.served_model import worker_options

ENGINE = "ours, without HTTP"
BATCHED_BENCH = "llama-batched-bench"
_PROMPT_TOKENS = 128
_ORDINARY_TOKENS = (1000, 30000)  # neither special nor a byte, in any vocabulary of some size
_SECONDS = 300.0


class RateFailed(Exception):
    """A decode rate could not be measured; the text says why."""


@dataclass(frozen=True)
class BatchedBench:
    """llama.cpp's own measure of its decode rate: no sampling, no text, one batch a step."""

    binary: Path
    setup: Setup

    def rate(self, num_sequences: int, num_steps: int) -> float:
        """Return tokens a second over all sequences; raises RateFailed."""
        setup = self.setup
        threads = str(setup.num_threads)
        command = [
            *(str(self.binary), "-m", str(setup.model_path), "-c", str(setup.n_ctx), "-kvu"),
            *("-t", threads, "-tb", threads, "-npp", str(_PROMPT_TOKENS), "-ntg", str(num_steps)),
            *("-npl", str(num_sequences), "--output-format", "jsonl"),
        ]
        result = subprocess.run(
            command, capture_output=True, text=True, timeout=_SECONDS, check=False
        )
        for line in result.stdout.splitlines():
            if line.startswith("{"):
                return float(json.loads(line)["speed_tg"])
        raise RateFailed(f"{self.binary.name} gave no figures:\n{result.stderr[-1000:]}")


def engine_rate(setup: Setup, num_sequences: int, num_steps: int, seed: int) -> float:
    """Return the tokens a second of a fresh engine process, greedy, text and frames included.

    Counted are the steps in which all sequences decode, prefill is over and none has ended.
    Raises RateFailed.
    """
    ours, theirs = socket.socketpair()
    with ours, theirs, tempfile.TemporaryFile() as log:
        command = [sys.executable, "-m", "kserve_llamacpp.engine.worker", str(theirs.fileno())]
        process = subprocess.Popen(
            [*command, _options(setup, num_sequences)],
            pass_fds=[theirs.fileno()],
            stderr=log,
            env=worker_environment(os.environ),
        )
        theirs.close()
        ours.settimeout(_SECONDS)
        try:
            return _measure(ours, num_sequences, num_steps, seed)
        finally:
            ours.close()
            process.wait(20)


def _measure(ours: socket.socket, num_sequences: int, num_steps: int, seed: int) -> float:
    draw = random.Random(seed)  # noqa: S311 - no secret
    reports = _reports(ours)
    for report in reports:
        if isinstance(report, Fatal):
            raise RateFailed(report.message)
        if isinstance(report, Hello):
            break
    for number in range(num_sequences):
        prompt = [draw.randint(*_ORDINARY_TOKENS) for _ in range(_PROMPT_TOKENS)]
        sampling = SamplingParams(temperature=0, ignore_eos=True)
        # those that start first go on until the last one has had its steps
        max_tokens = num_steps + 2 + 16 * num_sequences
        ours.sendall(encode(Submit(number + 1, f"rate-{number}", prompt, max_tokens, sampling)))
    return _rate(reports, num_sequences, num_steps)


def _rate(reports: Iterator[Report], num_sequences: int, num_steps: int) -> float:
    decoding: set[int] = set()
    began = last = 0.0
    num_tokens = steps = 0
    for report in reports:
        events = report.events if isinstance(report, Step) else []
        last = time.perf_counter()
        if rejected := [event for event in events if isinstance(event, Rejected)]:
            raise RateFailed(rejected[0].message)
        outputs = [event for event in events if isinstance(event, Output)]
        if not outputs:
            continue
        if len(decoding) == num_sequences:
            num_tokens += sum(len(output.tokens) for output in outputs)
            steps += 1
            if steps == num_steps or any(output.finish_reason for output in outputs):
                return num_tokens / (last - began)
        else:
            decoding |= {output.id for output in outputs if output.tokens}
            began = last
    raise RateFailed("the engine ended while its decode rate was measured")


def _reports(ours: socket.socket) -> Iterator[Report]:
    reader = FrameReader()
    while data := ours.recv(1 << 16):
        for payload in reader.feed(data):
            yield decode_report(payload)


def _options(setup: Setup, num_sequences: int) -> str:
    """Return the engine's options with the server's own defaults."""
    parser = argparse.ArgumentParser()
    add_flags(parser)
    parser.set_defaults(model_name="bench", http_port=0, workers=1)  # KServe's flags
    flags = [
        *(f"--model_dir={setup.model_path}", f"--n_ctx={setup.n_ctx}"),
        *(f"--n_threads={setup.num_threads}", f"--max_sequences={num_sequences}"),
        *("--log_level=error", *setup.our_args),
    ]
    return worker_options(read_config(parser.parse_args(flags)))
