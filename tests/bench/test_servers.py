"""What the servers are started with: over a program that writes its arguments down."""

from __future__ import annotations

import sys
from pathlib import Path

from bench.servers import LLAMA_SERVER, Setup, llama_server

# Answers every GET with 200 and its own arguments, as llama-server answers /health.
PROGRAM = f"""#!{sys.executable}
import http.server, sys

class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        body = " ".join(sys.argv[1:]).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

port = int(sys.argv[sys.argv.index("--port") + 1])
http.server.HTTPServer(("127.0.0.1", port), Handler).serve_forever()
"""


def test_a_second_llama_server_with_flags(tmp_path: Path) -> None:
    """Its flags come behind those of the first, and are in its name."""
    program = tmp_path / "llama-server"
    program.write_text(PROGRAM)
    program.chmod(0o755)
    setup = Setup(tmp_path / "m.gguf", 1024, 2, 1)
    with llama_server(setup, program) as plain, llama_server(setup, program, ("-fa", "off")) as off:
        assert (plain.name, off.name) == (LLAMA_SERVER, f"{LLAMA_SERVER} -fa off")
        first, second = plain.metrics().split(), off.metrics().split()
    assert second[-2:] == ["-fa", "off"]
    assert len(second) == len(first) + 2
