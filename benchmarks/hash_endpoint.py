"""An embeddings server whose vector is a function of the text's hash: a model that costs nothing and hides nothing.

    python -m benchmarks.hash_endpoint [--port 0] [--dimension 384] [--delay-ms 0]

The first line of its output is its URL. It speaks OpenAI's `POST /embeddings` and `/v1/embeddings` (`encoding_format`
`float` or `base64`) and Ollama's `POST /api/embed`, counts what it is asked (`GET /counts`) and forgets that on
`POST /reset`. A constant vector would hide a stale row; here another text has another vector, and `vector(text)` tells
an oracle which.

The hash decides the sign of each component; the sizes are fixed, all different, and make the length 1. So eight
components are one of 256 prepared pieces of the answer, and a text costs some microseconds.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import hashlib
import json
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import httpx
import numpy as np
import numpy.typing as npt

DIMENSION = 384
_PIECE = 8  # components that one byte of the hash decides


@cache
def sizes(dimension: int) -> npt.NDArray[np.float32]:
    """The absolute values of the components, shape (dimension,): seeded, of length 1 together."""
    values = np.random.default_rng(1).uniform(0.5, 1.5, dimension)
    return (values / np.linalg.norm(values)).astype(np.float32)


def digest(text: str, dimension: int = DIMENSION) -> bytes:
    """The bits that decide the signs: one bit a component, lowest bit of a byte first."""
    return hashlib.shake_256(text.encode()).digest(dimension // _PIECE)


def vector(text: str, dimension: int = DIMENSION) -> npt.NDArray[np.float32]:
    """The unit vector of a text, shape (dimension,)."""
    bits = np.unpackbits(np.frombuffer(digest(text, dimension), dtype=np.uint8), bitorder="little")
    signed: npt.NDArray[np.float32] = np.where(bits, sizes(dimension), -sizes(dimension)).astype(np.float32)
    return signed


class Pieces:
    """The prepared pieces of answers: for each byte of the hash and each of its values, eight components."""

    def __init__(self, dimension: int) -> None:
        if dimension % _PIECE:
            raise SystemExit(f"--dimension is {dimension}; it must be a multiple of {_PIECE}")
        self._dimension = dimension
        self._texts: list[list[str]] = []
        self._bytes: list[list[bytes]] = []
        for place in range(dimension // _PIECE):
            own = [float(size) for size in sizes(dimension)[place * _PIECE : (place + 1) * _PIECE]]
            signed = [
                [size if value >> bit & 1 else -size for bit, size in enumerate(own)] for value in range(1 << _PIECE)
            ]
            # Nine digits bring a float32 back exactly.
            self._texts.append([",".join(f"{component:.9g}" for component in piece) for piece in signed])
            self._bytes.append([struct.pack(f"<{_PIECE}f", *piece) for piece in signed])

    def as_list(self, text: str) -> str:
        """The vector as a JSON list."""
        parts = zip(self._texts, digest(text, self._dimension), strict=True)
        return f"[{','.join([table[value] for table, value in parts])}]"

    def as_base64(self, text: str) -> str:
        """The vector as a JSON string: base64 of little-endian float32."""
        parts = zip(self._bytes, digest(text, self._dimension), strict=True)
        return f'"{base64.b64encode(b"".join([table[value] for table, value in parts])).decode()}"'


class Application:
    """The ASGI application; one a process, so its counts are the process's."""

    def __init__(self, dimension: int, delay_seconds: float) -> None:
        self._pieces = Pieces(dimension)
        self._delay = delay_seconds
        self._forget()

    def _forget(self) -> None:
        self.calls = self.texts = self.largest = 0
        self.busy_seconds = 0.0

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """One request."""
        if scope["type"] == "lifespan":
            while True:
                message = await receive()
                await send({"type": f"{message['type']}.complete"})
                if message["type"] == "lifespan.shutdown":
                    return
        body = b""
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":  # the client was killed in the middle of its request
                return
            body += message.get("body", b"")
            if not message.get("more_body"):
                break
        status, answer = await self._answer(scope["method"], scope["path"], body)
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(answer)).encode())]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": answer})

    async def _answer(self, method: str, path: str, body: bytes) -> tuple[int, bytes]:
        if (method, path) == ("GET", "/counts"):
            return 200, json.dumps(self.counts()).encode()
        if (method, path) == ("POST", "/reset"):
            self._forget()
            return 200, b"{}"
        if method != "POST" or path not in {"/embeddings", "/v1/embeddings", "/api/embed"}:
            return 404, b'{"error": {"message": "not found"}}'
        started = time.perf_counter()
        asked = json.loads(body)
        texts = [asked["input"]] if isinstance(asked["input"], str) else asked["input"]
        if not all(isinstance(text, str) for text in texts):
            return 400, b'{"error": {"message": "input must be a text or a list of texts"}}'
        self.calls += 1
        self.texts += len(texts)
        self.largest = max(self.largest, len(texts))
        model = json.dumps(asked.get("model", "hash"))
        tokens = sum(len(text) for text in texts) // 4
        if path == "/api/embed":
            vectors = ",".join(map(self._pieces.as_list, texts))
            answer = f'{{"model":{model},"embeddings":[{vectors}],"prompt_eval_count":{tokens}}}'
        else:
            encode = self._pieces.as_base64 if asked.get("encoding_format") == "base64" else self._pieces.as_list
            data = ",".join(
                f'{{"object":"embedding","index":{number},"embedding":{encode(text)}}}'
                for number, text in enumerate(texts)
            )
            usage = f'{{"prompt_tokens":{tokens},"total_tokens":{tokens}}}'
            answer = f'{{"object":"list","data":[{data}],"model":{model},"usage":{usage}}}'
        encoded = answer.encode()
        self.busy_seconds += time.perf_counter() - started
        if self._delay:
            await asyncio.sleep(self._delay)
        return 200, encoded

    def counts(self) -> dict[str, float]:
        """Calls and texts since the last reset, the largest call, and the milliseconds spent on answers."""
        return {
            "calls": self.calls,
            "texts": self.texts,
            "largest_call": self.largest,
            "busy_ms": round(self.busy_seconds * 1000, 3),
        }


class Endpoint:
    """A server that runs as a process of its own.

    Attributes:
        url: its base URL, for a catalog's `url`.
    """

    def __init__(self, url: str, pid: int) -> None:
        self.url = url
        self.pid = pid
        self._client = httpx.Client(base_url=url, timeout=30)

    def counts(self) -> dict[str, float]:
        """What it was asked since the last reset; see `Application.counts`."""
        answer: dict[str, float] = self._client.get("/counts").json()
        return answer

    def reset(self) -> None:
        """Begin counting anew."""
        self._client.post("/reset")

    def own_ms(self) -> float:
        """Its own milliseconds for a request of one text: the median of fifty, over a kept connection."""
        times = []
        for number in range(60):
            before = self.counts()["busy_ms"]
            self._client.post("/embeddings", json={"model": "hash", "input": [f"a short text {number}"]})
            times.append(self.counts()["busy_ms"] - before)
        return sorted(times[10:])[25]

    def round_trip_ms(self) -> float:
        """Milliseconds of a request of one text as a client sees it: the median of fifty, over a kept connection."""
        times = []
        for number in range(60):
            started = time.perf_counter()
            self._client.post("/embeddings", json={"model": "hash", "input": [f"a short text {number}"]})
            times.append((time.perf_counter() - started) * 1000)
        return sorted(times[10:])[25]


@contextmanager
def serving(dimension: int = DIMENSION, delay_ms: float = 0.0) -> Iterator[Endpoint]:
    """A server in a process of its own, ended afterwards. It runs on the cores of the caller."""
    command = [sys.executable, "-m", "benchmarks.hash_endpoint", "--port", "0"]
    command += ["--dimension", str(dimension), "--delay-ms", str(delay_ms)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            url = process.stdout.readline().strip()
            if not url:
                raise RuntimeError("the hash endpoint did not start")
            yield Endpoint(url, process.pid)
        finally:
            process.terminate()


def main() -> None:
    """Serve until ended."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, default=0, help="0: any free one")
    parser.add_argument("--dimension", type=int, default=DIMENSION)
    parser.add_argument("--delay-ms", type=float, default=0.0, help="wait so long before each answer")
    arguments = parser.parse_args()
    import uvicorn

    listening = socket.create_server(("127.0.0.1", arguments.port))
    print(f"http://127.0.0.1:{listening.getsockname()[1]}", flush=True)
    application = Application(arguments.dimension, arguments.delay_ms / 1000)
    config = uvicorn.Config(application, log_level="warning", access_log=False, timeout_keep_alive=600)
    uvicorn.Server(config).run(sockets=[listening])


if __name__ == "__main__":
    main()
