"""Takes the command line of a model server and serves what the proxy asks it for; no model.

    python program.py vllm|llama-server|shimmy|plain ARGUMENT ...

Other flags are refused, in the words and with the exit status of the real program. The variable
STANDIN (`KEY=VALUE;...`) makes it misbehave:

    delay=SECONDS   load the model for so long
    env=F           write its environment to F as JSON
    pids=F          start a child, and append both process ids to F
    stubborn=1      ignore SIGTERM
    say=TEXT        write this line
    exit=CODE       end with this code at once
    taken=F         once, unless F exists: make F, and end as if the port were taken
    close=F         close the port, but live on, when F exists
    mute=F          answer no GET while F exists, though all else
    slow=SECONDS    wait so long before each piece of a stream, of which there are ten times as many
    fork=1          go to the background
    deaf=1          never listen at all
    flood=long|lines  write without end: one long line, or lines
"""

import argparse
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar, NoReturn

STARTED = time.monotonic()
BEHAVIOUR = dict(
    item.split("=", 1) for item in os.environ.get("STANDIN", "").split(";") if "=" in item
)
TAKEN = {
    "sglang": "ERROR:    [Errno 98] error while attempting to bind on address: address already in "
    "use",
    "vllm": "OSError: [Errno 98] Address already in use",
    "llama-server": "srv         start: couldn't bind HTTP server socket, hostname: {host}, "
    "port: {port}",
    "shimmy": "Error: Address already in use (os error 98)",
    "plain": "listen EADDRINUSE: address already in use {host}:{port}",
}


def log(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


class Parser(argparse.ArgumentParser):
    """Refuses what it does not know as the program of this kind does."""

    kind = ""

    def error(self, message: str) -> NoReturn:
        unknown = message.partition(": ")[2].split(" ")[0]
        if self.kind == "llama-server":
            log(f"error: invalid argument: {unknown}")
            sys.exit(1)
        if self.kind == "shimmy":
            log(f"error: unexpected argument '{unknown}' found\n")
            log("Usage: shimmy serve [OPTIONS]\n\nFor more information, try '--help'.")
            sys.exit(2)
        super().error(message)


def parse(kind: str, arguments: list[str]) -> argparse.Namespace:
    """Return host, port, model (its path) and name."""
    parser = Parser(prog=kind, allow_abbrev=False)
    parser.kind = kind
    if kind in ("vllm", "shimmy"):
        if arguments[:1] != ["serve"]:
            parser.error("unrecognized arguments: " + " ".join(arguments[:1]))
        arguments = arguments[1:]
    if kind == "shimmy":
        parser.add_argument("--bind", required=True)
        known = parser.parse_args(arguments)
        known.host, _, port = known.bind.rpartition(":")
        known.host, known.port = known.host.strip("[]"), int(port)
        known.model = os.environ["SHIMMY_BASE_GGUF"]
        known.name = Path(known.model).stem.replace("_", "-").lower()
        return known
    flags = {
        "sglang": {"model": "--model-path", "name": "--served-model-name", "key": "--api-key"},
        "vllm": {"name": "--served-model-name", "len": "--max-model-len"},
        "llama-server": {"model": "-m", "name": "-a", "ctx": "-c"},
        "plain": {"model": "--model", "name": "--name"},
    }[kind]
    if kind == "vllm":
        parser.add_argument("model")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=int(os.environ.get("PORT", "0")))
    for name, flag in flags.items():
        parser.add_argument(flag, dest=name, required=name in ("model", "name") and kind != "plain")
    return parser.parse_args(arguments)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    kind: ClassVar[str] = ""
    names: ClassVar[list[str]] = []

    @property
    def is_loaded(self) -> bool:
        return time.monotonic() - STARTED >= float(BEHAVIOUR.get("delay", "0"))

    def do_GET(self) -> None:  # the base class's name
        while "mute" in BEHAVIOUR and Path(BEHAVIOUR["mute"]).exists():
            time.sleep(0.05)
        if self.kind == "llama-server" and not self.is_loaded:
            error = {"message": "Loading model", "type": "unavailable_error", "code": 503}
            self.answer(503, {"error": error})
        elif self.path in ("/health", "/ready"):
            self.answer(200 if self.is_loaded else 503, {"status": "ok"})
        elif self.path == "/v1/models":
            data = [{"id": name, "object": "model", "owned_by": self.kind} for name in self.names]
            self.answer(200, {"object": "list", "data": data})
        else:
            self.answer(404, {"detail": "Not Found"})

    def do_POST(self) -> None:  # the base class's name
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        log(f"POST {self.path} model={body.get('model')}")
        is_chat = self.path == "/v1/chat/completions"
        if not self.is_loaded:
            self.answer(503, {"error": {"message": "Loading model", "code": 503}})
        elif body.get("model") not in self.names:
            self.answer(404, {"error": {"message": "no such model", "code": "model_not_found"}})
        elif is_chat and body.get("stream"):
            self.stream()
        elif is_chat:
            message = {"role": "assistant", "content": "Hello"}
            self.answer(200, self.completion({"message": message}))
        elif self.path == "/v1/completions":
            self.answer(200, self.completion({"text": "Hello"}))
        else:
            self.answer(404, {"detail": "Not Found"})

    def completion(self, choice: dict[str, object]) -> dict[str, object]:
        return {"id": "x", "choices": [{"index": 0, "finish_reason": "stop", **choice}]}

    def stream(self) -> None:
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.send_header("connection", "close")
        self.end_headers()
        for number in range(30 if "slow" in BEHAVIOUR else 3):
            time.sleep(float(BEHAVIOUR.get("slow", "0")))
            chunk = {"id": "x", "choices": [{"index": 0, "delta": {"content": str(number)}}]}
            self.wfile.write(f"data: {json.dumps(chunk)}\n\n".encode())
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


def misbehave(kind: str, place: dict[str, object]) -> None:
    global child  # noqa: PLW0603  # kept, so that it is not warned of
    if "fork" in BEHAVIOUR and os.fork():
        time.sleep(0.5)
        os._exit(0)
    if "env" in BEHAVIOUR:
        Path(BEHAVIOUR["env"]).write_text(json.dumps(dict(os.environ)))
    if "pids" in BEHAVIOUR:
        child = subprocess.Popen(["sleep", "1000"])  # stays in the group
        with Path(BEHAVIOUR["pids"]).open("a") as file:
            file.write(f"{os.getpid()}\n{child.pid}\n")
    if "say" in BEHAVIOUR:
        log(BEHAVIOUR["say"])
    if "exit" in BEHAVIOUR:
        sys.exit(int(BEHAVIOUR["exit"]))
    if "taken" in BEHAVIOUR and not Path(BEHAVIOUR["taken"]).exists():
        Path(BEHAVIOUR["taken"]).touch()
        log(TAKEN[kind].format_map(place))
        sys.exit(1)
    if "flood" in BEHAVIOUR:
        threading.Thread(target=flood, daemon=True).start()
    if "deaf" in BEHAVIOUR:
        time.sleep(1000)


def flood() -> None:
    text = b"x" * 65536 if BEHAVIOUR["flood"] == "long" else b"a line of a flood\n" * 4096
    while True:
        os.write(2, text)


def close_when_told(server: ThreadingHTTPServer) -> None:
    while not Path(BEHAVIOUR["close"]).exists():
        time.sleep(0.02)
    server.shutdown()
    server.server_close()


def serve(kind: str, known: argparse.Namespace) -> None:
    if kind == "vllm":  # its port opens when the model is loaded
        time.sleep(float(BEHAVIOUR.get("delay", "0")))
    if ":" in known.host:
        ThreadingHTTPServer.address_family = socket.AF_INET6
    try:
        server = ThreadingHTTPServer((known.host, known.port), Handler)
    except OSError:
        log(TAKEN[kind].format_map(vars(known)))
        sys.exit(1)
    server.daemon_threads = True
    is_told = threading.Event()

    def stop(*_: object) -> None:
        log("stopping")
        is_told.set()
        threading.Thread(target=server.shutdown).start()

    signal.signal(signal.SIGTERM, signal.SIG_IGN if "stubborn" in BEHAVIOUR else stop)
    if "close" in BEHAVIOUR:
        threading.Thread(target=close_when_told, args=(server,), daemon=True).start()
    log(f"INFO 11-22 10:00:00 [server.py:1] {kind} listens on {known.host}:{known.port}")
    server.serve_forever(poll_interval=0.05)
    is_told.wait()
    log("stopped")


def main(kind: str, arguments: list[str]) -> None:
    known = parse(kind, arguments)
    log(f"{kind}: {' '.join(arguments)}")
    misbehave(kind, vars(known))
    Handler.kind = kind
    Handler.names = [known.name or "its-own"]
    if kind == "shimmy":  # it lists what it finds, and has a fixed name for its file
        Handler.names = sorted({known.name, "a-model-found-elsewhere", "tinyllama-1.1b"})
    serve(kind, known)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
