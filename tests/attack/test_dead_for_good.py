"""What ends an engine ends it once: nothing stays dead until a person comes."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import shutil
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.attack import servers, texts
from tests.attack.canary import MOST_SECONDS, Canary, normal
from tests.attack.memory import family
from tests.attack.servers import Target, wait_until
from tests.attack.wire import Connection, request
from tests.processes import NUM_THREADS

pytestmark = pytest.mark.model

LONG = 30_000  # characters: few enough to fit the context, perhaps
FEW = ("capitals", "spaces and newlines", "accents", "combining", "half specials")
MS_A_KIB = 3.0
SLACK_SECONDS = 0.3  # of a request, beside its text
NOTICED_SECONDS = 90.0  # a pause that grows has not grown far by then


def _body(text: str) -> dict[str, Any]:
    return {"model": "smollm2", "prompt": text, "max_tokens": 1}


@pytest.mark.parametrize(
    "shape", [FEW[0], *(pytest.param(shape, marks=pytest.mark.attack) for shape in FEW[1:])]
)
def test_no_long_run_ends_an_engine(tekken: Target, shape: str) -> None:
    """A run of 30,000 characters, twice, leaves a model with Tekken's pre-tokenizer as it was."""
    before = tekken.pids
    with Canary(tekken.url):
        for _ in range(2):
            answer = tekken.post("/v1/completions", _body(texts.SHAPES[shape](LONG)))
            assert answer.status in {200, 400}, (answer.status, answer.body[:300])
    assert tekken.pids == before
    assert tekken.num_deaths == 0


@pytest.mark.attack
@pytest.mark.timeout(900)
@pytest.mark.parametrize("pre", ["smollm", "tekken"])
def test_no_text_ends_an_engine(
    model_path: Path, tmp_path: Path, tekken: Target, proxy: Target, pre: str
) -> None:
    """No shape of any length ends an engine, on any route, through the proxy and without."""
    behind = tekken if pre == "tekken" else proxy.predictor
    assert behind is not None
    before = behind.pids
    with servers.proxy(f"--upstream-url={behind.url}") as front:
        for url in (behind.url, front.url):
            with Canary(url):
                for at, shape in enumerate(texts.SHAPES):
                    _send_text(url, texts.SHAPES[shape](LONG), shape, at)
                for at, shape in enumerate(FEW * 2):
                    _send_text(url, texts.SHAPES[shape](400_000 * (1 + at)), shape, at)
    assert behind.pids == before
    assert behind.num_deaths == 0


def _send_text(url: str, text: str, name: str, at: int) -> None:
    """Send a text by one route after another; leave an answer that is computed for long."""
    chat = {"model": "smollm2", "messages": [{"role": "user", "content": text}], "max_tokens": 1}
    asks = [
        ("/v1/completions", _body(text)),
        ("/v1/chat/completions", chat),
        (
            "/v1/models/smollm2:predict",
            {"instances": [text], "parameters": {"max_tokens": 1}},
        ),  # which a proxy does not have
    ]
    path, body = asks[at % len(asks)]
    with Connection(url, 3) as connection:
        connection.send(request(connection.host, "POST", path, body))
        status = connection.read().status
    assert status in {0, 200, 400, 404, 405, 413}, (name, path, status)


@pytest.mark.attack
@pytest.mark.parametrize("shape", ["capitals", "newlines", "any"])
def test_texts_are_cut_into_tokens_in_time(tekken: Target, shape: str) -> None:
    """A text of 64 KiB that doesn't fit is refused within 3 ms a KiB."""
    make = texts.SHAPES[shape]
    text = make(max(1, (64 << 10) // len(make(100).encode()) * 100))
    num_kib = len(text.encode()) / 1024
    answers = [tekken.post("/v1/completions", _body(text)) for _ in range(3)]
    assert {answer.status for answer in answers} <= {200, 400}
    best = min(answer.seconds for answer in answers)
    print(f"{shape}: {num_kib:.0f} KiB in {best:.3f} s, {[a.code for a in answers]}")
    if answers[0].status == 400:
        assert best <= num_kib * MS_A_KIB / 1000 + SLACK_SECONDS


@pytest.mark.attack
def test_what_cannot_fit_is_refused_first(target: Target) -> None:
    """8 MB of text are refused without being cut into tokens: the others notice nothing of it."""
    text = texts.words(1 << 20) * 7
    with Canary(target.url):
        answer = target.post("/v1/completions", _body(text))
    assert (answer.status, answer.code) == (400, "context_length_exceeded")
    assert answer.seconds < MOST_SECONDS


@contextlib.contextmanager
def _own_predictor(model: Path, *flags: str) -> Iterator[Target]:
    with servers.predictor(model, *flags, max_bytes=None) as running:
        yield running


def _kill_engine(target: Target) -> None:
    with contextlib.suppress(psutil.NoSuchProcess, ValueError):
        psutil.Process(target.engine_pid()).kill()


def _comes_back(target: Target) -> float:
    """Wait until the predictor serves by itself again, or its process ends with a status."""

    def is_back() -> bool:
        assert target.server.process.poll() is None, "the process ended"
        return normal(target.url, seconds=30).status == 200

    seconds = wait_until(is_back, NOTICED_SECONDS)
    assert target.ask("GET", "/v2/health/ready").status == 200
    print(f"ready again by itself after {seconds:.1f} s")
    return seconds


@pytest.mark.attack
@pytest.mark.timeout(300)
def test_file_descriptors_used_up(tiny_model: Path) -> None:
    """An engine that dies while there is no file descriptor is back when there is one again."""
    with _own_predictor(tiny_model) as target:
        process = psutil.Process(target.server.pid)
        limit = process.rlimit(resource.RLIMIT_NOFILE)
        process.rlimit(resource.RLIMIT_NOFILE, (process.num_fds(), limit[1]))
        _kill_engine(target)
        time.sleep(15)
        process.rlimit(resource.RLIMIT_NOFILE, limit)
        _comes_back(target)


@pytest.mark.attack
@pytest.mark.timeout(300)
def test_no_process_can_be_made(tiny_model: Path) -> None:
    """An engine that dies while fork fails with EAGAIN is back when it works again."""
    group = Path(f"/sys/fs/cgroup/pids/kserve-llamacpp-attack-{os.getpid()}")
    try:
        group.mkdir()
    except OSError:
        pytest.skip("no cgroup with a limit of processes can be made here")
    try:
        with _own_predictor(tiny_model) as target:
            for pid in target.pids:
                (group / "cgroup.procs").write_text(str(pid))
            _kill_engine(target)
            (group / "pids.max").write_text("1")
            time.sleep(15)
            (group / "pids.max").write_text("max")
            _comes_back(target)
    finally:
        wait_until(lambda: not (group / "cgroup.procs").read_text(), 10)
        group.rmdir()


@pytest.mark.attack
@pytest.mark.timeout(300)
def test_file_of_the_model_is_away(tiny_model: Path, tmp_path: Path) -> None:
    """An engine that dies while its model's file is away for 25 s is back with the file."""
    folder = tmp_path / "models"
    folder.mkdir()
    shutil.copy(tiny_model, folder / "tiny.gguf")
    with _own_predictor(folder / "tiny.gguf") as target:
        folder.rename(tmp_path / "away")
        _kill_engine(target)
        time.sleep(25)
        (tmp_path / "away").rename(folder)
        _comes_back(target)


@pytest.mark.attack
@pytest.mark.timeout(300)
def test_restarts_are_never_used_up(tiny_model: Path) -> None:
    """More deaths than `--max_engine_restarts` are a pause, not the end."""
    with _own_predictor(tiny_model, "--max_engine_restarts=1") as target:
        for _ in range(4):
            _kill_engine(target)
            time.sleep(1)
        _comes_back(target)


@pytest.mark.attack
@pytest.mark.timeout(300)
def test_nobody_innocent_ends_with_an_engine(model_path: Path) -> None:
    """19 streams live through six deaths of their engine in a row."""
    flags = ("--max_engine_restarts=20", "--n_ctx=8192")
    with _own_predictor(model_path, *flags) as target, ThreadPoolExecutor(19) as pool:
        ends = [pool.submit(_stream_to_the_end, target.url, at) for at in range(19)]
        for nth in range(6):
            time.sleep(1.0)
            pid = target.engine_pid()
            os.kill(pid, 9)
            target.server.wait_for("model_ready", nth=nth + 2)
        assert [end.result(240) for end in ends] == ["length"] * 19


def _stream_to_the_end(url: str, at: int) -> str:
    """Stream an answer; return why it ended, or the error's code."""
    body = {
        **_body(f"{at} is a number that"),
        "max_tokens": 150,
        "ignore_eos": True,
        "stream": True,
    }
    with Connection(url, 240) as connection:
        connection.send(request(connection.host, "POST", "/v1/completions", body))
        answer = connection.read()
    events = [line[6:] for line in answer.body.splitlines() if line.startswith(b"data: {")]
    last = json.loads(events[-1]) if events else {"error": {"code": f"status {answer.status}"}}
    if "error" in last:
        return str(last["error"]["code"])
    reasons = [c["finish_reason"] for event in events for c in json.loads(event)["choices"]]
    return str(reasons[-1])


@pytest.mark.attack
@pytest.mark.timeout(300)
def test_death_of_the_predictor_loses_nothing_that_has_not_begun(model_path: Path) -> None:
    """What had got no byte of the proxy's own predictor when that died is answered all the same."""
    flags = ("--backend=llamacpp", f"--model-path={model_path}", "--model-name=smollm2")
    threads = f"--backend-arg=--n_threads={NUM_THREADS}"
    with servers.proxy(*flags, threads, max_bytes=None) as front, ThreadPoolExecutor(12) as pool:
        body = {**_body("The river"), "max_tokens": 100, "ignore_eos": True}
        answers = [pool.submit(normal, front.url, body) for _ in range(8)]
        time.sleep(1.0)
        front.server.find("kserve_llamacpp").kill()
        answers += [pool.submit(normal, front.url) for _ in range(4)]
        assert [answer.result(120).status for answer in answers] == [200] * 12


_UNWELL = """
import http.server, sys, time
began = time.monotonic()
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200 if time.monotonic() - began < 8 else 503)
        self.send_header("content-length", "2")
        self.end_headers()
        self.wfile.write(b"{}")
    def do_POST(self):
        self.rfile.read(int(self.headers.get("content-length", 0)))
        answer = b'{"id": "a", "object": "chat.completion", "choices": []}'
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)
    def log_message(self, *words):
        pass
http.server.ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""


@pytest.mark.attack
@pytest.mark.timeout(120)
def test_backend_that_is_unwell_for_good_is_started_again(tmp_path: Path) -> None:
    """A backend that answers 503 and nothing else is no sign of life for its supervisor."""
    program = tmp_path / "unwell.py"
    program.write_text(_UNWELL, encoding="utf-8")
    flags = (
        *("--backend=command", f"--backend-command={sys.executable} {program} {{port}}"),
        *("--backend-health-path=/health", "--backend-liveness-timeout=5"),
        *("--request-timeout-seconds=4", "--read-timeout-seconds=4"),
        "--backend-backoff-seconds=0.1",
    )
    with servers.proxy(*flags, max_bytes=None, is_ready=False) as front:
        front.server.wait_for("backend_ready")
        (first,) = [pid for pid in family(front.server.pid) if _runs(pid, str(program))]
        servers.wait_until(lambda: not psutil.pid_exists(first), 40)


def _runs(pid: int, program: str) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):
        return psutil.Process(pid).cmdline()[1:2] == [program]
    return False


@pytest.mark.attack
@pytest.mark.timeout(300)
def test_one_tenants_text_delays_no_other(tekken: Target, proxy: Target) -> None:
    """While a tenant sends long texts without a pause, another's short prompt is answered."""
    behind = proxy.predictor
    assert behind is not None
    for url in (tekken.url, behind.url, proxy.url):
        is_over = threading.Event()

        def send(url: str = url, is_over: threading.Event = is_over) -> None:
            at = 0
            while not is_over.is_set():
                at += 1
                text = texts.words(60_000, seed=at) * 2
                with contextlib.suppress(OSError), Connection(url, 20) as connection:
                    headers = [("X-Tenant", "loud")]
                    connection.send(
                        request(connection.host, "POST", "/v1/completions", _body(text), headers)
                    )
                    connection.read()

        with ThreadPoolExecutor(4) as pool, Canary(url):
            for _ in range(4):
                pool.submit(send)
            time.sleep(8)
            is_over.set()
