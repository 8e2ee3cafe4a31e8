"""One client fills up nothing: neither memory, nor connections, nor the loop that serves all."""

from __future__ import annotations

import contextlib
import json
import signal
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.attack import servers, texts
from tests.attack.canary import MOST_SECONDS, Canary, normal
from tests.attack.memory import MIB, Peak
from tests.attack.servers import Target, wait_until
from tests.attack.standin import StandIn, standin
from tests.attack.wire import Connection, request
from tests.predictor import tiny_models

pytestmark = pytest.mark.model
LONG = pytest.mark.attack

MIB_FOR_ONE = 64  # what one request, or a few, may take at a time beside its body
CLOSED_SECONDS = 100.0  # by then what is silent or slow has been closed
COME_BACK_SECONDS = 15.0


# -- heads ---------------------------------------------------------------------------------------


def test_head_of_any_length_is_refused(target: Target) -> None:
    """100 MB of header lines end at the bound with 431, and take no memory."""
    lines = b"a:b\r\n" * 20_000  # 100 kB
    with (
        Canary(target.url),
        Peak(target.server.pid) as peak,
        Connection(target.url, 10) as connection,
    ):
        connection.send(b"GET /v1/models HTTP/1.1\r\nHost: " + connection.host.encode())
        sent = 0
        while sent < 100 * MIB and connection.send(lines):
            sent += len(lines)
        status = connection.read().status
    assert sent < 16 * MIB, f"{sent / MIB:.0f} MiB were taken"
    assert status in {431, 0}  # 0: it has closed while we were sending, and we lost its answer
    assert peak.risen_mib < 16


@pytest.mark.parametrize("num_bytes", [65 << 10, 128 << 10])
def test_long_head_gets_431(target: Target, num_bytes: int) -> None:
    """A head beyond 64 KiB is answered with 431, whether it is one header or many."""
    one = [("x-long", "a" * num_bytes)]
    many = [(f"x-{at}", "a" * 100) for at in range(num_bytes // 100)]
    for headers in (one, many):
        assert target.ask("GET", "/v1/models", headers=headers).status == 431


# -- slow and silent clients ----------------------------------------------------------------------


@contextlib.contextmanager
def _connections(url: str, count: int) -> Iterator[list[Connection]]:
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(Connection(url, CLOSED_SECONDS + 30)) for _ in range(count)]


def _half(host: str, length: int = 1000) -> bytes:
    """Return a request whose body has begun."""
    head = f"POST /v1/completions HTTP/1.1\r\nHost: {host}\r\nContent-Length: {length}\r\n"
    return f"{head}Content-Type: application/json\r\n\r\n{{".encode()


def test_half_bodies_take_no_place(shared_predictor: Target) -> None:
    """20 clients that sent `{` and no more are in nobody's way, where 20 requests may run."""
    flags = (f"--upstream-url={shared_predictor.url}", "--max-concurrent-requests=20")
    with servers.proxy(*flags) as target, _connections(target.url, 20) as halves:
        for connection in halves:
            connection.send(_half(connection.host))
        time.sleep(0.5)
        with Canary(target.url):
            time.sleep(1)


@pytest.mark.attack
@pytest.mark.timeout(300)
@pytest.mark.parametrize("kind", ["silent", "half a head", "half a body", "drops of a body"])
def test_slow_clients_are_closed(target: Target, kind: str) -> None:
    """30 connections that are silent, or give their request in drops, are closed in time."""
    with _connections(target.url, 30) as slow, Canary(target.url):
        for connection in slow:
            if kind == "half a head":
                connection.send(b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nX-")
            elif kind != "silent":
                connection.send(_half(connection.host, 100_000))
        deadline = time.monotonic() + CLOSED_SECONDS
        open_ones = list(slow)
        while open_ones and time.monotonic() < deadline:
            if kind == "drops of a body":
                for connection in open_ones:
                    connection.send(b" ")
            open_ones = [one for one in open_ones if not one.is_closed(0.1)]
    left = CLOSED_SECONDS - (deadline - time.monotonic())
    print(f"{kind}: all closed after {left:.0f} s" if not open_ones else f"{kind}: open")
    assert not open_ones


@pytest.mark.attack
@pytest.mark.timeout(300)
def test_idle_connections_are_bounded(target: Target) -> None:
    """12,000 idle connections of one client keep nobody else away, and take little memory."""
    with Peak(target.server.pid) as peak, contextlib.ExitStack() as stack:
        try:
            for _ in range(12_000):
                with contextlib.suppress(ConnectionError, TimeoutError):
                    stack.enter_context(Connection(target.url, 5))
        except OSError as error:
            print(f"no more connections here: {error}")
        with Canary(target.url):
            time.sleep(2)
    print(f"idle connections: +{peak.risen_mib:.0f} MiB")
    assert peak.risen_mib < MIB_FOR_ONE + 64


def test_dead_peers_are_noticed(target: Target) -> None:
    """The kernel asks idle connections of a server whether their client is still there."""
    with Connection(target.url) as connection:
        connection.send(b"GET /v1/models HTTP/1.1\r\n")
        own = connection.sock.getsockname()[1]
        port = connection.sock.getpeername()[1]
        time.sleep(0.2)
        (timer,) = _timers(port, own)
    assert timer == "02"  # keep-alive


def _timers(local: int, remote: int) -> list[str]:
    """Return which timer runs for a connection, as /proc/net/tcp writes it."""
    found = []
    for line in Path("/proc/net/tcp").read_text(encoding="ascii").splitlines()[1:]:
        words = line.split()
        ports = [int(words[at].split(":")[1], 16) for at in (1, 2)]
        if ports == [local, remote]:
            found.append(words[5].split(":")[0])
    return found


# -- clients that do not read ---------------------------------------------------------------------


def _is_held(target: Target, connection: Connection) -> bool:
    """Tell whether the server still has a connection."""
    own = connection.sock.getsockname()[1]
    held = psutil.Process(target.server.pid).connections("tcp")
    return any(c.raddr and c.raddr[1] == own for c in held)


@contextlib.contextmanager
def _unread(url: str, count: int, body: dict[str, Any]) -> Iterator[list[Connection]]:
    """Ask on so many connections, and read nothing."""
    with contextlib.ExitStack() as stack:
        found = []
        for _ in range(count):
            connection = stack.enter_context(Connection(url, 150))
            connection.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            connection.send(request(connection.host, "POST", "/v1/completions", body))
            found.append(connection)
        yield found


def _body(prompt: Any, **more: Any) -> dict[str, Any]:
    return {"model": "smollm2", "prompt": prompt, "max_tokens": 1, **more}


@pytest.fixture
def upstream() -> Iterator[StandIn]:
    with standin() as server:
        yield server


@pytest.fixture
def big_proxy(upstream: StandIn) -> Iterator[Target]:
    """A proxy in front of a stand-in."""
    with servers.proxy(f"--upstream-url={upstream.url}") as target:
        yield target


@pytest.mark.attack
@pytest.mark.timeout(300)
@pytest.mark.parametrize("prompt", [f"bytes={30 * MIB}", "stream"])
def test_proxy_drops_clients_that_do_not_read(
    big_proxy: Target, upstream: StandIn, prompt: str
) -> None:
    """8 clients that never read their 30 MB, or their stream, are let go, and so is the memory."""
    body = _body(prompt, stream=prompt == "stream")
    with (
        Peak(big_proxy.server.pid) as peak,
        Canary(big_proxy.url),
        _unread(big_proxy.url, 8, body) as unread,
    ):
        wait_until(lambda: upstream.num_received >= 8, 30)
        began = time.monotonic()
        held = unread
        while held and time.monotonic() - began < CLOSED_SECONDS + 40:
            time.sleep(0.5)
            held = [one for one in unread if _is_held(big_proxy, one)]
        print(f"let go after {time.monotonic() - began:.0f} s, {len(held)} held")
        left = peak.settled_mib(COME_BACK_SECONDS, 48)
    assert not held
    assert left < 48
    assert big_proxy.group is None or big_proxy.group.num_kills == 0


@pytest.mark.attack
@pytest.mark.timeout(400)
@pytest.mark.parametrize("stream", [False, True])
def test_predictor_drops_clients_that_do_not_read(shared_predictor: Target, stream: bool) -> None:
    """A client that never reads its long answer is let go, a stream or not."""
    body = _body("One", max_tokens=120, n=8, logprobs=20, ignore_eos=True, stream=stream)
    with (
        Peak(shared_predictor.server.pid) as peak,
        _unread(shared_predictor.url, 1, body) as unread,
    ):
        began = time.monotonic()
        time.sleep(2)
        held = unread
        while held and time.monotonic() - began < 250:
            time.sleep(0.5)
            held = [one for one in unread if _is_held(shared_predictor, one)]
        print(f"let go after {time.monotonic() - began:.0f} s, {len(held)} held")
        with Canary(shared_predictor.url):
            left = peak.settled_mib(COME_BACK_SECONDS, 48)
    assert not held
    assert left < 48


# -- bodies that make work ------------------------------------------------------------------------


def _deep(depth: int) -> bytes:
    return (
        b'{"model":"smollm2","prompt":"a","max_tokens":1,"metadata":'
        + b"[" * depth
        + b"]" * depth
        + b"}"
    )


def _many_messages(count: int) -> list[dict[str, str]]:
    return [{"role": "user", "content": "a"}] * count


JSON = {
    "depth": ("/v1/completions", _deep(100_000)),
    "depth of a chat": ("/v1/chat/completions", _deep(100_000)),
    "values": (
        "/v1/completions",
        b'{"model":"smollm2","prompt":"a","max_tokens":1,"metadata":['
        + b"[]," * 2_600_000
        + b"[]]}",
    ),
    "strings": (
        "/v1/completions",
        b'{"model":"smollm2","prompt":"a","max_tokens":1,"metadata":['
        + b'"",' * 2_600_000
        + b'""]}',
    ),
    "numbers": (
        "/v1/completions",
        b'{"model":"smollm2","prompt":"a","max_tokens":1,"metadata":[' + b"1," * 4_000_000 + b"1]}",
    ),
    "messages": (
        "/v1/chat/completions",
        json.dumps({"model": "smollm2", "messages": _many_messages(200_000)}).encode(),
    ),
    "parts": (
        "/v1/chat/completions",
        json.dumps(
            {
                "model": "smollm2",
                "messages": [
                    {"role": "user", "content": [{"type": "text", "text": "a"}] * 200_000}
                ],
            }
        ).encode(),
    ),
    "texts": ("/v1/completions", json.dumps(_body(["a"] * 800_000)).encode()),
    "stops": ("/v1/completions", json.dumps(_body("a", stop=["a"] * 800_000)).encode()),
    "biases": (
        "/v1/completions",
        json.dumps(_body("a", logit_bias={str(at): 1 for at in range(500_000)})).encode(),
    ),
    "digits": (
        "/v1/completions",
        b'{"model":"smollm2","prompt":"a","max_tokens":1,"n":' + b"9" * 8_000_000 + b"}",
    ),
}


@pytest.mark.parametrize(
    "name",
    [
        name if name in {"depth", "values", "messages"} else pytest.param(name, marks=LONG)
        for name in JSON
    ],
)
def test_json_is_bounded(target: Target, name: str) -> None:
    """A body of brackets, values or messages without number is refused before it is read."""
    path, body = JSON[name]
    with Canary(target.url), Peak(target.server.pid) as peak:
        answer = target.post(path, body)
    print(f"{name}: {answer.status} in {answer.seconds:.2f} s, +{peak.risen_mib:.0f} MiB")
    assert answer.status == 400
    assert answer.code
    assert answer.seconds < MOST_SECONDS
    assert peak.risen_mib < 3 * MIB_FOR_ONE


def _predict(num_instances: int, parameters: dict[str, Any]) -> dict[str, Any]:
    return {"instances": ["a"] * num_instances, "parameters": parameters}


@pytest.mark.parametrize(
    "name",
    [
        "values",
        "messages",
        pytest.param("text", marks=LONG),
        pytest.param("unknown", marks=LONG),
    ],
)
def test_parameters_of_predict_are_read_once(shared_predictor: Target, name: str) -> None:
    """Large `parameters` beside many instances cost what they cost once."""
    big = {"a": [{"b": "c"}] * 400_000}
    bodies = {
        "values": _predict(8, {"max_tokens": 1, "metadata": big}),
        "messages": {
            "instances": [{}] * 128,
            "parameters": {"messages": _many_messages(4096), "max_tokens": 1},
        },
        "text": _predict(128, {"max_tokens": 1, "stop": "a" * 7_000_000}),
        "unknown": _predict(128, {f"a{at}": at for at in range(300_000)}),
    }
    body = json.dumps(bodies[name]).encode()
    with Canary(shared_predictor.url), Peak(shared_predictor.server.pid) as peak:
        answer = shared_predictor.post("/v1/models/smollm2:predict", body)
    print(f"{name}: {answer.status} in {answer.seconds:.2f} s, +{peak.risen_mib:.0f} MiB")
    assert answer.status in {200, 400, 429}
    assert answer.seconds < 2 * MOST_SECONDS
    assert peak.risen_mib < 3 * MIB_FOR_ONE


@pytest.mark.parametrize("choices", ["n", pytest.param("best_of", marks=LONG)])
def test_prompt_of_many_choices_is_held_once(target: Target, choices: str) -> None:
    """128 choices of a prompt of 7 MB do not take 128 times its memory."""
    prompt = texts.words(1 << 20) * 7
    body = json.dumps(_body(prompt, **{choices: 128})).encode()
    with Canary(target.url), Peak(target.server.pid) as peak:
        answer = target.post("/v1/completions", body)
    print(f"{choices}: {answer.status} in {answer.seconds:.2f} s, +{peak.risen_mib:.0f} MiB")
    assert answer.status == 400
    assert answer.code
    assert peak.risen_mib < 3 * MIB_FOR_ONE


@pytest.mark.attack
@pytest.mark.timeout(300)
def test_choices_that_fit_are_held_once(shared_predictor: Target) -> None:
    """128 choices of a long prompt that fits take its memory once, in server and engine."""
    body = _body(texts.words(4000), n=128, max_tokens=1)
    with Peak(shared_predictor.server.pid) as peak:
        answer = shared_predictor.post("/v1/completions", body, seconds=240)
    print(f"{answer.status} in {answer.seconds:.2f} s, +{peak.risen_mib:.0f} MiB")
    assert answer.status in {200, 429}
    assert peak.risen_mib < 4 * MIB_FOR_ONE


# -- unfinished uploads ---------------------------------------------------------------------------


@pytest.mark.attack
@pytest.mark.timeout(300)
@pytest.mark.parametrize("form", ["length", "chunked"])
def test_unfinished_uploads_do_not_fill_the_memory(target: Target, form: str) -> None:
    """200 uploads of 8 MB that never end are refused or wait: nobody is killed for them."""
    piece = b'{"prompt":"' + b"a" * (7 * MIB)
    with contextlib.ExitStack() as stack, Canary(target.url):
        with Peak(target.server.pid) as peak:
            for _ in range(200):
                with contextlib.suppress(OSError):
                    connection = stack.enter_context(Connection(target.url, 3))
                    connection.send(_upload(connection.host, piece, form))
        print(f"{form}: +{peak.risen_mib:.0f} MiB")
        stack.close()
        left = peak.settled_mib(COME_BACK_SECONDS, MIB_FOR_ONE)
    assert left < MIB_FOR_ONE
    assert target.group is None or target.group.num_kills == 0


def _upload(host: str, piece: bytes, form: str) -> bytes:
    head = f"POST /v1/completions HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
    if form == "length":
        return f"{head}Content-Length: {8 * MIB}\r\n\r\n".encode() + piece
    chunk = f"{len(piece):x}\r\n".encode()
    return f"{head}Transfer-Encoding: chunked\r\n\r\n".encode() + chunk + piece + b"\r\n"


def test_thirty_unfinished_uploads(proxy: Target) -> None:
    """30 uploads of 8 MB that do not end leave a proxy of 256 MiB alive, and open to others."""
    piece = b'{"prompt":"' + b"a" * (7 * MIB)
    with contextlib.ExitStack() as stack, Canary(proxy.url):
        for _ in range(30):
            with contextlib.suppress(OSError):
                connection = stack.enter_context(Connection(proxy.url, 0.5))
                connection.send(_upload(connection.host, piece, "length"))
    assert proxy.group is None or proxy.group.num_kills == 0


@pytest.mark.attack
@pytest.mark.timeout(120)
def test_body_is_let_go_once_it_is_sent(big_proxy: Target, upstream: StandIn) -> None:
    """While an upstream thinks about bodies of 4 MB, the proxy does not hold them parsed."""
    text = texts.words(4 * MIB)
    with Peak(big_proxy.server.pid) as peak, ThreadPoolExecutor(4) as pool:
        answers = [pool.submit(normal, big_proxy.url, _body(f"hold {text}"), 110) for _ in range(4)]
        wait_until(lambda: upstream.num_received >= 4, 30)
        left = peak.settled_mib(COME_BACK_SECONDS, 40)
        print(f"while 4 bodies of 4 MiB are with the upstream: +{left:.0f} MiB")
        upstream.release.set()
        assert [answer.result().status for answer in answers] == [200] * 4
    assert left < 40  # the bytes themselves stay, for another attempt


# -- templates ------------------------------------------------------------------------------------

HOSTILE = {
    "power": "{{ 9**(9**8) }}",
    "text": "{{ 'a' * 10**9 }}",
    "loops": "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "joined": "{{ ('a' * 99999999) | list | join('b') | length }}",
    "growing": "{% set ns = namespace(x='a' * 999) %}{% for i in range(60) %}"
    "{% set ns.x = ns.x + ns.x %}{% endfor %}",
    "padding": "{{ '%999999999d' | format(1) }}",
}


@pytest.mark.attack
@pytest.mark.timeout(120)
@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize("place", ["gguf", "flag"])
def test_hostile_template_stops_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_model: Path, name: str, place: str
) -> None:
    """A template that computes without end is refused in time; SIGTERM ends the predictor."""
    flags = ["--n_threads=1"]
    model = tiny_model
    if place == "flag":
        file = tmp_path / "template.jinja"
        file.write_text(HOSTILE[name], encoding="utf-8")
        flags.append(f"--chat_template={file}")
    else:
        monkeypatch.setattr(tiny_models, "_CHAT_TEMPLATE", HOSTILE[name])
        model = tiny_models.write_tiny_model(tmp_path, "llama")
    chat = {"model": "smollm2", "messages": [{"role": "user", "content": "a"}], "max_tokens": 1}
    with servers.predictor(model, *flags, max_bytes=1024 * MIB, is_ready=False) as target:
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline and target.server.process.poll() is None:
            live = target.ask("GET", "/v2/health/live", seconds=MOST_SECONDS + 5)
            assert live.status == 200 or target.server.process.poll() is not None
            assert live.seconds < MOST_SECONDS
            if target.ask("GET", "/v2/health/ready").status == 200:
                break
            time.sleep(0.1)
        if target.server.process.poll() is not None:
            return  # it has said what is wrong, and ended
        with Canary(target.url):
            answer = target.post("/v1/chat/completions", chat, seconds=40)
        assert answer.status in {400, 503}, (answer.status, answer.body[:200])
        target.server.signal(signal.SIGTERM)
        target.server.exit_status(15)


SLOW = (
    "{% for m in messages %}{% set ns = namespace(n=0) %}"
    "{% for a in m['content'] %}{% for b in m['content'] %}{% if a == b %}"
    "{% set ns.n = ns.n + 1 %}{% endif %}{% endfor %}{% endfor %}{{ m['content'] }}{% endfor %}"
)


@pytest.mark.attack
@pytest.mark.timeout(120)
def test_slow_template_holds_up_nobody(tiny_model: Path, tmp_path: Path) -> None:
    """A long chat with a template that is slow over it costs the chat, not the others."""
    file = tmp_path / "template.jinja"
    file.write_text(SLOW, encoding="utf-8")
    flags = ("--n_threads=1", f"--chat_template={file}")
    with servers.predictor(tiny_model, *flags, max_bytes=1024 * MIB) as target:
        for size in (2_000, 20_000, 137_000):
            chat = {"model": "smollm2", "max_tokens": 1}
            chat["messages"] = [{"role": "user", "content": texts.words(size)}]
            with Canary(target.url):
                answer = target.post("/v1/chat/completions", chat, seconds=60)
            print(f"{size}: {answer.status} {answer.code} in {answer.seconds:.2f} s")
            assert answer.status in {200, 400, 503}


# -- prompts that are ready, and replayed ones ----------------------------------------------------


@pytest.mark.attack
def test_prompts_of_token_ids_are_read_in_parts(target: Target) -> None:
    """Prompts of 100,000s of token ids hold up nobody, though each of them is small enough."""
    prompts = [[at + 40] * 1000 for at in range(120)]
    with contextlib.ExitStack() as stack, Canary(target.url):
        connection = stack.enter_context(Connection(target.url, 3))
        body = _body(prompts)
        connection.send(request(connection.host, "POST", "/v1/completions", body))
        answer = connection.read()
        print(f"{answer.status} {answer.code}")
        connection.close()
        time.sleep(0.3)


@pytest.mark.attack
@pytest.mark.timeout(300)
def test_resumed_tokens_are_read_in_parts(shared_predictor: Target) -> None:
    """Streams that come back with thousands of tokens hold up nobody while these are replayed."""
    body = _body("One", max_tokens=1900, stream=True, n=64, ignore_eos=True, dry_multiplier=0.8)
    headers = [("X-Resumable", "1")]
    url = shared_predictor.url
    with Connection(url, 30) as connection:
        connection.send(request(connection.host, "POST", "/v1/completions", body, headers))
        data = b""
        while b"\n\n" not in data:
            data += connection.sock.recv(1 << 16)
    marker = b": resume {"
    line = next(part for part in data.split(b"\n") if part.startswith(marker))
    head = json.loads(line[len(marker) - 1 :])
    tokens = [500 + at % 5000 for at in range(1800)]
    choices = [{"index": index, "tokens": tokens} for index in range(64)]
    resumed = {**body, "resume": {**head, "choices": choices, "usage": False}}
    with Canary(url), Connection(url, 25) as connection:
        connection.send(request(connection.host, "POST", "/v1/completions", resumed, headers))
        status = connection.sock.recv(1 << 16)[9:12]
        time.sleep(10)
    assert status == b"200", status
