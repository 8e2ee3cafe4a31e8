"""Serves what the proxy asks a predictor for; `--standin KEY=VALUE` makes it misbehave.

    exit=CODE       say why as a JSON log line and end with this code at once
    crash_file=F    while F exists: remove it and end with code 9
    pids=F          start a child, and append both process ids to F
    stubborn=1      ignore SIGTERM
    delay=SECONDS   be not ready for so long
    chunk=SECONDS   time between two chunks of a stream
    slow=F          answer nothing that is asked with POST while F exists
    over=F          say at the liveness path that only a new process can help, while F exists

All else is as the predictor does it.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

STARTED = time.monotonic()


def log(event: str, level: str = "info", **fields: object) -> None:
    print(json.dumps({"event": event, "level": level, **fields}), file=sys.stderr, flush=True)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    model = ""
    behaviour: ClassVar[dict[str, str]] = {}

    @property
    def is_ready(self) -> bool:
        return time.monotonic() - STARTED >= float(self.behaviour.get("delay", "0"))

    def do_GET(self) -> None:  # the base class's name
        model = {"id": self.model, "object": "model", "name": self.model, "ready": self.is_ready}
        if self.path == "/v1/models":
            listed = [model] if self.is_ready else []
            self.answer(200, {"object": "list", "data": listed, "models": [self.model]})
        elif self.path == f"/v1/models/{self.model}":
            self.answer(200 if self.is_ready else 503, model)
        elif self.path == "/v2/health/live":
            is_over = Path(self.behaviour.get("over", "/none")).exists()
            self.answer(503 if is_over else 200, {"live": not is_over})
        elif self.path == "/die":
            os._exit(9)
        else:
            self.answer(404, {"detail": "Not Found"})

    def do_POST(self) -> None:  # the base class's name
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        log("request", path=self.path, request_id=self.headers["x-request-id"])
        while Path(self.behaviour.get("slow", "/none")).exists():
            time.sleep(0.02)
        if body.get("stream"):
            self.stream()
        else:
            self.answer(200, {"id": "x", "choices": [{"index": 0, "text": "Hello"}]})

    def stream(self) -> None:
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.send_header("connection", "close")
        self.end_headers()
        for number in range(100):
            chunk = {"id": "x", "choices": [{"index": 0, "delta": {"content": str(number)}}]}
            self.wfile.write(f"data: {json.dumps(chunk)}\n\n".encode())
            time.sleep(float(self.behaviour.get("chunk", "0.05")))
        self.wfile.write(b"data: [DONE]\n\n")

    def answer(self, status: int, value: object) -> None:
        data = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        pass


def misbehave(behaviour: dict[str, str]) -> None:
    global child  # noqa: PLW0603  # kept, so that it is not warned of
    if "pids" in behaviour:
        child = subprocess.Popen(["sleep", "1000"])  # stays in the group
        with Path(behaviour["pids"]).open("a") as file:
            file.write(f"{os.getpid()}\n{child.pid}\n")
    if "exit" in behaviour:
        log(f"the stand-in ends with {behaviour['exit']}", "error")
        sys.exit(int(behaviour["exit"]))
    crash = Path(behaviour.get("crash_file", "/nonexistent"))
    if crash.exists():
        crash.unlink()
        print("a line that is no JSON", flush=True)
        sys.exit(9)


def main() -> None:
    parser = argparse.ArgumentParser(allow_abbrev=False)
    for flag in ("model_name", "model_dir", "http_host", "enable_grpc", "log_format", "log_level"):
        parser.add_argument(f"--{flag}", required=True)
    for flag in ("http_port", "drain_delay_seconds", "grace_seconds"):
        parser.add_argument(f"--{flag}", required=True, type=float)
    parser.add_argument("--standin", action="append", default=[])
    arguments = parser.parse_args()
    behaviour = dict(item.split("=", 1) for item in arguments.standin)
    misbehave(behaviour)
    Handler.model = arguments.model_name
    Handler.behaviour = behaviour
    ThreadingHTTPServer.request_queue_size = 64
    server = ThreadingHTTPServer((arguments.http_host, int(arguments.http_port)), Handler)
    server.daemon_threads = True

    def stop(*_: object) -> None:
        log("stopping")
        threading.Thread(target=server.shutdown).start()

    signal.signal(signal.SIGTERM, signal.SIG_IGN if "stubborn" in behaviour else stop)
    log("serving", port=int(arguments.http_port))
    server.serve_forever(poll_interval=0.05)
    log("stopped")


main()
