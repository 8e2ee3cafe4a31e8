"""The two ends of the load, both compiled: the upstream and the client."""

from __future__ import annotations

import contextlib
import math
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec

from bench.proxy.children import Family, Processors, running
from bench.proxy.compiled import Wire
from bench.servers import ServerFailed

_SPARE_SECONDS = 60.0
_WATCH_SECONDS = 0.25


class Measured(msgspec.Struct, frozen=True):
    """What the client wrote: durations of answers, or how late events came, in milliseconds.

    `requests` were sent in all; `complete` ended well and within the time that was measured.
    """

    requests: int
    complete: int
    seconds: float
    elapsed_seconds: float
    samples: int
    p50_ms: float
    p90_ms: float
    p99_ms: float
    max_ms: float
    events: int
    connects: int
    most_open: int
    cpu_seconds: float
    errors: dict[str, int]


@dataclass(frozen=True)
class Closed:
    """Connections that ask again when their answer is complete; `chunks` 0 asks for plain ones."""

    connections: int
    chunks: int
    warm_up_seconds: float
    measure_seconds: float

    @property
    def seconds(self) -> float:
        """How long the load takes at most, without what is still open at its end."""
        return self.warm_up_seconds + self.measure_seconds

    def arguments(self, port: int) -> list[str]:
        """Return the client's arguments."""
        times = [_ms(self.warm_up_seconds), _ms(self.measure_seconds)]
        return ["closed", str(port), str(self.connections), str(self.chunks), *times]


@dataclass(frozen=True)
class Paced:
    """Streams that are all open for `measure_seconds`, in which the lateness of events counts."""

    streams: int
    ramp_seconds: float
    every_seconds: float
    settle_seconds: float
    measure_seconds: float
    patience_seconds: float

    @property
    def chunks(self) -> int:
        """Events of a stream: the first stream goes on until all has been measured."""
        seconds = self.ramp_seconds + self.settle_seconds + self.measure_seconds
        return math.ceil(seconds / self.every_seconds) + 2

    @property
    def seconds(self) -> float:
        """How long the load takes at most."""
        return self.ramp_seconds + self.chunks * self.every_seconds + self.patience_seconds

    def arguments(self, port: int) -> list[str]:
        """Return the client's arguments."""
        return [
            *("paced", str(port), str(self.streams), _ms(self.ramp_seconds)),
            *(_ms(self.every_seconds), str(self.chunks), _ms(self.settle_seconds)),
            *(_ms(self.measure_seconds), _ms(self.seconds)),
        ]


@dataclass(frozen=True)
class Client:
    """Runs one load after another; raises ServerFailed where the client itself fails."""

    wire: Wire
    processors: Processors

    def ask(
        self, port: int, load: Closed | Paced, watch: Callable[[], None] = lambda: None
    ) -> Measured:
        """Put a load on a server; `watch` is called several times a second meanwhile."""
        wire = self.wire
        command: list[str | Path] = [wire.child, self.processors.client, wire.client]
        command += load.arguments(port)
        with running("the client", command, stdout=subprocess.PIPE) as (process, log):
            assert process.stdout is not None
            remaining = load.seconds + _SPARE_SECONDS
            while remaining > 0:
                try:
                    process.wait(_WATCH_SECONDS)
                    break
                except subprocess.TimeoutExpired:
                    remaining -= _WATCH_SECONDS
                    watch()
            if process.poll() != 0:
                raise ServerFailed(f"the client failed ({process.poll()}): {log()}")
            return msgspec.json.decode(process.stdout.read(), type=Measured)


class _Port(msgspec.Struct):
    port: int


@contextlib.contextmanager
def upstream(wire: Wire, processors: Processors) -> Iterator[tuple[int, Family]]:
    """Run the upstream in the block, which gets its port."""
    command: list[str | Path] = [wire.child, processors.upstream, wire.upstream]
    with running("the upstream", command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as (
        process,
        log,
    ):
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line:
            raise ServerFailed(f"the upstream did not start:\n{log()}")
        yield msgspec.json.decode(line, type=_Port).port, Family(process.pid)


def _ms(seconds: float) -> str:
    return str(round(seconds * 1000))
