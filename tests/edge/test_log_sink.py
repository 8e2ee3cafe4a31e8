"""The queue in front of a slow place: nobody waits, nothing is lost in silence."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from http_edge.log_sink import Console, Sink


class Place:
    """Takes lines while its gate is open, and fails while it has a failure."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Event()
        self.failure: Exception | None = None
        self.is_closed = False

    def write(self, lines: Sequence[str]) -> None:
        """Take lines."""
        self.entered.set()
        self.gate.wait(10)
        if self.failure is not None:
            raise self.failure
        self.lines += lines

    def close(self) -> None:
        """Take note."""
        self.is_closed = True


@pytest.fixture
def place() -> Place:
    return Place()


@pytest.fixture
def failures() -> list[Exception]:
    return []


@pytest.fixture
def sink(place: Place, failures: list[Exception]) -> Iterator[Sink]:
    """A sink with room for ten lines of ten characters."""
    made = Sink(place, lambda n: f"lost {n}\n", failures.append, max_queued=100, pause_seconds=0)
    yield made
    place.gate.set()
    assert made.close(5)


def test_lines_come_in_order_from_all_threads(place: Place) -> None:
    """What several threads put all comes, that of each thread in its order."""
    sink = Sink(place, str)
    names = "abcd"

    def put(name: str) -> None:
        for number in range(500):
            sink.put(f"{name}{number}\n")

    threads = [threading.Thread(target=put, args=(name,)) for name in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sink.flush(5)
    for name in names:
        ours = [line for line in place.lines if line.startswith(name)]
        assert ours == [f"{name}{number}\n" for number in range(500)]
    assert sink.close(5)
    assert place.is_closed


def test_a_place_that_hangs_holds_up_nobody(place: Place, sink: Sink) -> None:
    """While a write hangs, lines are queued up to the bound, the rest is counted and told."""
    place.gate.clear()
    sink.put("first 890\n")
    assert place.entered.wait(5)
    began = time.perf_counter()
    for number in range(1000):
        sink.put(f"line {number % 10}789\n")
    assert time.perf_counter() - began < 1
    assert not sink.flush(0.05)
    assert sink.num_lost == 990
    place.gate.set()
    assert sink.flush(5)
    assert len(place.lines) == 1 + 10 + 1
    assert place.lines[-1] == "lost 990\n"


def test_a_failure_is_told_once_and_lines_are_counted(
    place: Place, sink: Sink, failures: list[Exception]
) -> None:
    """Of failures in a row the first is told, and afterwards how many lines they cost."""
    for _ in range(2):
        place.failure = OSError("full")
        for _ in range(3):
            sink.put("gone\n")
            assert sink.flush(5)
        place.failure = None
        sink.put("here\n")
        assert sink.flush(5)
    assert place.lines == ["here\n", "lost 3\n"] * 2
    assert len(failures) == 2
    assert sink.num_lost == 6


def test_closing_writes_what_is_there(place: Place) -> None:
    """What was put before the end is written, and the end does not wait for the pause."""
    sink = Sink(place, str, pause_seconds=60)
    for number in range(100):
        sink.put(f"{number}\n")
    began = time.perf_counter()
    assert sink.close(5)
    assert len(place.lines) == 100
    assert time.perf_counter() - began < 5


def test_closing_a_place_that_hangs_is_given_up(place: Place) -> None:
    """The end waits for a hanging write only as long as it is told."""
    sink = Sink(place, str)
    place.gate.clear()
    sink.put("never\n")
    assert place.entered.wait(5)
    assert not sink.close(0.05)
    place.gate.set()


def test_a_pipe_that_is_full_is_waited_for(tmp_path: Path) -> None:
    """A descriptor that others made non-blocking still gets every line."""
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    text = "x" * 99 + "\n"
    got = bytearray()

    def read() -> None:
        while chunk := os.read(reading, 65536):
            got.extend(chunk)

    with os.fdopen(writing, "w") as stream:
        sink = Sink(Console(stream), str)
        for _ in range(5000):
            sink.put(text)
        reader = threading.Thread(target=read)
        reader.start()
        assert sink.close(5)
    reader.join()
    os.close(reading)
    assert got == text.encode() * 5000
