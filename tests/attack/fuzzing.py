"""Requests that nobody would write: half of them are valid ones with a few changes.

All is drawn from a seed: the same seed gives the same requests.
"""

from __future__ import annotations

import json
import random
from dataclasses import dataclass
from typing import Any

from kserve.protocol.grpc import grpc_predict_v2_pb2 as pb

MODEL = "smollm2"
_CHAT = {
    "model": MODEL,
    "messages": [
        {"role": "system", "content": 'ä \\ " [{,'},
        {"role": "user", "content": [{"type": "text", "text": "hi"}]},
    ],
    "max_tokens": 1,
    "stop": ["\n\n"],
    "logit_bias": {"5": -1.5},
    "seed": 7,
}
_COMPLETION = {"model": MODEL, "prompt": "One", "max_tokens": 1, "temperature": 0}
_STREAM = {**_COMPLETION, "stream": True, "stream_options": {"include_usage": True}}
_IDS = {"model": MODEL, "prompt": [[1, 2, 3], [4]], "max_tokens": 1, "n": 2, "logprobs": 2}
_V1 = {"instances": ["a", {"prompt": "b"}], "parameters": {"max_tokens": 1}}
_INFER = {
    "inputs": [{"name": "a", "shape": [1], "datatype": "BYTES", "data": ["b"]}],
    "parameters": {"max_tokens": 1},
}
_TOOLS = {
    **_CHAT,
    "tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}],
    "response_format": {"type": "json_object"},
}
_RESUMED = {**_STREAM, "resume": {"id": "cmpl-1", "created": 1, "seed": 1, "choices": []}}

GETS = {
    "predictor": (
        *("/", "/v1/models", f"/v1/models/{MODEL}", "/v2", "/v2/models", f"/v2/models/{MODEL}"),
        *("/v2/health/live", "/v2/health/ready", f"/v2/models/{MODEL}/ready", "/metrics"),
    ),
    "proxy": (
        *("/", "/v1/models", f"/v1/models/{MODEL}", "/api/models", "/health", "/health/live"),
        *("/health/ready", "/metrics", "/openapi.json", "/docs", "/v1/health"),
    ),
}
_OPENAI = (
    *(("/v1/completions", body) for body in (_COMPLETION, _STREAM, _IDS, _RESUMED)),
    *(("/v1/chat/completions", body) for body in (_CHAT, _TOOLS)),
)
POSTS: dict[str, tuple[tuple[str, Any], ...]] = {
    "predictor": (
        *_OPENAI,
        ("/openai/v1/chat/completions", _CHAT),
        ("/openai/v1/completions", _COMPLETION),
        (f"/v1/models/{MODEL}:predict", _V1),
        (f"/v2/models/{MODEL}/infer", _INFER),
    ),
    "proxy": (
        *_OPENAI,
        ("/api/generate", _COMPLETION),
        ("/api/generate/stream", _COMPLETION),
        ("/api/chat", _CHAT),
        ("/v1/embeddings", {"model": MODEL, "input": ["a", "b"]}),
        ("/v1/rerank", {"model": MODEL, "query": "a", "documents": ["b", "c"]}),
        ("/tokenize", {"model": MODEL, "prompt": "a"}),
        ("/detokenize", {"model": MODEL, "tokens": [1, 2]}),
    ),
}
GRPC = {
    "ServerLive": pb.ServerLiveRequest(),
    "ServerReady": pb.ServerReadyRequest(),
    "ServerMetadata": pb.ServerMetadataRequest(),
    "ModelReady": pb.ModelReadyRequest(name=MODEL),
    "ModelMetadata": pb.ModelMetadataRequest(name=MODEL),
    "ModelInfer": pb.ModelInferRequest(
        model_name=MODEL,
        inputs=[
            pb.ModelInferRequest.InferInputTensor(
                name="a",
                datatype="BYTES",
                shape=[1],
                contents=pb.InferTensorContents(bytes_contents=[b"b"]),
            )
        ],
    ),
    "RepositoryModelLoad": pb.RepositoryModelLoadRequest(model_name=MODEL),
    "RepositoryModelUnload": pb.RepositoryModelUnloadRequest(model_name=MODEL),
}

_FIELDS = (
    *("model", "messages", "prompt", "stream", "max_tokens", "n", "best_of", "stop", "seed"),
    *("temperature", "top_p", "top_k", "logit_bias", "tools", "tool_choice", "response_format"),
    *("resume", "user", "logprobs", "top_logprobs", "role", "content", "name", "tool_calls"),
    *("type", "text", "image_url", "instances", "parameters", "inputs", "input", "documents"),
    *("data", "shape", "datatype", "suffix", "echo", "stream_options", "cache_salt", "priority"),
)
_TEXTS = (
    *("", "a", "user", "assistant", "tool", "text", MODEL, "\0", "\ud800", "{{ 9**9 }}", "%00"),
    *("<|im_end|>", "../../etc/passwd", "a" * 5000, "\u202e", "é" * 300, "9" * 400, "null"),
)
_NUMBERS = (0, -1, 1, 2**31, 2**63, 2**64, -(2**63), 10**400, 1e308, -1e-308, 0.5, 128, 129)
_PLAUSIBLE: dict[str, tuple[Any, ...]] = {
    "max_tokens": (1, 2, 3),
    "temperature": (0, 0.7, 2),
    "top_p": (0.1, 1),
    "top_k": (0, 1, 40),
    "n": (1, 2, 3),
    "stop": ("a", ["a", "b"], None),
    "stream": (True, False),
    "seed": (0, -5, 2**40),
    "user": ("a", "b"),
    "priority": (-1, 0, 9),
    "presence_penalty": (-2, 0.5),
    "repetition_penalty": (0.5, 1.5),
    "ignore_eos": (True, False),
    "dry_multiplier": (0, 0.8),
    "logit_bias": ({}, {"1": 5}),
    "cache_salt": ("a",),
}
_ODD_BYTES = (
    *(b'"', b"\\", b"{", b"}", b"[", b"]", b",", b":", b"\x00", b"\xff", b"\xed\xa0\x80"),
    *(b"\\ud800", b"\\u0000", b"NaN", b"-Infinity", b"1e999", b"9" * 400, b"null", b"true"),
    *(b'"model":"b",', b'"resume":{},', b'"stream":true,', b"[" * 70, b"]" * 70, b'{"":' * 70),
    *(b"\r\n", b"\n", b"\r", b" ", b"\t", b"%00", b"%2F", b"/../", b"?", b"#", b"\r\n\r\n"),
)
_ODD_HEADERS = (
    *(b"Transfer-Encoding: chunked", b"Transfer-Encoding: gzip, chunked", b"Host: b"),
    *(b"Content-Length: 5", b"Content-Length: -1", b"Content-Length: 1e3", b"Content-Length: +1"),
    *(b"Expect: 100-continue", b"Upgrade: h2c", b"Upgrade: websocket", b"Connection: upgrade"),
    *(b"X-Tenant: \xff", b"X-Tenant: a", b"Authorization: Bearer \x00", b"X-Resumable: 1"),
    *(b"Content-Type: text/plain", b"Content-Encoding: gzip", b"Accept: text/html", b"a:b"),
    *(b" folded: x", b"X-A: b\r\n c", b"X-Empty:", b": x", b"no colon", b"X-\x7f: a"),
    *(b"Inference-Header-Content-Length: abc", b"Inference-Header-Content-Length: 10"),
    *(b"traceparent: 00-0-0-0", b"Origin: https://a.example", b"Cookie: a=b", b"Range: bytes=0-"),
    *(b"x-request-id: " + b"a" * 300, b"X-Long: " + b"a" * 3000, b"Host:", b"Forwarded: for=a"),
)
_METHODS = (b"GET", b"POST", b"PUT", b"DELETE", b"OPTIONS", b"HEAD", b"PATCH", b"CONNECT", b"XYZ")
_TARGETS = (b"*", b"//", b"/%", b"/%2e%2e/", b"http://a.example/v1/models", b"/a" * 2000, b"/\xff")


@dataclass(frozen=True)
class Case:
    """One request: its bytes, or a method of gRPC with those of its message."""

    kind: str
    data: bytes
    name: str


class Fuzzer:
    """Draws the requests of one server ("predictor" or "proxy"); owner: one test."""

    def __init__(self, server: str, seed: int) -> None:
        self._server = server
        self._rng = random.Random(f"{server} {seed}")

    def raw(self, host: str) -> Case:
        """Return bytes: every second time those of a valid request with a few changes."""
        rng = self._rng
        if rng.random() < 0.5:
            return Case("mutated", self._with_changes(self._valid(host)), "raw")
        if rng.random() < 0.2:
            return Case("random", rng.randbytes(rng.randrange(1, 400)), "raw")
        return Case("built", self._built(host), "raw")

    def json(self, host: str) -> Case:
        """Return a POST with a body: every second time a valid one with a few changes."""
        rng = self._rng
        path, valid = rng.choice(POSTS[self._server])
        if rng.random() < 0.5:
            body = self._changed(valid)
            kind = "mutated"
        else:
            body = json.dumps(self._value(0)).encode()
            kind = "random"
        return Case(kind, _post(host, path, body), path)

    def grpc(self) -> Case:
        """Return a message: every second time a valid one with a few changes."""
        rng = self._rng
        name = rng.choice(list(GRPC))
        if rng.random() < 0.5:
            return Case("mutated", self._edited(GRPC[name].SerializeToString(), 3), name)
        return Case("random", rng.randbytes(rng.randrange(0, 200)), name)

    def _valid(self, host: str) -> bytes:
        rng = self._rng
        if rng.random() < 0.4:
            path = rng.choice(GETS[self._server])
            return f"GET {path} HTTP/1.1\r\nHost: {host}\r\n\r\n".encode()
        path, body = rng.choice(POSTS[self._server])
        return _post(host, path, json.dumps(body).encode())

    def _with_changes(self, data: bytes) -> bytes:
        """Put in a header, or change a few bytes of the body, or of all."""
        rng = self._rng
        head, end, body = data.partition(b"\r\n\r\n")
        where = rng.random()
        if where < 0.4:
            return head + b"\r\n" + rng.choice(_ODD_HEADERS) + end + body
        if where < 0.7 and body:
            return head + end + self._edited(body, 3)
        return self._edited(data, 1)

    def _built(self, host: str) -> bytes:
        rng = self._rng
        target = rng.choice([*_TARGETS, *(path.encode() for path in GETS[self._server])])
        lines = [b" ".join((rng.choice(_METHODS), target, rng.choice(_VERSIONS)))]
        if rng.random() < 0.9:
            lines.append(b"Host: " + host.encode())
        lines += rng.choices(_ODD_HEADERS, k=rng.randrange(6))
        rng.shuffle(lines[1:])
        body = rng.choice([b"", b"{}", b"5\r\nabcde\r\n0\r\n\r\n", b"ffffffffff\r\n", b"-1\r\n"])
        return b"\r\n".join([*lines, b"", body])

    def _edited(self, data: bytes, most: int) -> bytes:
        """Put in, take out or change a few bytes."""
        rng = self._rng
        for _ in range(rng.randint(1, most)):
            at = rng.randrange(len(data) + 1)
            new = rng.choice(_ODD_BYTES) if rng.random() < 0.7 else rng.randbytes(rng.randrange(5))
            data = data[:at] + new + data[at + rng.choice((0, 0, 1, len(new), 12)) :]
        return data

    def _changed(self, valid: dict[str, Any]) -> bytes:
        """Change a few fields of a valid body, or a few of its bytes."""
        rng = self._rng
        if rng.random() < 0.4:
            return self._edited(json.dumps(valid).encode(), 3)
        body = dict(valid)
        if rng.random() < 0.4:
            names = rng.sample(list(_PLAUSIBLE), rng.randint(1, 4))
            return json.dumps(
                body | {name: rng.choice(_PLAUSIBLE[name]) for name in names}
            ).encode()
        for _ in range(rng.randint(1, 3)):
            name = rng.choice([*body, rng.choice(_FIELDS)])
            if rng.random() < 0.2 and name != "max_tokens":
                body.pop(name, None)
            else:
                body[name] = self._value(1)
        return json.dumps(body).encode()

    def _value(self, depth: int) -> Any:
        rng = self._rng
        kind = rng.randrange(9 if depth < 5 else 6)
        if kind == 0:
            return rng.choice([None, True, False])
        if kind <= 2:
            return rng.choice(_NUMBERS)
        if kind <= 5:
            return rng.choice(_TEXTS)
        if kind == 6:
            return [self._value(depth + 1) for _ in range(rng.randrange(5))]
        size = rng.randrange(1, 6) if depth else rng.randrange(2, 9)
        found = {rng.choice(_FIELDS): self._value(depth + 1) for _ in range(size)}
        if not depth:
            found.setdefault("max_tokens", 1)
        return found


_VERSIONS = (b"HTTP/1.1", b"HTTP/1.1", b"HTTP/1.1", b"HTTP/1.0", b"HTTP/2.0", b"HTTP/1.9", b"")


def _post(host: str, path: str, body: bytes) -> bytes:
    head = f"POST {path} HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body
