"""A receiver that records requests as they came over the wire and answers as a test says."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

# A status, or None to take the request and cut the connection without an answer.
Answer = int | None | tuple[int, str]


@dataclass(frozen=True)
class Request:
    """One request; header names and values in their order."""

    method: str
    path: str
    headers: list[tuple[str, str]]
    body: bytes

    @property
    def documents(self) -> list[dict[str, Any]]:
        return json.loads(self.body)


class Recorder:
    """Listens on loopback. `answer` gets the request's number from 1 on; 200 if it is not set.

    Attributes:
        requests: all requests, in their order.
        most_at_once: how many were under way at the same time, at most.
    """

    def __init__(self) -> None:
        self.requests: list[Request] = []
        self.answer: Callable[[int, Request], Answer] = lambda number, request: 200
        self.most_at_once = 0
        self._at_once = 0
        self._lock = threading.Lock()
        recorder = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def _take(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                request = Request(self.command, self.path, list(self.headers.items()), body)
                with recorder._lock:
                    recorder._at_once += 1
                    recorder.most_at_once = max(recorder.most_at_once, recorder._at_once)
                    recorder.requests.append(request)
                    number = len(recorder.requests)
                try:
                    answer = recorder.answer(number, request)
                finally:
                    with recorder._lock:
                        recorder._at_once -= 1
                if answer is None:
                    self.close_connection = True
                    return
                status, location = answer if isinstance(answer, tuple) else (answer, None)
                self.send_response(status)
                if location is not None:
                    self.send_header("Location", location)
                self.send_header("Content-Length", "0")
                self.end_headers()

            do_POST = do_PUT = do_PATCH = do_GET = _take

            def log_message(self, format: str, *args: Any) -> None:
                """Say nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()

    @property
    def url(self) -> str:
        """Base URL, ending in `/`."""
        return f"http://127.0.0.1:{self._server.server_address[1]}/"

    @property
    def documents(self) -> list[dict[str, Any]]:
        """All documents of all requests, in their order."""
        return [document for request in self.requests for document in request.documents]

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(60)
