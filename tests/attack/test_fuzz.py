"""Thousands of requests that nobody would write: both servers go on as if there had been none."""

from __future__ import annotations

import asyncio
import collections
import contextlib
import os
import time
from collections.abc import Callable
from urllib.parse import urlsplit

import grpc
import pytest

from tests.attack.canary import Canary
from tests.attack.fuzzing import Case, Fuzzer
from tests.attack.memory import MIB, anonymous_bytes
from tests.attack.servers import Target, wait_until

pytestmark = pytest.mark.model

SEED = int(os.environ.get("ATTACK_SEED", "1"))
# of both servers together: half of the requests each, and of the predictor's bodies a part by gRPC
SHORT = 400
LONG = 10_000
GRPC_SHARE = 5
NUM_CLIENTS = 4  # fewer than sequences, so that the others have one to be computed in
QUIET_SECONDS = {"raw": 0.25, "json": 0.7}  # then the client leaves: some ask for long answers
MEANT = {501, 503, 504, 505}
MORE_MIB = 64
Counts = collections.Counter[str]


@pytest.mark.parametrize(
    "num_requests",
    [
        pytest.param(SHORT, id="short"),
        pytest.param(LONG, id="long", marks=[pytest.mark.attack, pytest.mark.timeout(1200)]),
    ],
)
@pytest.mark.parametrize("kind", ["raw", "json"])
def test_fuzzed_requests(target: Target, kind: str, num_requests: int) -> None:
    """Nothing dies, nothing fails inside, memory comes back, and the others are answered."""
    fuzzer = Fuzzer(target.name, SEED)
    draw = fuzzer.raw if kind == "raw" else fuzzer.json
    host = urlsplit(target.url).netloc
    num_of_server = num_requests // 2
    num_by_grpc = num_of_server // GRPC_SHARE if target.grpc_port and kind == "json" else 0
    num_http = num_of_server - num_by_grpc
    asyncio.run(_send_all(target, [draw(host) for _ in range(50)], QUIET_SECONDS[kind]))
    before = anonymous_bytes(target.server.pid)
    began = time.monotonic()
    with Canary(target.url):
        cases = [draw(host) for _ in range(num_http)]
        counts = asyncio.run(_send_all(target, cases, QUIET_SECONDS[kind]))
        if num_by_grpc:
            counts += _send_by_grpc(target, [fuzzer.grpc() for _ in range(num_by_grpc)])
    print(
        f"{target.name}, {kind}: seed {SEED}, {num_of_server} in {time.monotonic() - began:.0f} s"
    )
    print(f"  {dict(sorted(counts.items()))}")

    def risen() -> float:
        return (anonymous_bytes(target.server.pid) - before) / MIB

    with contextlib.suppress(AssertionError):
        wait_until(lambda: risen() < MORE_MIB, 10)
    print(f"  +{risen():.0f} MiB")
    assert risen() < MORE_MIB
    statuses = {int(name) for name in counts if name.isdigit()}
    assert {status for status in statuses if status >= 500} <= MEANT, counts
    assert sum(counts.values()) == num_of_server


async def _send_all(target: Target, cases: list[Case], quiet_seconds: float) -> Counts:
    """Send each request on a connection of its own; return how many had which end."""
    counts: Counts = collections.Counter()
    waiting = iter(cases)
    parts = urlsplit(target.url)

    async def client() -> None:
        for case in waiting:
            counts[await _send(parts.hostname or "", parts.port or 80, case, quiet_seconds)] += 1

    async with asyncio.TaskGroup() as group:
        for _ in range(NUM_CLIENTS):
            group.create_task(client())
    return counts


async def _send(host: str, port: int, case: Case, quiet_seconds: float) -> str:
    """Return the status of the answer, or how the connection ended without one."""
    reader, writer = await asyncio.open_connection(host, port)
    data = b""
    try:
        writer.write(case.data)
        async with asyncio.timeout(quiet_seconds):
            while b"\r\n" not in data:
                piece = await reader.read(1 << 16)
                if not piece:
                    return "closed"
                data += piece
    except TimeoutError:
        return "silent"
    except OSError:
        return "closed"
    finally:
        writer.transport.abort()
    return data[9:12].decode("latin-1") if data.startswith(b"HTTP/1.1 ") else "no HTTP"


def _send_by_grpc(target: Target, cases: list[Case]) -> Counts:
    """Send messages to gRPC's methods; return how many had which status."""
    counts: Counts = collections.Counter()
    with grpc.insecure_channel(f"127.0.0.1:{target.grpc_port}") as channel:
        calls: dict[str, Callable[..., object]] = {}
        for case in cases:
            path = f"/inference.GRPCInferenceService/{case.name}"
            call = calls.setdefault(case.name, channel.unary_unary(path))
            try:
                call(case.data, timeout=20)
                counts["OK"] += 1
            except grpc.RpcError as error:
                counts[error.code().name] += 1
    # what a client sends is never the server's fault
    assert not counts.keys() & {"UNKNOWN", "UNAVAILABLE", "DATA_LOSS"}, counts
    return counts
