"""A server in the shape of OpenAI's chat completions: a test decides its every byte, and it sees its client leave."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

# Writes an answer to a request; the connection is closed behind it.
Script = Callable[["Exchange"], Awaitable[None]]


@dataclass
class Exchange:
    """One request, and the connection to answer it on."""

    path: str
    headers: dict[str, str]
    body: Any
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    async def send(self, data: bytes) -> None:
        """Bytes as they are."""
        self.writer.write(data)
        await self.writer.drain()

    async def head(self, status: int, content_type: str, *lines: str) -> None:
        """Status and headers; what follows ends with the connection."""
        head = [f"HTTP/1.1 {status} X", f"content-type: {content_type}", "connection: close", *lines]
        await self.send("\r\n".join([*head, "", ""]).encode())

    async def answer(self, status: int, content: Any) -> None:
        """A whole answer, as JSON."""
        await self.head(status, "application/json")
        await self.send(json.dumps(content).encode())

    async def stream(self, *frames: bytes) -> None:
        """The head of an event stream, and these frames."""
        await self.head(200, "text/event-stream; charset=utf-8")
        for frame in frames:
            await self.send(frame)

    async def client_leaves(self) -> None:
        """Until the client has closed the connection."""
        while await self.reader.read(65_536):
            pass


@dataclass
class ChatServer:
    """The running server, and what it was asked."""

    url: str
    exchanges: list[Exchange] = field(default_factory=list)


@asynccontextmanager
async def chat_server(script: Script) -> AsyncIterator[ChatServer]:
    """A server on a free port that answers every request by `script`."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
            headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in head[1:]) if name}
            body = json.loads(await reader.readexactly(int(headers["content-length"])))
            exchange = Exchange(head[0].split()[1], headers, body, reader, writer)
            running.exchanges.append(exchange)
            await script(exchange)
        except ConnectionError:
            # The client has gone, as some tests want it.
            return
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    running = ChatServer(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1")
    async with server:
        yield running


def delta(text: str | None, finish_reason: str | None = None) -> bytes:
    """A frame with a piece of text."""
    content = {} if text is None else {"content": text}
    event = {"choices": [{"index": 0, "delta": content, "finish_reason": finish_reason}]}
    return f"data: {json.dumps(event, ensure_ascii=False)}\n\n".encode()


DONE = b"data: [DONE]\n\n"
