"""What the web services share: JSON answers, and the timing of every request."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from datetime import date, datetime
from typing import Any

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

# What a request cost: its scope, the status of its answer, seconds to the answer's end.
Observe = Callable[[Scope, int, float], None]
# Methods that have a label of their own in metrics. A client may send any word as one.
METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})


def method_label(scope: Scope) -> str:
    """A request's method for a metric's label, of which there must be few."""
    method: str = scope["method"]
    return method if method in METHODS else "other"


class Json(JSONResponse):
    """JSON with times in ISO 8601; answers of an API are never cached."""

    def __init__(self, content: Any, status_code: int = 200, headers: dict[str, str] | None = None) -> None:
        super().__init__(content, status_code, {"Cache-Control": "no-store"} | (headers or {}))

    def render(self, content: Any) -> bytes:
        """Compact UTF-8."""
        return json.dumps(content, ensure_ascii=False, separators=(",", ":"), default=_encode).encode()


def _encode(value: Any) -> str:
    if isinstance(value, datetime | date):
        return value.isoformat()
    raise TypeError(f"{type(value).__name__} has no JSON form")


class RequestTimer:
    """Calls `observe` at the end of every request, also of one that failed before it had an answer (500)."""

    def __init__(self, app: ASGIApp, observe: Observe) -> None:
        self._app = app
        self._observe = observe

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI entry point."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = time.perf_counter()
        status = 500

        async def send_and_note(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, send_and_note)
        finally:
            self._observe(scope, status, time.perf_counter() - started)
