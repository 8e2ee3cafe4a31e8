"""The compiled client and upstream: what one sends and the other counts, oddities included."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from bench.proxy.children import Processors
from bench.proxy.compiled import Wire, compile_wire
from bench.proxy.load import Client, Closed, Paced, upstream
from bench.servers import ServerFailed

ANYWHERE = Processors("-", "-", "-")
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
DONE = b"data: [DONE]\n\n"
ONE_STREAM = Paced(1, 0.0, 0.01, 0.0, 0.05, 0.5)


@pytest.fixture(scope="module")
def wire(tmp_path_factory: pytest.TempPathFactory) -> Wire:
    return compile_wire(tmp_path_factory.mktemp("wire"), os.environ)


@pytest.fixture(scope="module")
def client(wire: Wire) -> Client:
    return Client(wire, ANYWHERE)


@pytest.fixture
def port(wire: Wire) -> Iterator[int]:
    with upstream(wire, ANYWHERE) as (port, _):
        yield port


def test_plain_answers(client: Client, port: int) -> None:
    """Connections ask again and again over the whole time, each on one connection."""
    measured = client.ask(port, Closed(3, 0, 0.05, 0.2))
    assert measured.errors == {}
    assert measured.complete > 10
    assert measured.connects == 3
    assert 0 < measured.p50_ms <= measured.p99_ms <= measured.max_ms < 200


def test_streams_at_once(client: Client, port: int) -> None:
    """Every stream brings all its events."""
    measured = client.ask(port, Closed(3, 32, 0.0, 0.2))
    assert measured.errors == {}
    assert measured.complete > 10
    assert measured.events == 32 * measured.requests


def test_streams_by_a_schedule(client: Client, port: int) -> None:
    """All are open at once, all end, and what is measured are the events due in its time."""
    load = Paced(20, 0.1, 0.02, 0.1, 0.4, 5.0)
    measured = client.ask(port, load)
    assert measured.errors == {}
    assert measured.complete == measured.most_open == 20
    assert measured.events == 20 * load.chunks
    assert measured.samples == pytest.approx(20 * 0.4 / 0.02, abs=20)
    assert measured.p50_ms < 20


def test_the_schedule_does_not_slip(wire: Wire, client: Client) -> None:
    """Events that were held up come late, and those behind them are due when they were before."""
    load = Paced(1, 0.0, 0.01, 0.0, 0.9, 5.0)
    stops = iter([0.2])

    with upstream(wire, ANYWHERE) as (port, family):

        def stop_once() -> None:
            for seconds in stops:
                os.kill(family.pid, signal.SIGSTOP)
                time.sleep(seconds)
                os.kill(family.pid, signal.SIGCONT)

        measured = client.ask(port, load, stop_once)
    expected = (load.chunks - 1) * 0.01
    assert expected <= measured.elapsed_seconds < expected + 0.15
    assert 150 < measured.max_ms < 400
    assert measured.p50_ms < 20


def test_lateness_is_what_was_added_on_the_way(client: Client, port: int) -> None:
    """A relay that holds everything back for 50 ms makes every event 50 ms late."""
    with relay(port, 0.05) as late_port:
        measured = client.ask(late_port, Paced(2, 0.0, 0.02, 0.1, 0.2, 5.0))
    assert measured.errors == {}
    assert 50 <= measured.p50_ms < 90


def test_any_pieces_are_read(client: Client) -> None:
    """An answer may come byte by byte: nothing is lost at the borders."""
    answer = stream(ONE_STREAM.chunks)
    with scripted([answer[at : at + 1] for at in range(len(answer))]) as port:
        measured = client.ask(port, ONE_STREAM)
    assert (measured.errors, measured.events) == ({}, ONE_STREAM.chunks)


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (b"", "closed"),
        (b"HTTP/1.1 503 No\r\ncontent-length: 2\r\n\r\nno", "HTTP 503"),
        (b"HTTP/1.1 200 OK\r\n\r\nno length", "malformed"),
        (HEAD + b"zz\r\n", "malformed"),
        (HEAD + b"0\r\n\r\nmore", "malformed"),
        (HEAD + b"4\r\ndata", "closed"),
        (HEAD + b"0\r\n\r\n", "incomplete"),
    ],
)
def test_what_is_no_whole_answer_is_an_error(client: Client, answer: bytes, error: str) -> None:
    """Each has a name, and the stream counts as lost."""
    with scripted([answer]) as port:
        measured = client.ask(port, ONE_STREAM)
    assert (measured.errors, measured.complete) == ({error: 1}, 0)


@pytest.mark.parametrize("missing", ["an event", "the end"])
def test_a_stream_that_lacks_something_is_lost(client: Client, missing: str) -> None:
    """One event too few, or no [DONE], is no complete stream, though HTTP is content."""
    count = ONE_STREAM.chunks - (missing == "an event")
    with scripted([stream(count, b"" if missing == "the end" else DONE)]) as port:
        measured = client.ask(port, ONE_STREAM)
    assert (measured.errors, measured.complete) == ({"incomplete": 1}, 0)


def test_silence_is_an_error(client: Client) -> None:
    """A stream that never ends is lost when the time is over."""
    began = time.monotonic()
    with scripted([HEAD], is_open=True) as port:
        measured = client.ask(port, ONE_STREAM)
    assert measured.errors == {"timeout": 1}
    assert time.monotonic() - began < 5


def test_nobody_listens(client: Client) -> None:
    """A closed load tries again, but not without a pause, and ends in time."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        measured = client.ask(unused.getsockname()[1], Closed(2, 0, 0.0, 0.3))
    assert 2 < measured.errors["connect"] <= 40
    assert measured.complete == 0


def test_a_connection_that_is_closed_behind_an_answer_is_opened_anew(client: Client) -> None:
    """`Connection: close` is no error."""
    answer = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}"
    with scripted([answer]) as port:
        measured = client.ask(port, Closed(1, 0, 0.0, 0.2))
    assert measured.errors == {}
    assert measured.connects == measured.requests > 2


def test_the_upstream_ends_with_its_parent(wire: Wire) -> None:
    """It leaves when its standard input is closed."""
    with subprocess.Popen(
        [wire.upstream], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert json.loads(process.stdout.readline())["port"] > 0
        assert process.stdin is not None
        process.stdin.close()
        assert process.wait(5) == 0


def test_a_child_ends_with_its_parent(wire: Wire) -> None:
    """Also when the parent is killed, and cannot end it itself."""
    script = (
        "import subprocess, sys, time; "
        f"child = subprocess.Popen([{str(wire.child)!r}, '-', 'sleep', '60']); "
        "print(child.pid, flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        until(lambda: Path(f"/proc/{pid}/comm").read_text() == "sleep\n")
        parent.send_signal(signal.SIGKILL)
        parent.wait(5)
    until(lambda: not is_running(pid))


def test_a_child_has_its_processor(wire: Wire) -> None:
    """And as many open files as the hard limit allows."""
    cpu = max(os.sched_getaffinity(0))
    script = (
        "import os, resource; "
        "print(os.sched_getaffinity(0), len(set(resource.getrlimit(resource.RLIMIT_NOFILE))))"
    )
    command = [wire.child, str(cpu), sys.executable, "-c", script]
    assert subprocess.check_output(command, text=True).split() == [f"{{{cpu}}}", "1"]


def test_without_a_compiler(tmp_path: Path) -> None:
    """It is a sentence that says what to install."""
    with pytest.raises(ServerFailed, match=r"no-such-cc cannot be run .* install one, or name it"):
        compile_wire(tmp_path, {"CC": "no-such-cc"})


def test_programs_are_compiled_once(tmp_path: Path) -> None:
    """The cache has them from then on, whatever the compiler is."""
    first = compile_wire(tmp_path, {"CC": "cc"})
    written = first.client.stat().st_mtime_ns
    assert compile_wire(tmp_path, {"CC": "cc"}).client.stat().st_mtime_ns == written
    assert [path.name for path in tmp_path.iterdir()] == [first.client.parent.name]


def chunked(data: bytes) -> bytes:
    return f"{len(data):x}\r\n".encode() + data + b"\r\n"


def stream(count: int, end: bytes = DONE) -> bytes:
    """A stream of so many events, each with a moment, in chunks."""
    events = [f'data: {{"content":"@{at:020d}"}}\n\n'.encode() for at in range(count)]
    return HEAD + b"".join(map(chunked, [*events, end] if end else events)) + b"0\r\n\r\n"


@contextlib.contextmanager
def scripted(pieces: list[bytes], is_open: bool = False) -> Iterator[int]:
    """Answer each connection's request with these pieces, a send for each, and close it."""

    def serve(connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            connection.recv(65536)
            for piece in pieces:
                connection.sendall(piece)
            while is_open and connection.recv(65536):
                pass

    with listening(serve) as port:
        yield port


@contextlib.contextmanager
def relay(port: int, delay_seconds: float) -> Iterator[int]:
    """Pass everything on to a port, what comes back only after a while."""

    def back(source: socket.socket, sink: socket.socket) -> None:
        timers = []
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                timers.append(threading.Timer(delay_seconds, send, (sink, data)))
                timers[-1].start()
        for timer in timers:
            timer.join()

    def serve(connection: socket.socket) -> None:
        with connection, socket.create_connection(("127.0.0.1", port)) as server:
            thread = threading.Thread(target=back, args=(server, connection))
            thread.start()
            with contextlib.suppress(OSError):
                while data := connection.recv(65536):
                    server.sendall(data)
                server.shutdown(socket.SHUT_WR)
            thread.join()

    with listening(serve) as own:
        yield own


def send(sink: socket.socket, data: bytes) -> None:
    with contextlib.suppress(OSError):
        sink.sendall(data)


@contextlib.contextmanager
def listening(serve: Callable[[socket.socket], None]) -> Iterator[int]:
    """Serve each connection in a thread."""
    threads: list[threading.Thread] = []

    def accept() -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = listener.accept()
                threads.append(threading.Thread(target=serve, args=(connection,)))
                threads[-1].start()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        acceptor = threading.Thread(target=accept)
        acceptor.start()
        try:
            yield listener.getsockname()[1]
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            acceptor.join()
            for thread in threads:
                thread.join()


def is_running(pid: int) -> bool:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 5
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)
