"""Connections: no more than so many are open, and nobody holds an answer up by not reading it."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
from collections.abc import AsyncGenerator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from sophia.services import connections
from sophia.services.inference import models
from tests.embedders import HashEmbedder
from tests.inference import Gate
from tests.integration.inference.conftest import Serve
from tests.waiting import until


def connect(client: httpx.Client) -> socket.socket:
    assert client.base_url.port is not None
    connection = socket.create_connection((client.base_url.host, client.base_url.port), timeout=60)
    connection.sendall(b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
    return connection


def status(connection: socket.socket) -> bytes:
    """The status line's code; empty where the connection was closed."""
    return connection.recv(4_096)[9:12]


def test_the_longest_idle_connection_makes_room(served: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    client = served()
    monkeypatch.setattr(connections, "MOST_CONNECTIONS", 3)
    opened: list[socket.socket] = []
    for _ in range(3):
        opened.append(connect(client))
        assert status(opened[-1]) == b"200"
    opened[0].sendall(b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
    assert status(opened[0]) == b"200"
    opened.append(connect(client))
    assert status(opened[3]) == b"200"
    # The second is the one that has asked for nothing for longest.
    assert status(opened[1]) == b""
    for connection in opened:
        connection.close()


def test_while_all_are_busy_another_is_refused(
    served: Serve, hash_embedder: HashEmbedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = Gate(hash_embedder)
    client = served()

    def refused() -> bool:
        """What was idle a moment ago may still make room, and a refusal may come before it is read."""
        try:
            answer = httpx.get(f"{client.base_url}/health", timeout=60)
        except httpx.TransportError:
            return False
        return answer.status_code == 503 and answer.headers["Retry-After"] == "1" and "error" in answer.json()

    with ThreadPoolExecutor(2) as pool:
        address = f"{client.base_url}/embed"
        asked = [pool.submit(httpx.post, address, json={"text": "hold 0"}, timeout=60)]
        try:
            # Two that came together could be one batch, and none would wait.
            assert gate.reached.wait(60)
            asked.append(pool.submit(httpx.post, address, json={"text": "hold 1"}, timeout=60))
            waiting = 'waiting_tokens{lane="online"} 3.0'
            until(lambda: waiting in httpx.get(f"{client.base_url}/metrics", timeout=60).text, "the second request")
            client.close()
            monkeypatch.setattr(connections, "MOST_CONNECTIONS", 2)
            until(refused, "a refusal")
        finally:
            gate.opened.set()
        assert [each.result().status_code for each in asked] == [200, 200]
    assert httpx.get(f"{client.base_url}/health", timeout=60).status_code == 200


class Endless:
    """A generator whose answer has no end."""

    name = "endless"

    def __init__(self) -> None:
        self.closed = threading.Event()

    async def stream(self, _request: Any) -> AsyncGenerator[str, None]:
        try:
            while True:
                yield "x" * 100_000
                await asyncio.sleep(0)
        finally:
            self.closed.set()

    async def close(self) -> None:
        return None


@pytest.mark.parametrize(
    "behind", [b"", b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"], ids=["alone", "pipelined"]
)
def test_a_stream_that_nobody_reads_ends(
    served: Serve, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, behind: bytes
) -> None:
    endless = Endless()
    monkeypatch.setattr(models, "load_generator", lambda settings: endless)
    monkeypatch.setattr(connections, "UNREAD_SECONDS", 0.2)
    client = served()
    body = json.dumps({"prompt": "a", "stream": True}).encode()
    head = "POST /generate HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
    assert client.base_url.port is not None
    with socket.create_connection((client.base_url.host, client.base_url.port), timeout=60) as reader:
        reader.sendall(head.encode() + b"Content-Length: %d\r\n\r\n" % len(body) + body + behind)
        assert status(reader) == b"200"
        until(endless.closed.is_set, "the end of a stream that nobody reads")
    assert "Exception in ASGI application" not in caplog.text
