"""An OpenAI-compatible embedding endpoint on loopback, for tests."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from sophia.catalog.models import EmbeddingModel

DIMENSION = 4
# Status and content, and headers if there are any.
Answer = tuple[int, Any] | tuple[int, Any, dict[str, str]]


class Endpoint:
    """An OpenAI-compatible server whose answers a test decides."""

    def __init__(self) -> None:
        self.requests: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.answer: Callable[[list[str]], Answer] = self.vectors
        endpoint = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                endpoint.requests.append(body)
                endpoint.headers.append(dict(self.headers))
                answer = endpoint.answer(body["input"])
                status, content = answer[:2]
                data = content if isinstance(content, bytes) else json.dumps(content).encode()
                self.send_response(status)
                for name, value in (answer[2] if len(answer) == 3 else {}).items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_: Any) -> None:
                return

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1"
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()

    def vectors(self, texts: list[str]) -> Answer:
        """Vectors that tell the texts apart, not of length 1, in reverse order."""
        items = [{"index": n, "embedding": [len(text), 1.0, 0.0, 0.0]} for n, text in enumerate(texts)]
        return 200, {"data": items[::-1]}


def model(url: str | None, **changes: Any) -> EmbeddingModel:
    fields: dict[str, Any] = {
        "name": "remote",
        "description": "A model behind HTTP.",
        "provider": "openai",
        "url": url,
        "model": "text-small",
        "dimension": DIMENSION,
        "max_tokens": 512,
        "version": "1",
    }
    return EmbeddingModel(**(fields | changes))
