"""An upstream that does as a test wants: it notes what it is sent, answers much, or nothing."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

_CHUNK = 1 << 16


class StandIn(ThreadingHTTPServer):
    """An OpenAI server; the prompt of a request says how it is answered.

    `bytes=N` gets a whole answer with so long a text, `stream` events without an end, `hold` none
    until `release` is set, all else a short one.
    """

    daemon_threads = True
    request_queue_size = 256

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.heads: list[list[tuple[str, str]]] = []
        self.release = threading.Event()
        self.num_received = 0
        self.num_left = 0  # answers that could not be sent to their end

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self.server_address[1]}"


@contextmanager
def standin() -> Iterator[StandIn]:
    """Run one."""
    server = StandIn()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.release.set()
        server.shutdown()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: StandIn

    def do_GET(self) -> None:
        """List the only model."""
        self._send({"object": "list", "data": [{"id": "smollm2", "object": "model"}]})

    def do_POST(self) -> None:
        """Answer as the prompt says."""
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self.server.heads.append(self.headers.items())
        self.server.num_received += 1
        prompt = body["prompt"]
        how = prompt if isinstance(prompt, str) else ""
        try:
            if how.startswith("stream"):
                self._stream()
            elif how.startswith("hold"):
                self.server.release.wait(300)
                self._send(_answer("a"))
            else:
                size = int(how.removeprefix("bytes=")) if how.startswith("bytes=") else 1
                self._send(_answer("a" * size))
        except OSError:
            self.server.num_left += 1
            self.close_connection = True

    def log_message(self, *_: Any) -> None:
        """Say nothing."""

    def _send(self, answer: dict[str, Any]) -> None:
        data = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def _stream(self) -> None:
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.send_header("connection", "close")
        self.end_headers()
        event = f"data: {json.dumps(_answer('a' * _CHUNK))}\n\n".encode()
        while True:
            self.wfile.write(event)
            time.sleep(0.02)


def _answer(text: str) -> dict[str, Any]:
    return {
        "id": "cmpl-1",
        "object": "text_completion",
        "created": 1,
        "model": "smollm2",
        "choices": [{"index": 0, "text": text, "finish_reason": "length", "logprobs": None}],
        "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2},
    }
