"""The decode rate of our engine without HTTP, and that of llama-batched-bench."""

from __future__ import annotations

import json
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

from bench.bare_engine import EngineFailed, bare_engine, engine_options
from bench.decoding import Decoding
from bench.servers import Setup, with_flags

ENGINE = "ours, without HTTP"
BATCHED_BENCH = "llama-batched-bench"
_PROMPT_TOKENS = 128
_SECONDS = 300.0


@dataclass(frozen=True)
class BatchedBench:
    """llama.cpp's own measure of its decode rate: no sampling, no text, one batch a step."""

    binary: Path
    setup: Setup
    flags: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """How it is called in tables."""
        return with_flags(BATCHED_BENCH, self.flags)

    def rate(self, num_sequences: int, num_steps: int, seed: int) -> float:
        """Return tokens a second over all sequences; raises EngineFailed. No seed changes it."""
        setup = self.setup
        threads = str(setup.num_threads)
        command = [
            *(str(self.binary), "-m", str(setup.model_path), "-c", str(setup.n_ctx), "-kvu"),
            *("-t", threads, "-tb", threads, "-npp", str(_PROMPT_TOKENS), "-ntg", str(num_steps)),
            *("-npl", str(num_sequences), "--output-format", "jsonl", *self.flags),
        ]
        result = subprocess.run(
            command, capture_output=True, text=True, timeout=_SECONDS, check=False
        )
        for line in result.stdout.splitlines():
            if line.startswith("{"):
                return float(json.loads(line)["speed_tg"])
        raise EngineFailed(f"{self.name} gave no figures:\n{result.stderr[-1000:]}")


@dataclass(frozen=True)
class OurEngine:
    """A fresh process of our engine: greedy, text and frames included."""

    setup: Setup
    name: str = ENGINE

    def rate(self, num_sequences: int, num_steps: int, seed: int) -> float:
        """Return the tokens a second of steps in which all decode; raises EngineFailed."""
        setup = self.setup
        flags = (f"--n_ctx={setup.n_ctx}", f"--max_sequences={num_sequences}", *setup.engine_flags)
        with bare_engine(engine_options(setup.model_path, *flags)) as engine:
            decoding = Decoding(engine, seed)
            # those that start first go on until the last one has had its steps
            decoding.add(num_sequences, _PROMPT_TOKENS, num_steps + 2 + 16 * num_sequences)
            began = time.perf_counter()
            for _ in range(num_steps):
                decoding.step()
            return num_steps * num_sequences / (time.perf_counter() - began)
